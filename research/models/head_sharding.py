"""The head of a language model, whose parameters devices share: gathered once and its gradient
added up once, although its logits are worked out in chunks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name as named
from jax.sharding import PartitionSpec

from research.models.activation_sharding import ROWS, parameters_are_split, platform
from research.models.parameter_sharding import GATHERED, constrain


def head(spec: Any, w: Array) -> Array:
    """What a head reads: a matrix with a dimension of the vocabulary, which the tensor axis splits,
    gathered over fsdp in the type of its product; anything else as it is."""
    lies = _head_lies(w, spec.vocab) if parameters_are_split() else ()
    if lies:
        dtype = getattr(spec, "dtype", "float32")
        w = constrain(w.astype(dtype), tuple(axis if axis == "tensor" else None for axis in lies))
    return named(w, GATHERED)


def _head_lies(w: Array, V: int) -> tuple[str, ...]:
    """The axes of a matrix with one dimension of `V`; none of anything else."""
    found = w.ndim == 2 and w.shape.count(V) == 1
    return tuple("tensor" if n == V else "fsdp" for n in w.shape) if found else ()


def over_rows(
    spec: Any, function: Callable, rows: Sequence[Array], weights: Sequence[Array]
) -> tuple:
    """`function` (*rows, *weights) → (a sum, one array by row, gradients of the weights of a head),
    of rows [N, M, ...], whose M are split over devices.

    Each device calls it with its own rows and with weights that were gathered before, and the
    gradients are added up over devices after it, in the type of their product: a partitioner would
    add up what each turn of a loop in `function` makes.
    """
    ready = [head(spec, w) for w in weights]
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.shape.get(axis, 1) for axis in ROWS) == 1:
        return function(*rows, *ready)

    def of_device(*arrays: Array) -> tuple:
        total, by_row, gradients = function(*arrays)
        return total[None], by_row, [g.astype(w.dtype)[None] for g, w in zip(gradients, ready)]

    split, each, whole = PartitionSpec(None, ROWS), PartitionSpec(ROWS), PartitionSpec()
    given = (*[split] * len(rows), *[whole] * len(ready))
    made = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=given,
        out_specs=(each, split, each),
        axis_names=set(ROWS),
        check_vma=False,
    )
    totals, by_row, terms = made(*rows, *ready)
    gradients = [_add_up(g, _head_lies(g[0], spec.vocab)) for g in terms]
    # So that they are added up before anything else is done, and not kept whole until the end.
    by_row, gradients = jax.lax.optimization_barrier((by_row, gradients))
    return totals.sum(), by_row, [g.astype(w.dtype) for g, w in zip(gradients, weights)]


def _add_up(terms: Array, lies: tuple[str, ...]) -> Array:
    """The sum over the first axis, in the type of the terms, as devices add them up: a parameter
    whose dimensions lie along `lies`, or whole.

    Compilers of accelerators are told to scatter it: that for TPUs would add up all of it on every
    device. (XLA for CPU fails on such sums of bfloat16, and has no scattered ones.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    fits = [n % mesh.shape[axis] == 0 for n, axis in zip(terms.shape[1:], lies)]
    if platform() == "cpu" or not lies or not all(fits):
        total = jax.lax.reduce(terms, jnp.zeros((), terms.dtype), jax.lax.add, (0,))
        return constrain(total, lies)

    def of_device(own: Array) -> Array:
        part = own[0]
        if mesh.shape["fsdp"] > 1:
            at = lies.index("fsdp")
            part = jax.lax.psum_scatter(part, "fsdp", scatter_dimension=at, tiled=True)
        return jax.lax.psum(part, "data") if mesh.shape["data"] > 1 else part

    whole_on_fsdp = (axis if axis == "tensor" else None for axis in lies)
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=PartitionSpec(ROWS, *whole_on_fsdp),
        out_specs=PartitionSpec(*lies),
        check_vma=False,
    )(terms)
