"""Rows of a table as text, CSV or JSON, by chosen columns, in a chosen order."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.errors import BadInput
from research.io.text_table import cell, format_table
from research.runs import scores
from research.runs.schema import shown_columns
from research.tables.columns import missing_columns

Row = Mapping[str, Any]


def select_columns(rows: Sequence[Row], chosen: str | None) -> list[str]:
    """The names of the columns to show. Raises BadInput for one that no row has."""
    there = list(dict.fromkeys(name for row in rows for name in row))
    if chosen is None:
        shown = [column.name for column in shown_columns(rows, "table")]
        return [*shown, *scores.shown(rows)] if shown else there
    if chosen == "all":
        return there
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    _check_columns("columns", names, there)
    return names


def sort_rows(rows: Sequence[Row], by: str) -> list[Row]:
    """The rows by a column, numbers before words; those without a value come last. Raises BadInput
    for a column that no row has."""
    name = by.removeprefix("-")
    _check_columns("sort", [name], list(dict.fromkeys(key for row in rows for key in row)))

    def rank(row: Row) -> tuple[bool, float, str]:
        try:
            return False, float(row[name]), ""
        except (TypeError, ValueError):
            return True, 0.0, str(row[name])

    valued = [row for row in rows if row.get(name) not in (None, "")]
    without = [row for row in rows if row.get(name) in (None, "")]
    return sorted(valued, key=rank, reverse=by.startswith("-")) + without


def best_run(rows: Sequence[Row], task: str) -> str | None:
    """The run of a task with the lowest loss, of those that are done, else the first; None if there
    is none."""
    rows = [row for row in rows if row.get("task") == task]
    done = [row for row in rows if row["status"] == "done"] or rows[:1]
    return min(done, key=lambda row: row.get("loss", 0.0))["run"] if done else None


def _check_columns(flag: str, names: Sequence[str], there: Sequence[str]) -> None:
    if not there:
        return  # no rows: nothing to show, and nothing to say of columns
    missing = [name for name in names if name not in there]
    if missing:
        known = [dict.fromkeys(there)]
        raise BadInput(*(f"--{flag}: {words}" for words in missing_columns(missing, known)))


def as_text(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Aligned columns, numbers to the right, and how many rows there are."""
    cells = [[_cell_value(row.get(name)) for name in names] for row in rows]
    return f"{format_table(names, cells)}\n{len(rows)} run{'s' * (len(rows) != 1)}"


def as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, names))
    writer.writerows([[cell(_cell_value(row.get(name))) for name in names] for row in rows])
    return text.getvalue().rstrip("\n")


def as_json(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A list of objects; a value that a run does not have is left out."""
    return json.dumps(
        [{name: row[name] for name in names if name in row} for row in rows], indent=1
    )


FORMATS: dict[str, Callable[[Sequence[Row], Sequence[str]], str]] = {
    "text": as_text,
    "csv": as_csv,
    "json": as_json,
}


def _cell_value(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value
