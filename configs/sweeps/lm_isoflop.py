"""Four budgets of FLOPs, sizes around the best of each: where is it, and how does it grow? The
demo's sweep. --config.horizon.amount=C makes C its largest budget.

The report fits L(N, D) to all runs and locates the minimum of every budget. --sweep=centered gives
each budget sizes of its own, around 20 tokens per parameter, for where the best are not known.
"""

from configs import lm_transformer
from research.config import grid

# Shares of the largest budget, and the sizes there. Heads have 16 features or nearly: the sizes
# between these, with heads of 10 or 14, and the smallest, with one of 8, lie above the others' law.
VALLEYS = (
    (1 / 14, (17e3, 33e3, 54e3, 108e3)),
    (1 / 5.8, (17e3, 33e3, 54e3, 108e3, 179e3)),
    (1 / 2.4, (17e3, 33e3, 54e3, 108e3, 179e3)),
    (1.0, (33e3, 54e3, 108e3, 179e3, 274e3)),
)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_isoflop"
    # Width alone varies: a third layer is worth more than its parameters, a kink that no law has.
    config.model.depth = 3
    config.eval.every = 0
    config.eval.examples = 2048
    config.horizon = {"unit": "flops", "amount": 1.4e12}
    # Seeds differ by a third as much as with AdamW, and one rate serves all these widths.
    config.optim.optimizer = {
        "name": "muon",
        "momentum": 0.95,
        "weight_decay": 0.01,
        "adam_scale": 0.3,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-8,
    }
    config.optim.lr, config.optim.lr_rule = 0.02, "constant"
    config.optim.schedule.final = 0.0
    return config


def sweep(config):
    largest = config["horizon"]["amount"]
    return grid.chain(*(grid.isoflop([share * largest], sizes) for share, sizes in VALLEYS))


def centered(config):
    largest = config["horizon"]["amount"]
    budgets = [share * largest for share, _ in VALLEYS[1:]]  # of the least, sizes would coincide
    return grid.isoflop(budgets, n=5, around=grid.CHINCHILLA, spread=3.5)
