"""AdamW against Muon, each at learning rates of its own: how much compute is one worth beside the
other? The rates are tried at every size and length, and the best of each are compared:

    isoflop fit --runs=DIR --compare=optimizer --best_of=cell --out=OUT

A best rate at the end of those tried is a bound, and the fit says so. --config.horizon.amount=T
makes T tokens the longest run.
"""

from configs import lm_transformer
from configs.sweeps import lm_isoflop
from research.config import grid

SIZES = (17e3, 33e3, 54e3)
SHARES = (0.25, 0.5, 1.0)  # of the longest run; three, since fewer values determine no exponent
RATES = {"adamw": (0.004, 0.008, 0.016, 0.032, 0.064), "muon": (0.01, 0.02, 0.04, 0.08)}


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_optimizers"
    config.model.depth = 3  # fixed, so that width alone varies
    config.horizon.amount = 4e5
    config.optim.lr_rule = "constant"
    config.eval.every = 0
    return config


def sweep(config):
    lengths = [share * config["horizon"]["amount"] for share in SHARES]
    cells = grid.product(grid.sizes(SIZES), grid.values("horizon.amount", lengths))
    for recipe in (lm_transformer, lm_isoflop):
        optimizer = recipe.get_config().optim.optimizer.to_dict()
        rates = grid.values("optim.lr", RATES[optimizer["name"]])
        yield from grid.product([{"optim.optimizer": optimizer}], rates, cells)
