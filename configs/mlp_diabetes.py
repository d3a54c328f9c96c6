"""An MLP on a real table: how diabetes progresses in a year, from ten measurements of 442 patients.

For your own table: --config.data.path=FILE.csv --config.data.target=COLUMN.
"""

from configs import linear
from research.config import grid


def get_config():
    config = linear.get_config()
    config.name, config.size = "mlp_diabetes", 500
    config.model = {"name": "mlp", "width": None, "depth": 2, "activation": "tanh"}
    config.data = {
        "name": "table",
        "path": "diabetes",  # or a .csv or .parquet
        "target": ["progression"],
        "columns": None,  # all the others
        "kind": "numbers",
        "standardize": True,
        "heldout": 0.25,
        "seed": 0,
    }
    config.batch.size = 32
    config.optim.optimizer = {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.3,
    }
    config.optim.lr = 3e-3
    config.horizon = {"unit": "epochs", "amount": 40.0}
    config.eval.batch = 128
    config.log.every = 10
    return config


def sweep(config):
    """A linear model and networks of growing width: on so few patients, size buys little."""
    del config
    linear_model = {"model.name": "linear", "size": None}
    return [*grid.sizes([50, 150, 500, 1500, 5000]), linear_model]
