"""How held-out loss falls with the number of parameters, at one token budget.

The data order of the three seeds at one size differs too, so their spread is the noise of a run.
"""

from configs import lm_transformer
from research.config import grid

SIZES = (16e3, 26e3, 42e3, 1.0e5, 1.9e5, 4.5e5, 9e5)
REPLICATED = 42e3


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_params"
    config.eval.every = 400
    return config


def sweep(config):
    del config
    return grid.ladder(SIZES, REPLICATED)
