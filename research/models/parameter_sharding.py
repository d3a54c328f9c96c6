"""Parameters that the fsdp axis splits, gathered where they are used, and their gradients, which go
back to where the parameter lies: constrained like the parameter in use, as they are by themselves,
each device would have to have all of a gradient.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: Array, axes: tuple, lies: tuple) -> Array:
    """A parameter that `lies` along mesh axes (or None, per dimension), gathered but along `axes`:
    once, and not at every use."""
    del lies
    return _constrain(x, axes)


gather.defvjp(
    lambda x, axes, lies: (_constrain(x, axes), None),
    lambda axes, lies, _, g: (_constrain(g, lies),),
)


def head(w: Array, dtype: str, V: int) -> Array:
    """A matrix with a dimension of the vocabulary `V`, which the tensor axis splits, gathered over
    fsdp in the `dtype` of its product; anything else as it is."""
    if w.ndim != 2 or w.shape.count(V) != 1:
        return w
    return _constrain(w.astype(dtype), tuple("tensor" if n == V else None for n in w.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table_VxD: Array, ids_M: Array, dtype: str, V: int) -> Array:
    """The rows [M, D] of a table of `V`, in `dtype`, in which it is gathered: if its width lay on
    the same axis as the rows, every row would be moved to every device. Its gradient is added up in
    float32."""
    del V
    return jnp.take(_constrain(table_VxD.astype(dtype), ("tensor", None)), ids_M, axis=0)


def _lookup_backward(dtype: str, V: int, ids_M: Array, g_MxD: Array) -> tuple[Array, None]:
    zeros_VxD = jnp.zeros((V, g_MxD.shape[1]), jnp.float32)
    g_MxD = g_MxD.astype(zeros_VxD.dtype)
    return _constrain(zeros_VxD.at[ids_M].add(g_MxD), ("tensor", "fsdp")), None


lookup.defvjp(lambda table, ids, *static: (lookup(table, ids, *static), ids), _lookup_backward)


def _constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    """`x` split along `axes` where they divide it, else on every device; where there are such."""
    sizes: dict[Any, int] = dict(jax.sharding.get_abstract_mesh().shape)
    if math.prod(sizes.values()) == 1 or "fsdp" not in sizes:
        return x
    fit = [axis if axis and n % sizes[axis] == 0 else None for n, axis in zip(x.shape, axes)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fit))
