"""Rows of named columns, shown as a table by notebooks."""

import contextlib
import difflib
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from research.errors import BadInput
from research.io.humanize import flops_text, quantity

Row = dict[str, Any]
SHOWN = 30  # rows that a notebook shows
USUAL = ("run", "group", "status", "params", "tokens", "flops", "steps", "lr", "seed", "loss")


class Table(Sequence[Row]):
    """A sequence of rows; `columns` are their names, `notes` what there is to say of the table.
    `shown` are the columns that a notebook displays."""

    def __init__(
        self,
        rows: Sequence[Row],
        notes: Sequence[str] = (),
        shown: Sequence[str] = (),
        workdir: Path | None = None,
    ):
        self.rows, self.notes, self.workdir = rows, list(notes), workdir
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        there = {name for name in self.columns if any(row.get(name) is not None for row in rows)}
        self._shown = [name for name in shown or USUAL if name in there] or self.columns[:8]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Table": ...
    @overload
    def __getitem__(self, index: str) -> list[Any]: ...
    def __getitem__(self, index: int | slice | str) -> "Row | Table | list[Any]":
        """A row by its number, a table of a range, or the values of a column by its name (None
        where a row has none)."""
        if isinstance(index, slice):
            return self._with(list(self.rows)[index])
        if isinstance(index, int):
            return self.rows[index]
        if index not in self.columns:
            close = difflib.get_close_matches(index, self.columns, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "its .columns are the names"
            raise KeyError(f"no column {index!r}; {hint}")
        return [row.get(index) for row in self.rows]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def _with(self, rows: Sequence[Row]) -> "Table":
        return Table(rows, self.notes, self._shown, self.workdir)

    def where(self, condition: str) -> "Table":
        """The rows of which a condition holds: "params<=1e9, optimizer in (adamw, muon)". Raises
        BadInput for one that cannot be read."""
        from research.tables import where

        if not isinstance(condition, str):
            raise BadInput(f"where: {condition!r}; expected a condition as text: 'params>1e7'")
        keep = where.match_where(list(self.rows), condition)
        return self._with([row for row, kept in zip(self.rows, keep, strict=True) if kept])

    def curves(self) -> "Table":
        """A row for every evaluation of the runs of a workdir. Raises BadInput for other tables."""
        if self.workdir is None:
            raise BadInput("curves: this table is of no workdir; load it with curves=True")
        return load(self.workdir, None, True, False)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame."""
        import pandas

        return pandas.DataFrame.from_records([dict(row) for row in self.rows], columns=self.columns)

    def __repr__(self) -> str:
        from research.io.text_table import format_table

        rows = [[_cell(name, row.get(name)) for name in self._shown] for row in self.rows[:SHOWN]]
        return "\n".join([format_table(self._shown, rows), *self._more()])

    def _more(self) -> list[str]:
        more = [f"… {len(self)} rows in all"] if len(self) > SHOWN else []
        return [*more, *self.notes]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self._shown)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(_cell(name, row.get(name)))}</td>" for name in self._shown)
            + "</tr>"
            for row in self.rows[:SHOWN]
        )
        more = "".join(f"<p>{html.escape(note)}</p>" for note in self._more())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        ends = [_cell(name, x) if x is not None else "open" for x in value]
        return " to ".join(ends) if "interval" in name else ", ".join(ends)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if "flops" in name:  # where B and T would be read as parameters and tokens
        return flops_text(value)
    return quantity(value) if abs(value) >= 1e4 else f"{value:.5g}"


def load(
    runs: str | os.PathLike[str],
    columns: Mapping[str, str] | None,
    curves: bool,
    all_runs: bool,
) -> Table:
    """See `isoflop.load`."""
    from research.tables import table

    if not isinstance(runs, str | os.PathLike):
        raise BadInput(f"runs: {type(runs).__name__} is no path; rows are for isoflop.fit")
    read = table.read_runs(runs, columns, curves, None, all_runs)
    rows, place = table.with_rows(read, _with_numbers(read)), Path(runs)
    return Table(rows, table.notes_of(rows), workdir=place if place.is_dir() else None)


def _with_numbers(rows: Sequence[Row]) -> list[Row]:
    """The rows of a file of text, with numbers in the columns that hold nothing else as Python
    writes it. Words such as 20M stay what they are, and a fit reads them; so do names of runs."""
    seen, texts = dict.fromkeys(name for row in rows for name in row if name != "run"), {}
    for name in seen:
        cells = [x for row in rows if (x := row.get(name)) not in (None, "")]
        if cells and all(isinstance(x, str) for x in cells):
            found = {x: _number(x) for x in cells}
            if None not in found.values():
                texts[name] = found
    if not texts:
        return list(rows)
    return [{k: texts[k].get(v) if k in texts else v for k, v in row.items()} for row in rows]


def _number(text: str) -> int | float | None:
    if text.strip().lstrip("+-")[:2].isdigit() and text.strip().lstrip("+-").startswith("0"):
        return None  # a code, of which a number would lose the zeros
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None


def rows_of(runs: Any) -> Sequence[dict[str, Any]]:
    """Rows for a fit, of whatever `isoflop.fit` takes. Raises BadInput for anything else."""
    if isinstance(runs, Table):
        # What `load` read keeps its notes and its rows' places, of which messages speak.
        return runs.rows if hasattr(runs.rows, "notes") else [dict(row) for row in runs]
    if isinstance(runs, str | os.PathLike):
        return rows_of(load(runs, None, False, False))
    if hasattr(runs, "to_dict"):  # a data frame, whose missing values are NaN
        return [
            {k: v for k, v in row.items() if v is not None and v == v}
            for row in runs.to_dict("records")
        ]
    if isinstance(runs, Sequence) and all(isinstance(row, Mapping) for row in runs):
        return [dict(row) for row in runs]
    raise BadInput(
        f"runs: {type(runs).__name__} is no table; expected what isoflop.load gives, rows as "
        "mappings, a pandas data frame, or a path"
    )
