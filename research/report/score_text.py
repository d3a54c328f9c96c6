"""Scores of runs on tasks, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.io.text_table import format_table

Row = Mapping[str, Any]


def score_table(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """A line for every run: its size, its loss and its scores, with one standard error."""
    headings = ["run", "parameters", "loss", *(_heading(rows, task) for task in tasks)]
    cells = [
        [row["run"], row.get("params"), row.get("loss"), *(_cell(row, task) for task in tasks)]
        for row in rows
    ]
    note = "accuracy ± standard error, then bits per byte of the right answer"
    return f"\n{format_table(headings, cells, right=headings[3:])}\n{note}"


def _heading(rows: Sequence[Row], task: str) -> str:
    chances = {row.get(f"score_chance/{task}") for row in rows} - {None}
    return f"{task} (chance {chances.pop():.3g})" if len(chances) == 1 else task


def _cell(row: Row, task: str) -> str:
    accuracy, error, bits = (
        row.get(f"{name}/{task}") for name in ("score", "score_error", "score_bits")
    )
    parts = [] if accuracy is None else [f"{accuracy:.3f}"]
    parts += [] if error is None else [f"± {error:.3f}"]
    parts += [] if bits is None else [f"{bits:.3f}"]
    return "  ".join(parts) or "–"
