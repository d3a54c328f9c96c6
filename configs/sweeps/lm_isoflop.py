"""Three budgets of FLOPs, six sizes each: where is the best size, and how does it grow? The demo's
sweep. --config.horizon.amount=C makes C its largest budget.

The report fits L(N, D) to all runs and locates the minimum of every budget. --sweep=centered gives
each budget sizes of its own, around 20 tokens per parameter, for where the best are not known.
"""

from configs import lm_transformer
from research.config import grid

SHARES = (1 / 6, 0.4, 1.0)  # of the largest budget
SIZES = (17e3, 33e3, 54e3, 77e3, 108e3, 143e3)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_isoflop"
    # Width alone varies: a third layer is worth more than its parameters, a kink that no law has.
    config.model.depth = 3
    config.eval.every = 0
    config.horizon = {"unit": "flops", "amount": 1.2e12}
    return config


def budgets(largest):
    return [share * largest for share in SHARES]


def sweep(config):
    return grid.isoflop(budgets(config["horizon"]["amount"]), SIZES)


def centered(config):
    largest = config["horizon"]["amount"]
    return grid.isoflop(budgets(largest), n=6, around=grid.CHINCHILLA, spread=4.0)
