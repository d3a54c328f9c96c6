"""Conditions on rows: `params<=1e9, D/N>5 and "val loss"!=3, optimizer in (adamw, muon)`."""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.errors import BadInput
from research.tables.columns import missing_columns
from research.tables.numbers import parse_any_number

_QUOTED = r"`[^`]*`|\"[^\"]*\"|'[^']*'"
_CONDITION = re.compile(
    rf"\s*(?P<name>{_QUOTED}|[^<>=!`\"']+?)\s*"
    r"(?P<operator><=|>=|==|!=|<|>|=|(?<=[\s`\"'])not\s+in(?=[\s(])|(?<=[\s`\"'])in(?=[\s(]))\s*"
    rf"(?P<value>\((?:{_QUOTED}|[^()`\"'])*\)|{_QUOTED}|(?:(?!\band\b|&)[^,`\"'<>=!])+?)"
    r"\s*(?:,|\band\b|&&?|$)",
)
_DIGEST, SHORTEST = re.compile("[0-9a-f]{32,}"), 8  # which may be named by its first digits
_ITEM = re.compile(rf"\s*({_QUOTED}|[^,`\"']+?)\s*(?:,|$)")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


class Condition(NamedTuple):
    name: str
    operator: str
    values: list[str]  # one, but for "in" and "not in"


def match_where(rows: Sequence[Mapping[str, Any]], text: str, flag: str = "where") -> np.ndarray:
    """Which rows satisfy `text`: comparisons of a column with a number (or, by ==, != and in, with
    words), joined by commas or "and". A name with odd characters may be quoted. A row without the
    value satisfies only != and "not in".

    Parsed, never evaluated. Raises BadInput for anything else.
    """
    keep, prefix = np.ones(len(rows), bool), f"--{flag}={text}"
    for condition in _conditions(text, flag):
        if rows and not any(condition.name in row for row in rows):
            raise BadInput(f"{prefix}: {missing_columns([condition.name], rows)[0]}")
        keep &= _satisfied(rows, condition, prefix)
    return keep


def columns_of(text: str, flag: str = "where") -> list[str]:
    """The columns that the comparisons name."""
    return [condition.name for condition in _conditions(text, flag)]


def _conditions(text: str, flag: str) -> Iterator[Condition]:
    at = 0
    while at < len(text) or not text:
        found = _CONDITION.match(text, at)
        if not found or found["operator"] == "=":
            largest = "largest, or " if flag == "holdout" else ""
            hint = " (== compares)" if found else ""
            raise BadInput(
                f"--{flag}={text}: expected {largest}comparisons such as 'params<=1e5, tokens>1e6, "
                f'"val loss"<3, optimizer in (adamw, muon)\'{hint}'
            )
        name, value = _unquoted(found["name"]), found["value"]
        by = " ".join(found["operator"].split())
        if by in ("in", "not in"):
            inside = value[1:-1] if value.startswith("(") else value
            values = [_unquoted(item[1]) for item in _ITEM.finditer(inside) if item[1]]
        else:
            values = [_unquoted(value)]
        yield Condition(name, by, values)
        at = found.end()


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "`\"'" else text


def _satisfied(rows: Sequence[Mapping[str, Any]], condition: Condition, prefix: str) -> np.ndarray:
    name, by, wanted = condition
    cells = [row.get(name) for row in rows]
    targets = [parse_any_number(value) for value in wanted]
    words = any(x is None for x in targets) or any(
        isinstance(cell, str | bool) and cell != "" and parse_any_number(cell) is None
        for cell in cells
    )
    if words or by in ("in", "not in"):
        if by not in ("==", "!=", "in", "not in"):
            if any(x is None for x in targets):
                raise BadInput(f"{prefix}: {name} cannot be compared with {wanted[0]!r}")
            # A few words among numbers: such a cell is no number that could be above or below.
            if not any(parse_any_number(cell) is not None for cell in cells):
                raise BadInput(f"{prefix}: {name} cannot be compared with {wanted[0]!r}")
        else:
            there = np.array([_among(cell, wanted, targets) for cell in cells], bool)
            return there if by in ("==", "in") else ~there
    numbers = np.array([math.nan if (x := parse_any_number(c)) is None else x for c in cells])
    return _COMPARE[by](numbers, targets[0])


def _among(cell: object, words: Sequence[str], numbers: Sequence[float | None]) -> bool:
    text = str(cell).strip()
    if text in words or (isinstance(cell, bool) and text.lower() in map(str.lower, words)):
        return True
    if _DIGEST.fullmatch(text) and any(len(w) >= SHORTEST and text.startswith(w) for w in words):
        return True
    return (number := parse_any_number(cell)) is not None and number in numbers
