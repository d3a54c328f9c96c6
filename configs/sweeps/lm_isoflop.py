"""Four budgets of FLOPs, sizes around the best of each: where is it, and how does it grow? The
demo's sweep. --config.horizon.amount=C makes C its largest budget.

The report fits L(N, D) to all runs and locates the minimum of every budget. --sweep=centered gives
each budget sizes of its own, around 20 tokens per parameter, for where the best are not known.
"""

from configs import lm_transformer
from research.config import grid

RECIPE = __file__.removesuffix("sweeps/lm_isoflop.py") + "recipes/lm_isoflop.json"

# Shares of the largest budget, and the sizes there. Heads have 16 features or nearly: the sizes
# between these, with heads of 10 or 14, and the smallest, with one of 8, lie above the others' law.
VALLEYS = (
    (1 / 5.5, (17e3, 33e3, 54e3, 108e3, 179e3)),
    (1 / 3, (17e3, 33e3, 54e3, 108e3, 179e3)),
    (1 / 1.7, (33e3, 54e3, 108e3, 179e3, 274e3)),
    (1.0, (33e3, 54e3, 108e3, 179e3, 274e3)),
)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_isoflop"
    # Width alone varies: a third layer is worth more than its parameters, a kink that no law has.
    config.model.depth = 3
    config.eval.every = 0
    config.eval.examples = 2048
    config.horizon = {"unit": "flops", "amount": 1.2e12}
    # Seeds differ by a third as much as with AdamW.
    config.optim.optimizer = {
        "name": "muon",
        "momentum": 0.95,
        "weight_decay": 0.01,
        "adam_scale": 0.3,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-8,
    }
    # The best rate falls with the FLOPs of a run: at one rate for all the larger ones fall behind,
    # and no law shows it. The recipe is of the runs of --sweep=rates.
    config.optim.update(lr=1.0, lr_rule="fitted", recipe=RECIPE)
    config.optim.schedule.final = 0.0
    return config


# What configs/recipes/lm_isoflop.json was fitted to: shares of the largest budget, about the best
# rate there, and the sizes with which FACTORS of it were tried.
TRIED = ((1 / 12, 0.021, (17e3, 54e3, 108e3)), (1 / 3.4, 0.0165, (33e3, 108e3)),
         (1.0, 0.0125, (33e3, 108e3, 179e3, 274e3)))  # fmt: skip
FACTORS = (0.5, 0.8, 1.25, 2.0)


def rates(config):
    largest = config["horizon"]["amount"]
    fixed = [{"optim.lr_rule": "constant", "optim.recipe": None}]
    return grid.chain(
        *(
            grid.product(
                grid.isoflop([share * largest], sizes),
                grid.values("optim.lr", [factor * about for factor in FACTORS]),
                fixed,
            )
            for share, about, sizes in TRIED
        )
    )


def sweep(config):
    largest = config["horizon"]["amount"]
    return grid.chain(*(grid.isoflop([share * largest], sizes) for share, sizes in VALLEYS))


def centered(config):
    largest = config["horizon"]["amount"]
    budgets = [share * largest for share, _ in VALLEYS[1:]]  # of the least, sizes would coincide
    return grid.isoflop(budgets, n=5, around=grid.CHINCHILLA, spread=3.5)
