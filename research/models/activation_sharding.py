"""Where activations lie, by the names of mesh axes alone: no model knows a mesh.

Parameters lie where the table SHARDING of their family says. From that alone the partitioner may
as well split the sums over an fsdp axis as gather the kernel, and then every device computes all
rows; so a family says here, between its parts, that rows stay where their examples are.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

ROWS = ("data", "fsdp")  # axes that the examples of a batch are split over
ANY = PartitionSpec.UNCONSTRAINED  # a dimension that the partitioner may split as it likes


def rows(x: Array, *rest: object) -> Array:
    """`x` with its first axis (examples, or examples · time) split over ROWS and the others as
    `rest` says, from the second on: a mesh axis, ANY, or None for whole, which those not named are.

    The identity where no mesh with these axes is in use (see sharding.on).
    """
    return _constrained(x, (ROWS, *rest))


def whole(x: Array, *axes: object) -> Array:
    """A parameter on every device, except along `axes` (a mesh axis or None for each dimension):
    what an fsdp axis splits is gathered here, once, and not wherever it is used."""
    return _constrained(x, axes)


def look_up(table_VxD: Array, at_M: Array) -> Array:
    """Rows of an embedding, [M, D]. It is gathered over fsdp for it: with its width split over the
    axis that splits the rows, the partitioner would move every row to every device first."""
    return rows(jnp.take(whole(table_VxD, "tensor", None), at_M, axis=0))


def _constrained(x: Array, axes: tuple) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(ROWS) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
