"""One mechanism to say something about parameters: a table of patterns on the tail of their path.

A path is the keys from the root joined by "/", such as `blocks/attn/query/kernel`. A table is a
sequence of (pattern, value); a pattern is a regular expression that must match up to the end of the
path. Exactly one row must match: a parameter that nobody thought of, or two rows that both claim
it, are errors rather than a silent default. Sharding, groups and weight decay all use this.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Table = Sequence[tuple[str, T]]


def match(table: Table[T], path: str, what: str = "rule") -> T:
    """The value of the only row of `table` whose pattern matches the tail of `path`.

    Raises ValueError when no row or more than one matches.
    """
    hits = [(p, value) for p, value in table if re.search(rf"(?:^|/)(?:{p})$", path)]
    if len(hits) != 1:
        found = ", ".join(repr(p) for p, _ in hits) or "none"
        raise ValueError(f"parameter {path!r} must match exactly one {what}, it matches {found}")
    return hits[0][1]


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(path, leaf) for every leaf of a nested dict, in the order of the dict."""
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, value
