"""Three budgets of FLOPs, six sizes each: where is the best size, and how does it grow? The demo's
sweep. --config.horizon.amount=C makes C its largest budget.

The report fits L(N, D) to all runs and locates the minimum of every budget. --sweep=centred gives
each budget sizes of its own, around 20 tokens per parameter, for where the best are not known.
"""

from configs import lm_transformer
from research import grid

SHARES = (0.1875, 0.4375, 1.0)  # of the largest budget
SIZES = (14e3, 26e3, 42e3, 8e4, 1.4e5, 2.4e5)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_isoflop"
    config.eval.every = 0
    config.horizon = {"unit": "flops", "amount": 8e11}
    return config


def budgets(largest):
    return [share * largest for share in SHARES]


def sweep(config):
    return grid.isoflop(budgets(config["horizon"]["amount"]), SIZES)


def centred(config):
    largest = config["horizon"]["amount"]
    return grid.isoflop(budgets(largest), n=6, around=grid.CHINCHILLA, spread=4.0)
