"""An MLP that learns a linear teacher with a power-law spectrum: its exponent is known."""

from configs import linear


def get_config():
    config = linear.get_config()
    config.name, config.size = "mlp_teacher", 2e3
    config.model = {"name": "mlp", "width": None, "depth": 1, "activation": "linear"}
    config.data = {
        "name": "teacher",
        "features": 64,
        "exponent": 1.0,
        "examples": 65536,
        "heldout": 4096,
        "generator_seed": 0,
        "seed": 0,
    }
    config.batch.size = 64
    config.optim.lr = 3e-3
    config.horizon = {"unit": "epochs", "amount": 4.0}
    config.eval.every = 1000
    config.save.every = 2000
    return config
