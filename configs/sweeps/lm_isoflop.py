"""Three budgets of FLOPs, six sizes each: where is the best size, and how does it grow?

The report fits L(N, D) to all runs and locates the minimum of every budget. --sweep=centred gives
each budget sizes of its own, around 20 tokens per parameter, for where the best are not known.
"""

from configs import lm_transformer
from research import grid

BUDGETS = (1.5e11, 3.5e11, 8e11)
SIZES = (14e3, 26e3, 42e3, 8e4, 1.4e5, 2.4e5)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_isoflop"
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.isoflop(BUDGETS, SIZES)


def centred(config):
    del config
    return grid.isoflop(BUDGETS, n=6, around=grid.CHINCHILLA, spread=4.0)
