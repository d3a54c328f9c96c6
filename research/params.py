"""Parameters by path: how the leaves of a train state are named everywhere, and the one mechanism
to say something about them, a table of patterns on the tail of their path.

A path is the keys from the root joined by "/", such as `blocks/attn/query/kernel`. A table is a
sequence of (pattern, value); a pattern is a regular expression that must match up to the end of the
path. Exactly one row must match: a parameter that nobody thought of, or two rows that both claim
it, are errors rather than a silent default. Sharding, groups and weight decay all use this.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import BadInput

T = TypeVar("T")
PathTable = Sequence[tuple[str, T]]


def matching_rows(table: PathTable[T], path: str) -> list[tuple[str, T]]:
    """The rows of `table` whose pattern matches the tail of `path`."""
    return [(p, value) for p, value in table if re.search(rf"(?:^|/)(?:{p})$", path)]


def match_path(table: PathTable[T], path: str, what: str = "rule") -> T:
    """The value of the only row of `table` whose pattern matches the tail of `path`.

    Raises BadInput, naming the table and the remedy, unless exactly one row matches: an incomplete
    family is reported before anything is compiled.
    """
    hits = matching_rows(table, path)
    if len(hits) != 1:
        matches, advice = "none", "add a row for it"
        if hits:
            matches, advice = ", ".join(repr(p) for p, _ in hits), "narrow all but one of them"
        raise BadInput(
            f"parameter {path!r} must match exactly one {what}, it matches {matches}; {advice}"
        )
    return hits[0][1]


def flatten_dict(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(path, leaf) for every leaf of a nested dict, in the order of the dict."""
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from flatten_dict(value, path)
        else:
            yield path, value


def key_path(path: tuple) -> str:
    """A jax key path as keys joined by "/", the form that `match_path` matches."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} as a nested dict."""
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = out
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = leaf
    return out


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """{path: leaf} of any pytree."""
    return {key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def all_finite(tree: Any) -> bool:
    """Whether all numbers of the arrays are finite, of those that lie in this process."""
    return all(
        bool(np.isfinite(np.asarray(shard.data)).all())
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        for shard in x.addressable_shards
        if shard.replica_id == 0
    )
