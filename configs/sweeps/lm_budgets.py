"""How held-out loss falls with parameters and with tokens: four budgets of tokens for each size.

The rate warms up, stays, and decays over the last fifth, so the budgets of a size share their
stable phase: each begins where the decay of the next smaller one does, and all four cost 9.4 times
the smallest instead of 15 times.
"""

from configs import lm_transformer
from research.config import grid

SIZES = (16e3, 42e3, 1.0e5, 2.4e5)
TOKENS = (1e5, 2e5, 4e5, 8e5)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_budgets"
    config.optim.schedule = {"name": "wsd", "decay": 0.2, "final": 0.0}
    # In tokens and not as a share of the run: that is what makes those steps the same for all.
    config.optim.warmup = {"unit": "tokens", "amount": 2e4}
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.product(grid.sizes(SIZES), grid.values("horizon.amount", TOKENS))
