"""The sweep that `make bench-sweep` times: six sizes of GPT-2's shape, four learning rates each.

23,160 to 258,528 parameters, context 128, vocabulary 256, 100 steps of 8 sequences, evaluated on
128 held-out windows half-way and at the end.
"""

from configs import lm_gpt2
from research.config import grid

WIDTHS = (24, 32, 48, 64, 80, 96)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def get_config():
    config = lm_gpt2.get_config()
    config.name = "bench_sweep"
    config.batch.size = 8
    config.horizon.update(unit="steps", amount=100.0)
    config.optim.lr_rule = "constant"
    config.eval.update(examples=128, batch=64, every=50)
    config.save.every = 0
    config.model.unroll = 1  # in runs of 100 steps, compiling less is worth more than a faster step
    return config


def sweep(config):
    sizes = [{"model.width": w, "model.hidden": 4 * w} for w in WIDTHS]
    return grid.product(sizes, grid.values("optim.lr", RATES))
