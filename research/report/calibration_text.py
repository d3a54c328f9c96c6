"""The calibration of the methods as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.io.text_table import format_table
from research.scaling.calibrate import Measured

HEADINGS = {
    "exponent": "exponent",
    "n_star_10x": "N* 10x",
    "n_star_100x": "N* 100x",
    "loss_10x": "loss 10x",
    "loss_100x": "loss 100x",
}


def calibration_table(document: Mapping[str, Any]) -> str:
    """Coverage and, in parentheses, the median width of the intervals, for worlds and methods, and
    what there is to say of the table whose shape they have."""
    rows = []
    for world, methods in document["worlds"].items():
        for method, cells in methods.items():
            # A method that never answers a question does not have that answer.
            asked = [c for c in cells.values() if c["coverage"] is not None] or [*cells.values()]
            counts = [max(cell[key] for cell in asked) for key in ("open", "failed")]
            tables = asked[0]["tables"]
            rows.append([world, method, tables, *(_cell(cells[k]) for k in HEADINGS), *counts])
    table = format_table(
        ["world", "method", "tables", *HEADINGS.values(), "open", "failed"],
        rows,
        right=[*HEADINGS.values()],
    )
    nominal, shape = document["nominal"], document["shape"]
    return (
        f"{shape['rows']} runs of {shape['sizes']} sizes, noise {shape['noise']:.2g}; "
        f"{document['tables']} tables of each world were asked for. Nominal {nominal:.2f}, its "
        f"standard error with so many {document['standard_error']:.2g}.\n"
        "Coverage, and in parentheses the median width (of the exponent; of the others relative to "
        "the truth).\n"
        f"open: tables with an interval that has an open end. failed: tables without an answer.\n\n"
        f"{table}"
    ) + "".join(f"\nwarning: {line}" for line in document["warnings"])


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["coverage"] is None:
        return "–"
    width = "open" if cell["width"] is None else f"{cell['width']:.2g}"
    return f"{cell['coverage']:.2f} ({width})"


def seconds(methods: Sequence[str], measured: Sequence[Measured]) -> str:
    """Where the time went: seconds for a table, by method."""
    parts = []
    for method in methods:
        spent = [one.seconds for one in measured if one.method == method]
        parts += [f"{method} {sum(spent) / len(spent):.2g}"] if spent else []
    return f"seconds for a table: {', '.join(parts)}"
