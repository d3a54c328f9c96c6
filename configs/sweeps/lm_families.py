"""Two architectures on one corpus, at one token budget: which needs fewer parameters, and do their
laws have the same exponent? The report draws both laws on one plot."""

from configs import lm_gru, lm_transformer
from research import grid

SIZES = (16e3, 42e3, 1.0e5, 1.9e5, 4.5e5, 9e5)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_families"
    config.eval.every = 400
    return config


def sweep(config):
    del config
    return grid.chain(*(of_family(made.get_config()) for made in (lm_transformer, lm_gru)))


def of_family(config):
    """Every size of the family of `config`, with its own learning rate."""
    family = grid.section("model", config.model) | {"optim.lr": config.optim.lr}
    return grid.product([family], grid.sizes(SIZES))
