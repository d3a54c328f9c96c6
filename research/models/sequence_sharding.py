"""Tokens of a transformer on a mesh with a tensor axis, which splits them between blocks as the
other axes do (sequence parallelism, Korthikanti et al. 2022). A block gathers what it reads and
scatters the sums that it writes, which moves as many bytes as summing them everywhere would, and
each device keeps but its part for the backward pass. Both are said of the gradient too: it is
gathered where sums were scattered.
"""

import jax
from jax import Array
from jax.sharding import PartitionSpec

ASKED = "sequence_sharding"  # in the names of the operations that move tokens
WHOLE = PartitionSpec(("data", "fsdp"))
SPLIT = PartitionSpec(("data", "fsdp", "tensor"))


@jax.custom_vjp
def gather(x_MxD: Array) -> Array:
    """Split tokens, as many on each device as a block needs."""
    return _move(x_MxD, SPLIT, WHOLE)


@jax.custom_vjp
def scatter(x_MxD: Array) -> Array:
    """What a block writes, a sum over the tensor axis, with its tokens split."""
    return _move(x_MxD, WHOLE, SPLIT)


gather.defvjp(lambda x: (gather(x), None), lambda _, g: (_move(g, WHOLE, SPLIT),))
scatter.defvjp(lambda x: (scatter(x), None), lambda _, g: (_move(g, SPLIT, WHOLE),))


def _move(x: Array, *steps: PartitionSpec) -> Array:
    with jax.named_scope(ASKED):
        for spec in steps:
            x = jax.lax.with_sharding_constraint(x, spec)
        return x
