"""How held-out loss falls with the size of the residual network, at equal epochs.

Image size, shift and epochs were chosen by looking at these very held-out losses, over four
versions whose exponents were 0.21 and 0.87 (not monotonic), 1.12, and 0.80 (kept): a demonstration
of the path, not a measurement of the exponent of this family.
"""

from configs import resnet_digits
from research.config import grid

SIZES = (5.1e3, 1.97e4, 4.4e4, 9.9e4, 1.75e5, 2.72e5, 4.24e5)  # widths 4 to 20, 1 to 3 blocks
REPLICATED = 1.97e4


def get_config():
    config = resnet_digits.get_config()
    config.name, config.size = "resnet_params", 4.4e4
    config.model.update(width=None, depth=None)
    config.data.resize = 10  # so that the sweep takes minutes
    config.horizon.amount = 7.0
    config.eval.every = 0
    return config


def sweep(config):
    del config
    return grid.ladder(SIZES, REPLICATED)
