"""A table of runs: read, renamed, filtered, every row that is left out named with its reason."""

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import BadInput, first_line
from research.io import files, tables

Row = dict[str, Any]
LARGEST_CSV = 1 << 25  # bytes; it is read into Python's own objects
UNNAMED = "unnamed"  # a row that the table gives no name: what it is called depends on its place
NOT_DONE = ("failed", "diverged", "unfinished", "running", "held")  # what records say of a run
COUNTS = ("params", "flops", "tokens", "unique_tokens")  # how columns of numbers begin
_COMPARISON = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
_OPERATORS = {
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "<": np.less,
    ">": np.greater,
    "==": np.equal,
    "!=": np.not_equal,
}


def read_runs(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None, curves: bool = False
) -> list[Row]:
    """Rows of a sweep's workdir, a CSV or a parquet file; `columns` maps our names to theirs. Of a
    workdir, `curves` makes a row of every evaluation instead of every run.

    Raises BadInput when there is no such table.
    """
    path = Path(path)
    if path.is_dir():
        from research.runs.table import read_evaluations, read_table

        rows = read_evaluations(path) if curves else read_table(path)
    elif curves and path.exists():
        raise BadInput(f"--curves: {path} is not a workdir; its rows are taken as they are")
    elif not path.exists():
        raise BadInput(f"--runs={path}: no such file or folder")
    elif path.suffix.lower() == ".csv":
        rows = _read_csv(path)
    elif path.suffix.lower() == ".parquet":
        rows = tables.parquet(path, f"--runs={path}").to_pylist()
    else:
        raise BadInput(f"--runs={path}: expected the workdir of a sweep, a .csv or a .parquet file")
    if not rows:
        raise BadInput(f"--runs={path}: the table has no rows")
    for ours, theirs in (columns or {}).items():
        if theirs not in rows[0]:
            raise BadInput(
                f"--columns={ours}={theirs}: no column {theirs!r}; {_name_columns(rows)}"
            )
    renamed = (columns or {}).items()
    rows = [{**row, **{ours: row.get(theirs) for ours, theirs in renamed}} for row in rows]
    return [_fill_flops(row) for row in rows]


def _read_csv(path: Path) -> list[Row]:
    """The rows of a CSV with a header, separated by what its header has most of."""
    try:
        lines = files.read(path, LARGEST_CSV).decode("utf-8-sig").splitlines()
        cells = list(csv.reader(lines, delimiter=files.delimiter((lines or [""])[0])))
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise BadInput(f"--runs={path}: not a CSV in UTF-8: {first_line(error)}") from error
    header = [name.strip() for name in cells[0]] if cells else []
    if twice := [name for name in header if header.count(name) > 1]:
        raise BadInput(f"--runs={path}: more than one column is named {twice[0]!r}")
    rows = []
    for number, row in enumerate(cells[1:], 2):
        if not row:
            continue
        if len(row) != len(header):
            raise BadInput(
                f"--runs={path}: line {number} has {len(row)} cells, the header {len(header)}"
            )
        rows.append(dict(zip(header, (cell.strip() for cell in row), strict=True)))
    return rows


def _fill_flops(row: Row) -> Row:
    """With 6 · params · tokens where a row has no FLOPs of its own."""
    if row.get("flops") not in (None, ""):
        return row
    try:
        return {**row, "flops": 6.0 * float(row["params"]) * float(row["tokens"])}
    except (KeyError, TypeError, ValueError):
        return row  # what is wrong with a column is said when it is needed


def parse_number(value: object) -> float | None:
    """A finite number, whether as one or as text; None for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def usable_rows(
    rows: Sequence[Row], needed: Sequence[str]
) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows with positive finite numbers in every needed column, and the others with reasons.

    A run that is not done is left out. Rows come back in one order whatever theirs was, and with
    numbers (or None) in every other column that holds counts, too. Raises BadInput for a column
    that is missing, or holds text where a number is needed.
    """
    missing = [name for name in needed if not any(name in row for row in rows)]
    if missing:
        raise BadInput(*(f"no column {name!r}; {_name_columns(rows)}" for name in missing))
    usable, dropped, texts = [], [], []
    for place, row in enumerate(rows):
        unnamed = row.get("run") in (None, "")
        label = f"row {place + 1}" if unnamed else str(row["run"])
        reason = ""
        if row.get("status") in NOT_DONE:
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
            others = {k: parse_number(v) for k, v in row.items() if k.startswith(COUNTS)}
            usable.append({**row, **others, "run": label, UNNAMED: unnamed, **values})
    if texts:
        raise BadInput(*texts)
    usable.sort(
        key=lambda row: (*(row.get(name, 0.0) for name in needed), _tie_break(row), row["run"])
    )
    return usable, dropped


def _tie_break(row: Row) -> str:
    """What orders rows without names that are equal in what a law reads."""
    if not row[UNNAMED]:
        return ""
    return repr(sorted((k, str(v)) for k, v in row.items() if k != "run"))


def row_weight(row: Row) -> float:
    """The weight of a row, 1 where it has none. Raises BadInput for a negative one or none."""
    entry = row.get("weight")
    weight = 1.0 if entry in (None, "") else parse_number(entry)
    if weight is None or weight < 0:
        raise BadInput(f"{row['run']}: weight is {entry!r}, expected a number of at least 0")
    return weight


def match_where(rows: Sequence[Row], text: str, flag: str = "where") -> np.ndarray:
    """Which rows satisfy `text`: comparisons with numbers (or, by == and !=, with words), joined by
    commas or "and". A row without the value satisfies only !=.

    Parsed, never evaluated. Raises BadInput for anything else.
    """
    keep, prefix = np.ones(len(rows), bool), f"--{flag}={text}"
    for part in re.split(r",|\band\b", text):
        comparison = _COMPARISON.fullmatch(part)
        if not comparison:
            largest = "largest, or " if flag == "holdout" else ""
            raise BadInput(
                f"{prefix}: expected {largest}comparisons such as 'params<=1e5, tokens>1e6'"
            )
        name, operator, value = comparison.groups()
        if rows and not any(name in row for row in rows):
            raise BadInput(f"{prefix}: no column {name!r}; {_name_columns(rows)}")
        try:
            number = float(value)
            values = (row.get(name) for row in rows)
            numbers = np.array([math.nan if v in (None, "") else float(v) for v in values], float)
        except (TypeError, ValueError) as error:
            if operator not in ("==", "!="):
                raise BadInput(f"{prefix}: {name} cannot be compared with {value!r}") from error
            same = np.array([str(row.get(name)) == value.strip("'\"") for row in rows], bool)
            keep &= same if operator == "==" else ~same
            continue
        keep &= _OPERATORS[operator](numbers, number)
    return keep


def column_arrays(rows: Sequence[Row], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns as float64 arrays [n]."""
    return {name: np.array([row[name] for row in rows], float) for name in names}


def require_column(rows: Sequence[Row], flag: str, column: str) -> None:
    """Raises BadInput naming the flag if no row has the column."""
    if not any(row.get(column) not in (None, "") for row in rows):
        raise BadInput(f"--{flag}={column}: no column {column!r}; {_name_columns(rows)}")


def _name_columns(rows: Sequence[Row]) -> str:
    names = sorted({str(name) for row in rows for name in row} - {UNNAMED})
    return f"there are {', '.join(names)}"
