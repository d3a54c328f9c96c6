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
from jax.ad_checkpoint import checkpoint_name as named
from jax.sharding import PartitionSpec

GATHERED = "gathered"  # names a parameter that is gathered where it is named, and not at its uses


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: Array, axes: tuple, lies: tuple) -> Array:
    """A parameter that `lies` along mesh axes (or None, per dimension), gathered but along `axes`:
    once, and not at every use."""
    del lies
    return named(constrain(x, axes), GATHERED)


gather.defvjp(
    lambda x, axes, lies: (gather(x, axes, lies), None),
    lambda axes, lies, _, g: (constrain(g, lies),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table_VxD: Array, ids_M: Array, dtype: str, V: int) -> Array:
    """The rows [M, D] of a table of `V`, in `dtype`, in which it is gathered: if its width lay on
    the same axis as the rows, every row would be moved to every device. Its gradient is added up in
    float32."""
    del V
    return jnp.take(constrain(table_VxD.astype(dtype), ("tensor", None)), ids_M, axis=0)


def _lookup_backward(dtype: str, V: int, ids_M: Array, g_MxD: Array) -> tuple[Array, None]:
    zeros_VxD = jnp.zeros((V, g_MxD.shape[1]), jnp.float32)
    # Features go to where they lie before rows are added up; only those of "data" are left to add.
    g_MxD = constrain(g_MxD.astype(zeros_VxD.dtype), ("data", "fsdp"))
    ids_M = constrain(ids_M, ("data",))
    return constrain(zeros_VxD.at[ids_M].add(g_MxD), ("tensor", "fsdp")), None


lookup.defvjp(lambda table, ids, *static: (lookup(table, ids, *static), ids), _lookup_backward)


def constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    """`x` split along `axes` where they divide it, else on every device; where there are such."""
    sizes: dict[Any, int] = dict(jax.sharding.get_abstract_mesh().shape)
    if math.prod(sizes.values()) == 1 or "fsdp" not in sizes:
        return x
    fit = [axis if axis and n % sizes[axis] == 0 else None for n, axis in zip(x.shape, axes)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fit))
