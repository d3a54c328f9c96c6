"""How the loss on masked tokens falls with parameters and tokens, as lm_budgets for the next one.

Fewer tokens or smaller models would not do: of each window an encoder predicts 15 %, and it first
learns unigram frequencies and only then to use the context. One of width 8 does not within 3.2M
tokens, and those of 34,000 parameters and more only begin to within 800,000.
"""

from configs import lm_masked
from configs.sweeps import lm_budgets
from research.config import grid

SIZES = (1e4, 2e4, 4.2e4)
TOKENS = (8e5, 1.6e6, 3.2e6)


def get_config():
    config = lm_masked.get_config()
    config.name = "masked_budgets"
    config.optim.update({k: lm_budgets.get_config().optim[k] for k in ("schedule", "warmup")})
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.product(grid.sizes(SIZES), grid.values("horizon.amount", TOKENS))
