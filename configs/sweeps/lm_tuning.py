"""What to train a language model with, before a law is fitted to many of them: three sweeps at one
token budget. --sweep=lr and --sweep=batch look along one line each, without it over both."""

from configs import lm_transformer
from research.config import grid

SIZES = (26e3, 1e5)  # is the best rate / width the same for both?


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_tuning"
    config.horizon.amount = 4e5
    config.eval.every = 0
    return config


def lr(config):
    """Rates on a grid of factors of two, by size."""
    del config
    return grid.product(grid.sizes(SIZES), grid.values("optim.lr", grid.log_grid(0.05, 0.8, 5)))


def batch(config):
    """Batches at one size; Adam's rate goes with the root of the batch."""
    root = config["optim"]["lr"] / config["batch"]["size"] ** 0.5
    sizes = (2, 4, 8, 16)
    return grid.zip_(
        grid.values("batch.size", sizes), grid.values("optim.lr", [root * b**0.5 for b in sizes])
    )


def sweep(config):
    """Every rate with every batch, at one size."""
    del config
    rates = grid.values("optim.lr", grid.log_grid(0.05, 0.8, 5))
    return grid.product(grid.values("batch.size", (2, 4, 8, 16)), rates)
