"""How the loss on masked tokens falls with parameters and tokens, as lm_budgets for the next one.

Fewer tokens would not do: of each window an encoder is asked about 15 %, and it first learns how
frequent letters are and only then to look at the others.
"""

from configs import lm_masked
from configs.sweeps import lm_budgets
from research.config import grid

SIZES = (1e4, 2e4, 4.2e4, 9e4)
TOKENS = (4e5, 8e5, 1.6e6)


def get_config():
    config = lm_masked.get_config()
    config.name = "masked_budgets"
    config.optim.update({k: lm_budgets.get_config().optim[k] for k in ("schedule", "warmup")})
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.product(grid.sizes(SIZES), grid.values("horizon.amount", TOKENS))
