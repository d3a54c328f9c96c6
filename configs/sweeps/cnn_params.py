"""How held-out loss falls with the number of parameters of the digit network, at equal epochs.

Shifted images are never the same twice, so that the larger networks do not learn them by heart.
"""

from configs import cnn_digits
from research.config import grid

SIZES = (2.1e3, 3.7e3, 8.2e3, 1.44e4, 3.2e4, 5.7e4, 1.27e5)  # widths 3 to 24
REPLICATED = 1.44e4


def get_config():
    config = cnn_digits.get_config()
    config.name, config.size = "cnn_params", 3.2e4
    config.model.update(width=None, depth=None, hidden=None)
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.ladder(SIZES, REPLICATED)
