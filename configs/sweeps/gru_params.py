"""How held-out loss falls with the number of parameters of a GRU, at one token budget.

The data order of the three seeds at one size differs too, so their spread is the noise of a run.
"""

from configs import lm_gru
from research.config import grid

SIZES = (11e3, 19e3, 29e3, 53e3, 82e3, 160e3, 356e3)
REPLICATED = 29e3


def get_config():
    config = lm_gru.get_config()
    config.name = "gru_params"
    return config


def sweep(config):
    del config
    return grid.ladder(SIZES, REPLICATED)
