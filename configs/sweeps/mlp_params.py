"""How the loss of a one-hidden-layer network falls with its size on a teacher whose exponent is
known: one over the width, and so over the parameters."""

from configs import mlp_teacher
from research.config import grid

SIZES = (322, 580, 1096, 2128, 3160, 4192, 6256)  # widths 2, 4, 8, 16, 24, 32, 48
REPLICATED = 1096


def get_config():
    config = mlp_teacher.get_config()
    config.name = "mlp_params"
    return config


def sweep(config):
    del config
    return grid.ladder(SIZES, REPLICATED)
