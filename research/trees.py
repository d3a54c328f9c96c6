"""Pytrees by path: how the leaves of a train state are named everywhere."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def key_path(path: tuple) -> str:
    """A jax key path as keys joined by "/", the form that `paths` matches."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} as a nested dict."""
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = out
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = leaf
    return out


def by_path(tree: Any) -> dict[str, Any]:
    """{path: leaf} of any pytree."""
    return {key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def finite(tree: Any) -> bool:
    """Whether all numbers of the arrays are finite, of those that lie in this process."""
    return all(
        bool(np.isfinite(np.asarray(shard.data)).all())
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        for shard in x.addressable_shards
        if shard.replica_id == 0
    )
