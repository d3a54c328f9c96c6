"""A chart that W&B exported as CSV, as rows: its columns are `RUN - METRIC`, with the least and
the largest value of what a point stands for in `… - METRIC__MIN` and `…__MAX`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from research.tables.states import is_missing

_COLUMN = re.compile(r"(?P<run>.+?) - (?P<metric>.+?)(?P<end>__MIN|__MAX)?")


def is_chart(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the table is such a chart: all columns but the first are of runs, in threes."""
    names = list(rows[0]) if rows else []
    found = [_COLUMN.fullmatch(name) for name in names[1:]]
    ends = [x["end"] for x in found if x]
    return (
        bool(ends) and all(found) and ends.count("__MIN") == ends.count("__MAX") == ends.count(None)
    )


def rows_of_chart(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last point of every run: its name, the chart's own axis, and its metrics."""
    axis, *columns = rows[0]
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        for column in columns:
            found = _COLUMN.fullmatch(column)
            if found and not found["end"] and not is_missing(row.get(column)):
                of_run = out.setdefault(found["run"], {"run": found["run"]})
                of_run |= {axis: row[axis], found["metric"]: row[column]}
    return list(out.values())
