"""Sixteen small runs of one program, of GPT-2's shape, that differ in their learning rates: what
`make bench-gpu` trains vmapped and one by one."""

from configs import lm_gpt2
from research.config import grid


def get_config():
    config = lm_gpt2.get_config()
    config.name = "bench_groups"
    config.model.update(width=128, hidden=512, depth=4)
    config.batch.size = 16
    config.horizon.update(unit="steps", amount=500.0)
    config.optim.lr_rule = "constant"
    config.eval.update(examples=128, batch=64, every=0)
    config.save.every = 0
    return config


def sweep(config):
    return grid.values("optim.lr", grid.log_grid(3e-4, 1e-2, 16))
