"""What was meant by a key of a config that there is not."""

import difflib
from collections.abc import Mapping

from research.config.registry import Field


def unknown_key(path: str, known: Mapping[str, Field], written: str) -> str:
    """The problem of a key that is not `known`, with the one that was perhaps meant; `written` is
    it as Python writes it."""
    if inside := [key for key in known if key.startswith(f"{path}.")]:
        return f"{path}: is a section; expected its keys, such as {inside[0]}"
    close = _nearest(path[:100], list(known))
    hint = f"; did you mean {close!r}?" if close else ""
    plain = path.isascii() and path.isprintable() and 0 < len(path) <= 100
    return f"{path if plain else written}: no such key{hint}"


def _nearest(path: str, known: list[str]) -> str | None:
    """The key that was meant: of the same section, by the same name in another, or as a whole."""
    section, _, last = path.rpartition(".")
    names = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    if close := difflib.get_close_matches(last, names, n=1):
        return names[close[0]]
    same = [key for key in known if key.rpartition(".")[2] == last]
    if not same and not names:
        same = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    return next(iter(difflib.get_close_matches(path, same, n=1, cutoff=0.0)), None)
