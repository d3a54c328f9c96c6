"""Trivial runs, to time what the engine adds: `sweep` has 200 points, `fifty` 50."""

from configs import linear
from research.config import grid


def get_config():
    config = linear.get_config()
    config.name = "bench_linear"
    config.horizon.amount = 100.0
    return config


def sweep(config):
    return grid.product(grid.values("optim.lr", grid.log_grid(0.01, 0.3, 20)), grid.seeds(10))


def fifty(config):
    return grid.seeds(50)
