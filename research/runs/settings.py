"""The settings of a run as columns of its row: every key of its config, by its dotted name."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from research.config.schema import SECTIONS, flatten
from research.errors import Damaged
from research.runs.schema import NOT_IN_ID, PATH_KEYS, is_number

NONE = "none"  # as the command line writes it
# What other columns show in a better form, and what follows from size and length.
SHOWN_OTHERWISE = ("horizon", "optim.warmup", "optim.lr", "data.seed", "init", "eval", "data.vocab")
LONGEST = 24  # characters of a setting in a table
MOST_SETTINGS = 4  # of those that vary, in a table of a terminal


def settings_columns(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config below its sections ("optim.clip"), None as "none", lists as JSON; what
    has no section (name, seed, size) is a fact of the row itself. A key that a config may be
    without is "none" there. Raises Damaged for a number that no float holds."""
    out = {key: _cell(value) for key, value in flatten(config).items() if "." in key}
    for key, field in SECTIONS.items():
        if field.absent and key.partition(".")[0] in config:
            out.setdefault(key, NONE)
    for key, value in out.items():
        if isinstance(value, int) and not is_number(value):
            raise Damaged(f"{key:.50} is {value!r:.50}, expected a number that a float holds")
    return out


def _cell(value: object) -> object:
    if value is None:
        return NONE
    return value if isinstance(value, str | int | float) else json.dumps(value)


def is_part_of_a_run(key: str) -> bool:
    """Whether a dotted key decides what a run means, and not how it is computed or recorded, or
    where its data lie."""
    within = any(key == other or key.startswith(f"{other}.") for other in NOT_IN_ID)
    return not within and not is_path(key)


def is_path(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "data" and name in PATH_KEYS


def varying_settings(
    rows: Sequence[Mapping[str, Any]], beside: Sequence[str], most: int
) -> list[str]:
    """At most so many settings in which rows differ, names before switches and other words, these
    before numbers; without those that an earlier one or the columns `beside` tell already: they
    part the rows in the same way (a switch, as a column of words does), or grow or fall with the
    parameters."""
    rows = [row for row in rows if any("." in str(key) for key in row)]
    told = {name: _partition(rows, name) for name in beside}
    of_words = {told[n] for n in beside if not any(_is_amount(row.get(n)) for row in rows)}
    seen = {_partition(rows, ""), *of_words}
    out = []
    keys = dict.fromkeys(str(key) for row in rows for key in row if "." in str(key))
    numeric = {key: all(_is_amount(x) for row in rows if (x := row.get(key)) is not None)
               for key in keys}  # fmt: skip
    for name in sorted(keys, key=lambda key: (numeric[key], not key.endswith(".name"))):
        if not (is_part_of_a_run(name) or is_path(name)) or _is_within(name, SHOWN_OTHERWISE):
            continue
        parted = _partition(rows, name)
        if parted in seen:
            continue
        if numeric[name] and (parted in told.values() or follows_size(rows, name)):
            continue
        seen.add(parted)
        out.append(name)
    return out[:most]


def shown_setting(value: object) -> str:
    """A setting as a cell of a table; of what is long, its end."""
    text = "–" if value is None else str(value)
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def follows_size(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column of numbers grows, or falls, with the parameters alone."""
    pairs = {
        (row["params"], row[name])
        for row in rows
        if _is_amount(row.get("params")) and _is_amount(row.get(name))
    }
    if not pairs or len({params for params, _ in pairs}) < len(pairs):
        return False
    values = [value for _, value in sorted(pairs)]
    return values in (sorted(values), sorted(values, reverse=True))


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_within(name: str, sections: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in sections)


def _partition(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[int, ...]:
    """Which rows have the same value, as numbers."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(repr(row.get(name)), len(first)) for row in rows)
