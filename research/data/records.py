"""A .jsonl, whose lines are documents."""

import json
from collections.abc import Iterator, Mapping

from research.data import utf8
from research.errors import BadInput


def read(
    path: str, fields: Mapping[str, str], undecodable: str = "error"
) -> tuple[Iterator[tuple[str, ...]], int]:
    """The values of `fields` (config key → name) in every line of a `.jsonl`, and the number of
    replacements. Raises BadInput naming the line."""
    raw, replaced = utf8.read(path, undecodable)
    return _records(path, raw.splitlines(), fields), replaced


def _records(path: str, lines: list[bytes], fields: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where, values = ("", ""), []
        try:
            row = json.loads(line)
            for where in fields.items():
                value = row[where[1]]
                if where[0] == "data.label_field" and isinstance(value, int):
                    value = str(value)  # classes are often numbered
                value.encode()
                values.append(value)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            key, name = where if where[0] else next(iter(fields.items()))
            raise BadInput(
                f"data.path: {path}: line {number}: expected a JSON object whose "
                f"{name!r} ({key}) is text"
            ) from error
        yield tuple(values)
