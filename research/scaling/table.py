"""A table of runs: read, renamed, filtered, every row that is left out named with its reason."""

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import BadInput

Row = dict[str, Any]
_COMPARISON = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
_OPERATORS = {
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "<": np.less,
    ">": np.greater,
    "==": np.equal,
    "!=": np.not_equal,
}


def read(path: str | os.PathLike[str], columns: Mapping[str, str] | None = None) -> list[Row]:
    """Rows of a sweep's workdir, a CSV or a parquet file; `columns` maps our names to theirs.

    Raises BadInput when there is no such table.
    """
    path = Path(path)
    if path.is_dir():
        from research import records

        rows = records.table(path)
    elif path.suffix == ".csv" and path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
    elif path.suffix == ".parquet" and path.is_file():
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    else:
        raise BadInput(f"--runs={path}: expected the workdir of a sweep, a .csv or a .parquet file")
    if not rows:
        raise BadInput(f"--runs={path}: the table has no rows")
    for ours, theirs in (columns or {}).items():
        if theirs not in rows[0]:
            raise BadInput(f"--columns={ours}={theirs}: no column {theirs!r}; {_there(rows)}")
        rows = [{**row, ours: row.get(theirs)} for row in rows]
    return rows


def usable(rows: Sequence[Row], needed: Sequence[str]) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows with positive finite numbers in every needed column, and the others with reasons.

    A run that is not done is left out. Rows come back in one order whatever theirs was. Raises
    BadInput for a column that is missing, or holds text where a number is needed.
    """
    missing = [name for name in needed if not any(name in row for row in rows)]
    if missing:
        raise BadInput(*(f"no column {name!r}; {_there(rows)}" for name in missing))
    kept, dropped, texts = [], [], []
    for number, row in enumerate(rows):
        label = str(row.get("run") or f"row {number + 1}")
        reason = ""
        if row.get("status", "done") != "done":
            reason = str(row["status"])
        values = {}
        for name in needed if not reason else ():
            try:
                values[name] = float(row[name])
            except (KeyError, TypeError):
                reason = f"no {name}"
            except ValueError:
                if row[name] == "":
                    reason = f"no {name}"
                else:
                    texts.append(f"{label}: {name} is {str(row[name])!r}, expected a number")
                continue
            if not reason and not (math.isfinite(values[name]) and values[name] > 0):
                reason = f"{name} is {values[name]}"
        if reason:
            dropped.append({"run": label, "reason": reason})
        else:
            kept.append({**row, "run": label, **values})
    if texts:
        raise BadInput(*texts)
    kept.sort(key=lambda row: (*(row.get(name, 0.0) for name in needed), row["run"]))
    return kept, dropped


def where(rows: Sequence[Row], text: str) -> np.ndarray:
    """Which rows satisfy `text`: comparisons with numbers, joined by commas or "and".

    Parsed, never evaluated. Raises BadInput for anything else.
    """
    keep = np.ones(len(rows), bool)
    for part in re.split(r",|\band\b", text):
        found = _COMPARISON.fullmatch(part)
        if not found:
            raise BadInput(f"{text!r}: expected comparisons such as 'params<=1e5, tokens>1e6'")
        name, operator, value = found.groups()
        try:
            number = float(value)
            numbers = np.array([float(row[name]) for row in rows])
        except KeyError as error:
            raise BadInput(f"{text!r}: no column {name!r}; {_there(rows)}") from error
        except (TypeError, ValueError) as error:
            raise BadInput(f"{text!r}: {name} cannot be compared with {value!r}") from error
        keep &= _OPERATORS[operator](numbers, number)
    return keep


def columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns as float64 arrays [n]."""
    return {name: np.array([row[name] for row in rows], float) for name in names}


def _there(rows: Sequence[Row]) -> str:
    names = sorted({name for row in rows for name in row})
    return f"there are {', '.join(map(str, names))}"
