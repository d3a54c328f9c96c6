"""Sharding constraints on activations, by names of mesh axes alone: no model knows a mesh.

Given only a family's table SHARDING, XLA may split a matmul's contraction over the fsdp axis, and
then every device computes all rows, instead of gathering the kernel. So each family constrains the
activations between its layers to the devices that hold their examples.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

ROWS = ("data", "fsdp")  # axes that the examples of a batch are split over
ANY = PartitionSpec.UNCONSTRAINED  # a dimension that the partitioner may split as it likes


def shard_rows(x: Array, *rest: object) -> Array:
    """`x` with its first axis (examples, or examples · time) sharded over ROWS, where a mesh with
    these axes is in scope (see device_mesh.with_mesh_names). `rest` is for its other axes, from the
    second on: a mesh axis, ANY, or None for unsplit, which is the default."""
    return _constrain(x, (ROWS, *rest))


def gather_tokens(x_MxD: Array) -> Array:
    """What a block reads of tokens [B·T, D] that may be split over the tensor axis."""
    return split.gather(x_MxD) if (split := _split_tokens(x_MxD)) else x_MxD


def scatter_tokens(x_MxD: Array) -> Array:
    """What a block writes, its tokens [B·T, D] sharded over ROWS, and over the tensor axis."""
    return split.scatter(x_MxD) if (split := _split_tokens(x_MxD)) else shard_rows(x_MxD)


def embedding_lookup(table_VxD: Array, ids_M: Array, dtype: str = "float32") -> Array:
    """The embeddings [M, D] of the ids `ids_M`, in `dtype`."""
    if not parameters_are_split():
        return shard_rows(jnp.take(table_VxD, ids_M, axis=0).astype(dtype))
    from research.models import parameter_sharding

    return shard_rows(parameter_sharding.lookup(table_VxD, ids_M, dtype, len(table_VxD)))


def parameters_are_split() -> bool:
    """Whether a mesh is in scope whose devices have but a part of a parameter each."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return sizes.get("fsdp", 1) * sizes.get("tensor", 1) > 1


def _split_tokens(x_MxD: Array) -> Any:
    """What moves tokens along the tensor axis, where there is one and it divides them."""
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("tensor", 1) == 1 or len(x_MxD) % math.prod(sizes.values()):
        return None
    from research.models import sequence_sharding

    return sequence_sharding


def platform() -> str:
    """Of the mesh in scope, whose devices may be elsewhere; without, of jax's default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(device, "platform", device) or jax.default_backend()


def _constrain(x: Array, axes: tuple) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(ROWS) <= set(mesh.auto_axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
