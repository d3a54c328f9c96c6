"""Bytes: what a device has, and what arrays take of it."""

import math

import jax

from research.io import host


def available() -> float:
    """Memory of one local device in bytes; on CPU, its share of the machine's memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return host.memory() / jax.local_device_count()


def bytes_per_device(tree: object) -> int:
    """Bytes that the arrays of `tree` take on the device that holds most of them."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
