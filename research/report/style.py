"""The style that all figures share."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.cm
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from research.errors import printable
from research.io import files
from research.io.humanize import quantity

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
SERIES = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "isoflop",  # the same figure is the same file
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Drawing:
    """What matplotlib drew: the only markup that the page embeds as it is. Nothing that was read
    from a file becomes one."""

    png: bytes
    svg: bytes

    def save(self, stem: Path) -> tuple[Path, Path]:
        """Write `stem`.png and `stem`.svg; returns both paths."""
        files.make_directory(stem.parent)
        png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
        files.write_atomic(png, self.png)
        files.write_atomic(svg, self.svg)
        return png, svg


def render_figure(figure: Figure) -> Drawing:
    """The figure as PNG and SVG; the same figure gives the same bytes."""

    def rendered(kind: str, **options: Any) -> bytes:
        raw = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(raw, format=kind, bbox_inches="tight", **options)
        return raw.getvalue()

    return Drawing(rendered("png", dpi=160), rendered("svg", metadata={"Date": None}))


def plain_label(words: object, most: int = 40) -> str:
    """Words from elsewhere as a label: no mathematics, no control characters, and not long."""
    label = printable(words)
    return (label if len(label) <= most else f"{label[: most - 1]}…").replace("$", r"\$")


def log_loss_axis(axes: Any, losses: np.ndarray) -> None:
    """A logarithmic axis where the loss spans more than a factor of four."""
    if len(losses) and losses.min() > 0 and losses.max() > 4 * losses.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def held_out_runs(document: Mapping[str, Any] | None) -> set[str]:
    """The runs that the fit predicted and did not see."""
    holdout = document["holdout"] if document else None
    return {row["run"] for row in holdout["rows"]} if holdout else set()


def plain_ticks(axis: Any) -> None:
    """1.5, 2, 3 on a logarithmic axis of losses."""
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(axis: Any, steps: Sequence[int] = (1, 2, 5)) -> None:
    """1k, 10k, 1M rather than powers of ten; steps between them where the range is short."""
    low, high = axis.get_view_interval()
    short = high / max(low, 1e-300) < 300
    axis.set_major_locator(LogLocator(subs=steps if short else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda v, _: quantity(v)))
    axis.set_minor_formatter(NullFormatter())
