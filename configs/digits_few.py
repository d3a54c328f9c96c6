"""Few labeled digits: a network that has learned other digits first, against a new one.

    python -m experiments.train --config=configs/digits_pretrain.py --workdir=runs/digits
    python -m experiments.sweep --config=configs/digits_few.py --config.init.run=runs/digits \\
        --workdir=runs/few
"""

from configs import cnn_digits, text_classes
from research.config import grid


def get_config():
    config = cnn_digits.get_config()
    config.name = "digits_few"
    config.data.examples = 100
    config.batch.size = 20
    config.optim.lr = 1e-3
    config.horizon = {"unit": "examples", "amount": 6e3}
    config.eval.every = 0
    return config


def sweep(config):
    examples = grid.values("data.examples", EXAMPLES)
    return grid.product(text_classes.starts(config), examples, grid.seeds(2))


EXAMPLES = (20, 50, 100, 200, 500)
