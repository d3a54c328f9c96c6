"""Optimizers and weight decay. Every number is traced: one compiled step serves all values.

An optimizer here is a function of its keywords, called inside the step. Keywords that are numbers
(float) arrive traced, so the state must not depend on them; a `bool` is a static choice that is
part of the key of the compiled step (see Optimizer); None is static too. The learning rate is
applied last, by the step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from research.config.types import NonNegative, OpenUnit, Positive, UnitInterval
from research.errors import ErrorCollector
from research.params import PathTable, key_path, match_path
from research.training.schedules import Choice

# What is decayed: matrices. Scales and biases are not, they are few and their size has a meaning.
DECAY = (("kernel|embedding", True), ("scale|bias", False))

# What Muon orthogonalizes: axes counted from the last, so that depth in front of a scanned kernel
# is a batch; None is left to Adam. Optax alone would take a scanned bias for a matrix and a scanned
# kernel for none. A GRU's three gates are one matrix.
_DENSE = MuonDimensionNumbers((-2,), -1)  # in, out
_CONV = MuonDimensionNumbers((-4, -3, -2), -1)  # height, width, in, out
MATRICES: PathTable[MuonDimensionNumbers | None] = (
    ("(query|key|value|out|up|gate|down)/kernel", _DENSE),
    (r"(input|recurrent|dense\d*|hidden\d*)/kernel", _DENSE),
    (r"conv\w*/kernel", _CONV),
    ("(head|classifier|linear)/kernel|embedding|scale|bias", None),
)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay acts on. Raises BadInput naming all that DECAY does
    not say."""
    return _by_table(DECAY, params, "row of DECAY")


def matrix_dims(params: Any) -> Any:
    """Muon's axes of every leaf, or None. Raises BadInput naming all that MATRICES does not say."""
    return _by_table(MATRICES, params, "row of MATRICES")


def _by_table(table: PathTable, params: Any, what: str) -> Any:
    collect, where = ErrorCollector(), f"{what} (research/training/optimizers.py)"
    values = jax.tree_util.tree_map_with_path(
        lambda path, _: collect(match_path, table, key_path(path), where), params
    )
    collect.raise_errors()
    return values


def _decay(weight_decay: NonNegative) -> optax.GradientTransformation:
    return optax.add_decayed_weights(weight_decay, mask=decay_mask)


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, whose update is of optax, which raises a decay to the power of an int32 count: for a
    traced decay that is a promotion, which strict promotion, as in the tests, would reject."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def sgd(
    *, momentum: UnitInterval, nesterov: bool, weight_decay: NonNegative
) -> optax.GradientTransformation:
    """Momentum m ← βm + g (Sutskever et al. 2013), and decoupled weight decay, matrices only."""
    return optax.chain(optax.trace(momentum, nesterov=nesterov), _decay(weight_decay))


def adam(*, b1: UnitInterval, b2: UnitInterval, eps: Positive) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015)."""
    return _promoting(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


def adamw(
    *, b1: UnitInterval, b2: UnitInterval, eps: Positive, weight_decay: NonNegative
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), matrices only."""
    return optax.chain(adam(b1=b1, b2=b2, eps=eps), _decay(weight_decay))


def lion(
    *, b1: UnitInterval, b2: UnitInterval, weight_decay: NonNegative
) -> optax.GradientTransformation:
    """The sign of a momentum (Chen et al. 2023), and decoupled weight decay, matrices only."""
    return optax.chain(optax.scale_by_lion(b1=b1, b2=b2), _decay(weight_decay))


def adafactor(
    *,
    decay_rate: OpenUnit,
    clip_threshold: Positive,
    scale_by_params: bool,
    momentum: UnitInterval | None,
    weight_decay: NonNegative,
) -> optax.GradientTransformation:
    """Adam with second moments by rows and columns (Shazeer & Stern 2018).

    Only the two largest dimensions of a leaf are factored, and only if both are at least 128; small
    models keep whole moments. β₂ at step t is 1 - t^-decay_rate. The update's RMS is clipped, then
    times the parameter's RMS (at least 1e-3) if asked; a scanned kernel is one block for both.
    Without `momentum` no memory is held for it. Weight decay is decoupled, matrices only.
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate),
        optax.clip_by_block_rms(clip_threshold),
        optax.scale_by_param_block_rms() if scale_by_params else optax.identity(),
        optax.identity() if momentum is None else optax.ema(momentum, debias=False),
        _decay(weight_decay),
    )


def muon(
    *,
    momentum: UnitInterval,
    weight_decay: NonNegative,
    adam_scale: Positive,
    b1: UnitInterval,
    b2: UnitInterval,
    eps: Positive,
) -> optax.GradientTransformation:
    """Orthogonalized Nesterov momentum for the hidden matrices, AdamW for the rest (Jordan 2024).

    Five Newton–Schulz steps bring the singular values of each matrix near 1, times √max(1, out/in).
    MATRICES says which; other leaves have `adam_scale` times the learning rate. Weight decay is
    decoupled and times the rate of its leaf, matrices and embeddings only.
    """
    orthogonal = optax.chain(
        _promoting(scale_by_muon(beta=momentum, weight_dimension_numbers=matrix_dims)),
        optax.stateless(lambda updates, _: jax.tree.map(_by_shape, updates, matrix_dims(updates))),
        _decay(weight_decay),
    )
    rest = adamw(b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)

    def labels(params: Any) -> Any:
        dims = matrix_dims(params)
        return jax.tree.map(lambda _, dim: "muon" if dim else "adam", params, dims)

    return optax.partition(
        {"muon": orthogonal, "adam": optax.chain(rest, optax.scale(adam_scale))}, labels
    )


def _by_shape(update: Array, dims: MuonDimensionNumbers) -> Array:
    """Times √max(1, out/in), with which one rate serves all shapes of a matrix."""
    fan_in = math.prod(update.shape[axis] for axis in dims.reduction_axis)  # type: ignore[union-attr]
    return update * math.sqrt(max(1, update.shape[-1] / fan_in))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
}


class Optimizer(Choice):
    """An optimizer, a name of OPTIMIZERS."""

    def transform(self, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        return OPTIMIZERS[self.name](**dict(self.static), **numbers)
