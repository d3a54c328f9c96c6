"""Optimizers and weight decay. Every number is traced: one compiled step serves all values.

An optimizer here is a function of its keywords, called inside the step. Keywords that are numbers
(float) arrive traced, so the state must not depend on them; a `bool` is a static choice that is
part of the key of the compiled step (see Optimizer); None is static too. The learning rate is
applied last, by the step.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any

import jax
import optax

from research.config.types import NonNegative, Positive, UnitInterval
from research.errors import ErrorCollector
from research.params import PathTable, key_path, match_path
from research.training.schedules import Choice

# What is decayed: matrices. Scales and biases are not, they are few and their size has a meaning.
DECAY = (("kernel|embedding", True), ("scale|bias", False))


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay acts on. Raises BadInput naming all that DECAY does
    not say."""
    return by_table(DECAY, params, "row of DECAY (research/training/optimizers.py)")


def by_table(table: PathTable, params: Any, what: str) -> Any:
    """What a table says of every leaf. Raises BadInput naming all that it does not say, and `what`
    and where it is."""
    collect = ErrorCollector()
    values = jax.tree_util.tree_map_with_path(
        lambda path, _: collect(match_path, table, key_path(path), what), params
    )
    collect.raise_errors()
    return values


def decayed(weight_decay: NonNegative) -> optax.GradientTransformation:
    """Decoupled weight decay, of what `decay_mask` says."""
    return optax.add_decayed_weights(weight_decay, mask=decay_mask)


def promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, whose update is of optax, which raises a decay to the power of an int32 count: for a
    traced decay that is a promotion, which strict promotion, as in the tests, would reject."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def adam(*, b1: UnitInterval, b2: UnitInterval, eps: Positive) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015)."""
    return promoting(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


def adamw(
    *, b1: UnitInterval, b2: UnitInterval, eps: Positive, weight_decay: NonNegative
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), matrices only."""
    return optax.chain(adam(b1=b1, b2=b2, eps=eps), decayed(weight_decay))


# What is imported when a run asks for it.
OPTIMIZERS = {
    "sgd": "research.training.momentum:sgd",
    "adam": "research.training.optimizers:adam",
    "adamw": "research.training.optimizers:adamw",
    "lion": "research.training.momentum:lion",
    "adafactor": "research.training.adafactor:adafactor",
    "muon": "research.training.muon:muon",
}


class Optimizer(Choice):
    """An optimizer, a name of OPTIMIZERS."""

    def transform(self, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        make = pkgutil.resolve_name(OPTIMIZERS[self.name])
        return make(**dict(self.static), **numbers)
