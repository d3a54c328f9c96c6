"""A table of runs: read, renamed, filtered, every row that is left out named with its reason."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from research.errors import BadInput
from research.tables import charts, file_formats, states
from research.tables.cells import check_columns, check_commas, wrong_cell
from research.tables.columns import UNNAMED, Row, is_count, missing_columns, rename
from research.tables.numbers import (
    has_decimal_comma,
    may_be_decimal_comma,
    parse_any_number,
    parse_number,
    with_point,
)
from research.tables.where import match_where

PER_TOKEN = 6.0  # FLOPs of a parameter and a token, where a table has none
ALIKE = 1.1  # factor to which FLOPs of one convention agree
CHART = (
    "; the file is a chart exported from W&B, which holds its metrics alone: export the table of "
    "runs instead (in the project: Runs, then the download button), with its config and summary"
)
SCALARS = (
    "; the file is a scalar of one run, exported from TensorBoard: a table has a row for each run, "
    "with its params, tokens and last loss"
)


class Table(list[Row]):
    """Rows, where each stands in its file, what there is to say of the file, what a message about a
    missing column should add, and the file's names of columns that were renamed."""

    def __init__(
        self,
        rows: Iterable[Row],
        places: Sequence[str] = (),
        notes: Sequence[str] = (),
        advice: str = "",
        names: Mapping[str, str] | None = None,
    ):
        super().__init__(rows)
        self.places, self.notes, self.advice = list(places), list(notes), advice
        self.names = dict(names or {})


def with_rows(table: Sequence[Row], rows: Iterable[Row]) -> Table:
    """Other rows of the same file, one for each."""
    names, advice = getattr(table, "names", {}), getattr(table, "advice", "")
    return Table(rows, places_of(table), notes_of(table), advice, names)


def places_of(table: Sequence[Row]) -> list[str]:
    """Where each row stands: "line 4" of its file, else "row 3"."""
    places = getattr(table, "places", [])
    if len(places) == len(table):
        return list(places)
    return [f"row {i + 1}" for i in range(len(table))]


def notes_of(table: Sequence[Row]) -> list[str]:
    return list(getattr(table, "notes", []))


def read_runs(
    path: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    curves: bool = False,
    decimal_comma: bool | None = None,
    all_runs: bool = False,
) -> Table:
    """Rows of a sweep's workdir, of a file (CSV, JSON, parquet, see `tables.file_formats`), or of
    wandb:FOLDER and mlflow:STORE. `columns` maps our names to theirs, or to products of theirs. Of
    a workdir, `curves` makes a row of every evaluation instead of every run. `decimal_comma` says
    what a comma in a number is (None: it groups thousands, and where it may be either, that is
    refused). Runs of a workdir that are no points of the sweep as it was launched last are left out
    unless `all_runs`.

    Raises BadInput when there is no such table.
    """
    found = _read(path, curves, all_runs)
    if not found:
        meant = ""
        if Path(path).is_dir():
            from research.runs.table import nearby_workdir

            meant = nearby_workdir(path)
        told = (f"the table has no rows{meant}", *found.notes)
        raise BadInput(*(f"--runs={path}: {line}" for line in told))
    if decimal_comma is not None:
        found = with_rows(found, _without_commas(found, decimal_comma, str(path)))
    if charts.is_chart(found):
        found = Table(charts.rows_of_chart(found), (), found.notes, CHART)
    if {*found[0]} == {"Wall time", "Step", "Value"}:
        found.advice = SCALARS
    found.names = dict(columns or {})
    states_of = next((name for name in found[0] if states.names_states(name)), None)
    if (
        states_of
        and "status" not in (*found.names, *found[0])
        and any(states.is_state(row.get(states_of)) for row in found)
    ):
        found.names["status"] = states_of
        found.notes.append(f"{states_of!r} is taken for the state of a run (--columns=status=…)")
    if re.fullmatch(r"[^()]*(?:ppl|perplex)[^()]*", found.names.get("loss", ""), re.IGNORECASE):
        found.notes.append(
            f"the loss is {found.names['loss']!r}: the laws are of the loss in nats or bits, the "
            f"logarithm of a perplexity (--columns='loss=ln({found.names['loss']})')"
        )
    renamed, notes = rename(found, found.names, places_of(found))
    found.notes.extend(notes)
    if not Path(path).is_dir() and "status" not in (columns or {}):
        found.notes.extend(_mark_failed(renamed))
    if curves and not (Path(path).is_dir() or has_curves(renamed)):
        raise BadInput(f"--curves: {path} is not a workdir, and no run in it has several rows")
    return with_rows(found, fill_flops(renamed))


def _mark_failed(rows: Sequence[Row]) -> list[str]:
    """Sets the state of rows that another column than that of states says failed, and says so."""
    out = []
    for name in dict.fromkeys(name for row in rows for name in row):
        bad = [row for row in rows if states.ended_badly(name, row.get(name))]
        bad = [row for row in bad if not states.reason_to_leave_out(row.get("status"))]
        for row in bad:
            row["status"] = "failed"
        if bad:
            out.append(
                f"{name!r} says of {len(bad)} rows that the run failed or goes on: they are left "
                "out (--columns=status=… names another column)"
            )
    return out


def _read(path: str | os.PathLike[str], curves: bool, all_runs: bool) -> Table:
    source, _, place = str(path).partition(":")
    if source in ("wandb", "mlflow") and not Path(path).exists():
        from research.tables import tracker_runs

        return Table(tracker_runs.SOURCES[source](place, f"--runs={path}"))
    path = Path(path)
    if path.is_dir():
        from research.runs import table as runs

        if not (path / "runs").is_dir() and (others := file_formats.files_of_runs(path)):
            where = runs.nearby_workdir(path)
            raise BadInput(f"--runs={path}: no directory {path / 'runs'}{where}", *others)
        rows = runs.read_evaluations(path) if curves else runs.read_table(path)
        own, others = (rows, []) if all_runs else runs.split_by_sweep(path, rows)
        return Table(own, notes=[runs.others_note(others)] if others else [])
    if not path.exists():
        raise BadInput(f"--runs={path}: no such file or folder")
    return Table(*file_formats.read_table_file(path, f"--runs={path}"))


def _without_commas(rows: Table, decimal: bool, path: str) -> list[Row]:
    """Text cells whose numbers have a decimal point and nothing between thousands."""
    if decimal and not any(
        has_decimal_comma(cell) or may_be_decimal_comma(cell)
        for row in rows
        for cell in row.values()
    ):
        raise BadInput(f"--decimal_comma: no number of {path} has a comma")
    read = with_point if decimal else _without_groups
    return [{k: read(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]


def _without_groups(text: str) -> str:
    return text.replace(",", "") if may_be_decimal_comma(text) else text


def fill_flops(rows: Sequence[Row]) -> list[Row]:
    """With 6 · params · tokens where a row has no FLOPs of its own, unless those of other rows are
    counted in another way."""
    ratios = [ratio for row in rows if (ratio := flops_ratio(row)) is not None]
    if any(not 1 / ALIKE < ratio < ALIKE for ratio in ratios):
        return list(rows)
    return [_filled(row) for row in rows]


def flops_ratio(row: Row) -> float | None:
    """A row's own FLOPs over 6 · params · tokens."""
    numbers = [parse_number(row.get(name)) for name in ("flops", "params", "tokens")]
    if any(x is None or x <= 0 for x in numbers):
        return None
    flops, params, tokens = (x or 1.0 for x in numbers)
    return flops / params / tokens / PER_TOKEN


def _filled(row: Row) -> Row:
    if not states.is_missing(row.get("flops")):
        return row
    params, tokens = parse_number(row.get("params")), parse_number(row.get("tokens"))
    if params is None or tokens is None:
        return row  # what is wrong with a column is said when it is needed
    return {**row, "flops": PER_TOKEN * params * tokens}


def has_curves(rows: Sequence[Row]) -> bool:
    """Whether a run has several rows."""
    names = Counter(str(row["run"]) for row in rows if not states.is_missing(row.get("run")))
    return any(count > 1 for count in names.values())


def usable_rows(
    rows: Sequence[Row],
    needed: Sequence[str],
    where: str | None = None,
    finished: Sequence[str] = (),
) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows with positive finite numbers in every needed column, and the others with reasons.

    A run that is not done is left out (`finished`: further words for one that is), and a row that
    repeats another cell by cell. Rows come back in one order whatever theirs was, and with numbers
    (or None) in every other column that holds counts, too. Raises BadInput for a column that is
    missing, or holds text where a number is needed in a row that meets `where`.
    """
    check_columns(rows, needed, getattr(rows, "advice", ""))
    usable, dropped, places = [], [], places_of(rows)
    texts: dict[str, list[int]] = {}  # of columns, the rows whose cell is no number
    first: dict[tuple, str] = {}
    for i, row in enumerate(rows):
        unnamed = states.is_missing(row.get("run"))
        label = places[i] if unnamed else str(row["run"])
        reason = states.reason_to_leave_out(row.get("status"), tuple(finished))
        same = tuple(sorted((str(k), str(v)) for k, v in row.items()))
        if not reason and same in first:
            reason = f"equal to {first[same]} in every column"
        first.setdefault(same, places[i])
        values = {}
        for name in needed if not reason else ():
            cell = row.get(name)
            number = parse_any_number(cell)
            if states.is_missing(cell):
                reason = f"no {name}" + (f" ({cell!r})" if cell else "")
            elif number is not None:
                values[name] = number
                if not reason and not (math.isfinite(number) and number > 0):
                    reason = f"{name} is {number}"
            elif states.is_no_number(cell):
                reason = f"{name} is {cell!r}"
            else:
                texts.setdefault(name, []).append(i)
        if reason:
            dropped.append({"run": label, "reason": reason})
        elif not any(i in at for at in texts.values()):
            others = {k: parse_number(v) for k, v in row.items() if is_count(str(k))}
            usable.append({**row, **others, "run": label, UNNAMED: unnamed, **values})
    if texts:
        _check_texts(rows, dropped, texts, where)
    check_commas(rows, places, needed)
    usable.sort(
        key=lambda row: (*(row.get(name, 0.0) for name in needed), _tie_break(row), row["run"])
    )
    return usable, dropped


def _check_texts(
    rows: Sequence[Row],
    dropped: list[dict[str, str]],
    texts: Mapping[str, list[int]],
    where: str | None,
) -> None:
    """Leaves out the rows of `texts` that do not meet `where`. Raises BadInput for the others."""
    places, names = places_of(rows), getattr(rows, "names", {})
    kept = dict(enumerate(match_where(rows, where) if where else np.ones(len(rows), bool)))
    problems = []
    for name, at in texts.items():
        if wrong := [i for i in at if kept[i]]:
            row, cells = rows[wrong[0]], [str(rows[i][name]) for i in wrong]
            unnamed = states.is_missing(row.get("run"))
            place = places[wrong[0]] + ("" if unnamed else f" ({row['run']})")
            problems.append(wrong_cell(rows, place, name, cells, names.get(name)))
    if problems:
        raise BadInput(*problems)
    for i in sorted({i for at in texts.values() for i in at}):
        dropped.append({"run": str(rows[i].get("run") or places[i]), "reason": f"not {where}"})


def _tie_break(row: Row) -> str:
    """What orders rows without names that are equal in what a law reads."""
    if not row[UNNAMED]:
        return ""
    return repr(sorted((k, str(v)) for k, v in row.items() if k != "run"))


def row_weight(row: Row) -> float:
    """The weight of a row, 1 where it has none. Raises BadInput for a negative one or none."""
    entry = row.get("weight")
    weight = 1.0 if states.is_missing(entry) else parse_number(entry)
    if weight is None or weight < 0:
        raise BadInput(f"{row['run']}: weight is {entry!r}, expected a number of at least 0")
    return weight


def column_arrays(rows: Sequence[Row], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns as float64 arrays [n]."""
    return {name: np.array([row[name] for row in rows], float) for name in names}


def require_column(rows: Sequence[Row], flag: str, column: str) -> None:
    """Raises BadInput naming the flag if no row has the column."""
    if not any(row.get(column) not in (None, "") for row in rows):
        raise BadInput(f"--{flag}={column}: {missing_columns([column], rows)[0]}")
