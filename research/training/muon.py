"""Muon, and the table of the matrices that it orthogonalizes."""

import math
from typing import Any

import jax
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from research.config.types import NonNegative, Positive, UnitInterval
from research.params import PathTable
from research.training import optimizers

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


def matrix_dims(params: Any) -> Any:
    """Muon's axes of every leaf, or None. Raises BadInput naming all that MATRICES does not say."""
    return optimizers.by_table(MATRICES, params, "row of MATRICES (research/training/muon.py)")


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
        optimizers.promoting(scale_by_muon(beta=momentum, weight_dimension_numbers=matrix_dims)),
        optax.stateless(lambda updates, _: jax.tree.map(_by_shape, updates, matrix_dims(updates))),
        optimizers.decayed(weight_decay),
    )
    rest = optimizers.adamw(b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)

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
