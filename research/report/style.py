"""The style that all figures share: colors, type, widths of lines, axes.

A figure is drawn in a Look: that of the page, unless `looking` chooses another. A look scales one
visual language and changes none of its words, marks or colors.
"""

import contextlib
import contextvars
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from research.errors import BadInput, printable
from research.io import files
from research.io.humanize import quantity

# Of Okabe and Ito, whom the color-blind can tell apart.
BLUE, ORANGE, GREEN, GRAY, PINK = "#0072B2", "#D55E00", "#009E73", "#666666", "#CC79A7"
SERIES = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
# Of sizes and budgets, from small to large; its yellow end would vanish on white.
SIZES = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.83, 256)), "sizes")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.hashsalt": "isoflop",  # the same figure is the same file
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType, which publishers ask for, rather than Type 3
    "ps.fonttype": 42,
}
# What files of a kind are written with: without dates, so that the same figure is the same file.
KINDS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 160},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
PRINTED = 300  # dots per inch of a PNG for a column or a slide
SHORT = 2.5  # decades of an axis, up to which there are labels between them
# Of a label of FLOPs and of an amount the width, and of all the height, with the room about them,
# over the size of their type.
LABEL, AMOUNT, LINE = 5.5, 3.4, 1.6
# Steps within a decade, with the decimal logarithm of the smallest of them.
STEPS = {(1.0, 2.0, 5.0): math.log10(2), (1.0, 3.0): math.log10(3)}
MATHEMATICS = re.compile(r"\\\w+|[${}^_*]")  # of a label, what takes no room
MOST = 7  # ticks of an axis that is shorter than a decade
TALLEST = 2.0  # times the height of a design, up to which a figure grows for its labels
LOWEST = 0.62  # height of a panel over its width, where panels are below each other
NARROW = 18.0  # panels of fewer widths of the type are put below each other


@dataclass(frozen=True)
class Look:
    """How large the type is, in points, by which factor lines and marks are of the page's, and how
    wide the figure is in inches (None: as wide as it was designed)."""

    size: float = 10.0
    marks: float = 1.0
    width: float | None = None


LOOKS = {"page": Look(), "paper": Look(7.5, 0.75, 3.3), "talk": Look(13.0, 1.4, 10.0)}
_LOOK: contextvars.ContextVar[Look] = contextvars.ContextVar("look", default=LOOKS["page"])


def check_look(name: str) -> None:
    """Raises BadInput for what is no look."""
    if name not in LOOKS:
        raise BadInput(f"style: {name!r}; expected one of {', '.join(LOOKS)}")


@contextlib.contextmanager
def looking(name: str, width: float | None = None) -> Iterator[None]:
    """Figures that are begun inside are drawn in a look of LOOKS, `width` inches wide. Raises
    BadInput for another name, and for widths that no page has."""
    check_look(name)
    if width is not None and not (isinstance(width, int | float) and 1 <= width <= 40):
        raise BadInput(f"width: {width!r}; expected a number of inches, 1 to 40")
    look = LOOKS[name]
    token = _LOOK.set(replace(look, width=width or look.width))
    try:
        yield
    finally:
        _LOOK.reset(token)


class StyledFigure(Figure):
    """A figure that is saved in the style that it was drawn in, also by those who changed it. Once
    it is `laid_out`, saving lays it out no more, which takes longer than to draw it."""

    laid_out = False

    def get_layout_engine(self) -> Any:
        return None if self.laid_out else super().get_layout_engine()

    def savefig(self, *args: Any, **options: Any) -> None:
        with matplotlib.rc_context(STYLE):
            super().savefig(*args, **options)


@dataclass
class Sheet:
    """A figure that is being drawn. `panels` are its axes; where they were stacked, `stacked`."""

    figure: Figure
    look: Look
    stacked: bool = False
    panels: list[Any] = field(default_factory=list)


@contextlib.contextmanager
def sheet(
    width: float, height: float, columns: int = 1, grid: bool = True, **shared: Any
) -> Iterator[Sheet]:
    """A figure of `columns` panels, `width` x `height` inches as designed for the page. In another
    look it is as wide as that says, of the same proportions; panels for which that is too narrow
    are below each other. `shared` goes to Figure.subplots."""
    look = _LOOK.get()
    wide = look.width or width
    # A design gives `width` inches to type of the page's size.
    stacked = columns > 1 and wide / columns * 72 / look.size < NARROW
    across = 1 if stacked else columns
    high = wide * height / width
    if stacked:
        high = wide * columns * min(height / (width / columns), LOWEST)
        shared = {k: v for k, v in shared.items() if k != "width_ratios"}
    with matplotlib.rc_context({**STYLE, "font.size": look.size, "axes.grid": grid}):
        figure = StyledFigure(figsize=(wide, high), layout="constrained")
        axes = np.atleast_1d(figure.subplots(columns // across, across, **shared)).ravel()
        out = Sheet(figure, look, stacked, [*axes])
        yield out
        if stacked and shared.get("sharey"):
            for other in out.panels[1:]:
                other.set_ylabel(other.get_ylabel() or out.panels[0].get_ylabel())
                other.tick_params(labelleft=True)
        _scale_marks(figure, look.marks)
        if look.width:
            _fit_labels(figure)


def _fit_labels(figure: Figure) -> None:
    """Break labels of axes that are longer than these, and let the figure grow where a broken one
    still is: in large type, or on a narrow figure, they would be cut or lie on each other."""
    figure.draw_without_rendering()
    grow = 1.0
    for axes in figure.axes:
        for axis, side in ((axes.xaxis, "width"), (axes.yaxis, "height")):
            room = getattr(axes.bbox if side == "height" else figure.bbox, side)
            box = axis.label.get_window_extent()
            beyond = box.x0 < 0 or box.x1 > figure.bbox.width
            if axis.label.get_text() and (beyond or getattr(box, side) > room):
                words = axis.label.get_text()
                visible = len(MATHEMATICS.sub("", words))
                axis.label.set_text(_broken(words, math.ceil(0.6 * visible)))
                axis.label.set_multialignment("center")
                long = getattr(axis.label.get_window_extent(), side)
                grow = max(grow, long / room) if side == "height" else grow
    if grow > 1:
        figure.set_figheight(figure.get_figheight() * min(grow, TALLEST))


def _broken(words: str, most: int) -> str:
    """Words in lines of at most `most` visible characters, where that can be; mathematics is not
    broken."""
    lines, long = [""], 0
    for part in re.findall(r"(?:\$[^$]*\$|[^\s$])+", words):
        visible = len(MATHEMATICS.sub("", part))
        if long and long + 1 + visible > most:
            lines, long = [*lines, ""], 0
        lines[-1] += f" {part}" if long else part
        long += visible + bool(long)
    return "\n".join(lines)


def _scale_marks(figure: Figure, factor: float) -> None:
    """Widths of lines and sizes of marks, which figures give for the page."""
    if factor == 1:
        return
    legends = [axes.get_legend() for axes in figure.axes] + [*figure.legends]
    handles = [h for legend in legends if legend for h in legend.legend_handles]
    found = [a for axes in figure.axes for a in (*axes.lines, *axes.collections)]
    for artist in [*found, *handles]:
        if isinstance(artist, Line2D):
            artist.set_linewidth(factor * artist.get_linewidth())
            artist.set_markersize(factor * artist.get_markersize())
        elif isinstance(artist, Collection):
            artist.set_linewidth(
                [factor * width for width in np.atleast_1d(artist.get_linewidth())]
            )
            if isinstance(artist, PathCollection):
                artist.set_sizes(factor**2 * artist.get_sizes())


def legend_above(at: Sheet, *axes: Any) -> None:
    """One legend of the entries of `axes` (those of all panels), above them, in as many columns as
    fit."""
    small = at.look.size / 1.2
    most = int((at.figure.get_figwidth() * 72 / small - 4.5) / 0.55)
    entries = {}
    for panel in axes or at.panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(_broken(label, most), handle)
    if not entries:
        return
    every = [line for label in entries for line in label.split("\n")]
    visible = max(len(MATHEMATICS.sub("", line)) for line in every)
    wide = (visible * 0.55 + 4.5) * small / 72
    columns = int(min(len(entries), max(1, at.figure.get_figwidth() // wide)))
    lines = -(-len(every) // columns)  # for which the figure grows, and the panels do not shrink
    at.figure.set_figheight(at.figure.get_figheight() + (lines - 1) * 1.4 * small / 72)
    at.figure.legend([*entries.values()], [*entries], ncols=columns, loc="outside upper left")


def axis_label(name: str, axes: Mapping[str, str], six_nd: bool = False) -> str:
    """The label of a column with its letter as mathematics: "parameters $N$"."""
    label = re.sub(r" ([A-Z])$", r" $\1$", axes.get(name, name))
    return label.replace("$C$", "$C = 6ND$") if six_nd else label


def flops_text(value: float) -> str:
    """FLOPs as mathematics, where B and T would be read as parameters and tokens."""
    digits, exponent = f"{value:.1e}".split("e")  # rounded first: 9.98e10 is 1.0e11
    digits, exponent = digits.removesuffix(".0"), int(exponent)
    return f"$10^{{{exponent}}}$" if digits == "1" else rf"${digits}\times10^{{{exponent}}}$"


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
    """The figure as PNG and SVG, without what is white around it; the same figure gives the same
    bytes. It is laid out once."""
    dpi = figure.get_dpi()
    figure.set_dpi(KINDS["png"]["dpi"])
    with matplotlib.rc_context(STYLE):
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        box = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])
    vars(figure)["laid_out"] = True
    try:
        return Drawing(*(as_bytes(figure, kind, box) for kind in ("png", "svg")))
    finally:
        del vars(figure)["laid_out"]
        figure.set_dpi(dpi)


def as_bytes(figure: Figure, kind: str, box: Any = "tight") -> bytes:
    """The figure as a file of a kind of KINDS. `box` is the part of it, in inches: all but what is
    white around it ("tight"), or all (None), as of a figure for a column, which keeps its width."""
    raw = io.BytesIO()
    options = dict(KINDS[kind])
    if box is not None:
        options["bbox_inches"] = box
    elif kind == "png":
        options["dpi"] = PRINTED
    with matplotlib.rc_context(STYLE):
        figure.savefig(raw, format=kind, **options)
    return raw.getvalue()


def plain_label(words: object, most: int = 40) -> str:
    """Words from elsewhere as a label: no mathematics, no control characters, and not long."""
    label = printable(words)
    return (label if len(label) <= most else f"{label[: most - 1]}…").replace("$", r"\$")


def group_look(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The color and the marker of every group: those of its name among them in the alphabet, so
    that a group looks the same in all figures, in whatever order these have it."""
    every = sorted(set(names))
    return {
        name: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(every)
    }


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


class _RoomyTicks(LogLocator):
    """Ticks in the smallest steps whose labels, `wide` points each, do not touch; whole decades
    where the range is long. How much room there is, the layout decides as the figure is drawn."""

    def __init__(self, wide: float):
        super().__init__(numticks=8)
        self.wide = wide

    def __call__(self) -> Any:
        axis: Any = self.axis
        box, (low, high) = axis.axes.bbox, axis.get_view_interval()
        decades = max(math.log10(high / max(low, 1e-300)), 1e-9)
        along = box.width if axis.axis_name == "x" else box.height
        room = along * 72 / axis.figure.dpi / decades  # of a decade
        subs = (1.0,)
        if decades < SHORT:  # below a decade there may be no power of ten
            least = [s for s, gap in STEPS.items() if gap * room >= self.wide]
            subs = least[0] if least else (1.0,) if decades >= 1 else [*STEPS][-1]
        self.set_params(subs=subs)
        found = [t for t in super().__call__() if low <= t <= high]
        steps = {round(t / 10 ** math.floor(math.log10(t) + 1e-9), 6) for t in found}
        if len(found) < 2 or not steps <= set(subs):  # too short a range for them
            return self._even(low, high, room) or found
        return found

    def _even(self, low: float, high: float, room: float) -> list[float]:
        """At most MOST ticks in the smallest round step whose labels do not touch at the upper end,
        where they are the closest; none where no step gives two."""
        first = math.floor(math.log10(high - low)) - 1
        for step in (n * 10.0**k for k in range(first, first + 3) for n in (1, 2, 5)):
            ticks = step * np.arange(math.ceil(low / step), math.floor(high / step) + 1)
            if len(ticks) < 2:
                break
            gap = math.log10(ticks[-1] / ticks[-2])
            if len(ticks) <= MOST and gap * room >= self.wide:
                return [float(tick) for tick in ticks]
        return []


def log_ticks(axis: Any, flops: bool = False) -> None:
    """1k, 10k, 1M rather than powers of ten, but of FLOPs; steps between them where there is
    room."""
    words = flops_text if flops else quantity
    ems = LINE if axis.axis_name == "y" else LABEL if flops else AMOUNT
    axis.set_major_locator(_RoomyTicks(ems * matplotlib.rcParams["font.size"]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: words(v)))
    axis.set_minor_formatter(NullFormatter())
