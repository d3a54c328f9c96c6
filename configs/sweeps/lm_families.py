"""Two architectures on one corpus, at one token budget: which needs fewer parameters, and do their
laws have the same exponent? The report draws both laws on one plot."""

from configs import lm_gru, lm_transformer
from research.config import grid

SIZES = (16e3, 32e3, 66e3, 1.4e5, 2.8e5)


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_families"
    config.horizon.amount = 6e5
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.chain(*(_of_family(made.get_config()) for made in (lm_transformer, lm_gru)))


def _of_family(config):
    """Every size of the family of `config`."""
    own = grid.section("model", config.model)
    own |= {"batch.size": config.batch.size}  # what it is best trained with
    own |= {"optim.lr": config.optim.lr, "optim.lr_rule": config.optim.lr_rule}
    return grid.product([own], grid.sizes(SIZES))
