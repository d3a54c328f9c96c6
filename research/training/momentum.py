"""Optimizers that keep a momentum alone."""

import optax

from research.config.types import NonNegative, UnitInterval
from research.training import optimizers


def sgd(
    *, momentum: UnitInterval, nesterov: bool, weight_decay: NonNegative
) -> optax.GradientTransformation:
    """Momentum m ← βm + g (Sutskever et al. 2013), and decoupled weight decay, matrices only."""
    return optax.chain(optax.trace(momentum, nesterov=nesterov), optimizers.decayed(weight_decay))


def lion(
    *, b1: UnitInterval, b2: UnitInterval, weight_decay: NonNegative
) -> optax.GradientTransformation:
    """The sign of a momentum (Chen et al. 2023), and decoupled weight decay, matrices only."""
    return optax.chain(optax.scale_by_lion(b1=b1, b2=b2), optimizers.decayed(weight_decay))
