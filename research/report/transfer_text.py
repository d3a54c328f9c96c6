"""A check of transfer, in a terminal, as figures and on a report's page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from research.errors import BadInput
from research.io import files
from research.io.text_table import format_table
from research.report import style

FILE, LARGEST = "transfer.json", 64 << 20  # bytes
WORDS = {"rule": "with the rule", "standard": "standard"}


class Told(NamedTuple):
    """A stage in words: a table, whose first column is text, and sentences."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[str]

    def __str__(self) -> str:
        table = format_table(self.headings, self.rows, right=self.headings[1:])
        return "\n".join([*([table] if self.rows else []), *self.lines])


def coordinates(found: Mapping[str, Any]) -> Told:
    """The largest slope of every module against the width, for sizes and changes, by both."""
    rows = []
    for name in found["rule"]["counted"]:
        row = [name]
        for which in WORDS:
            for kind in ("size", "change"):
                slopes = found[which]["modules"].get(name, {}).get(kind, [])
                worst = max(slopes, key=lambda entry: abs(entry["slope"]), default=None)
                row.append(f"{worst['slope']:+.3f} at {worst['step']}" if worst else "")
        rows.append(row)
    headings = [f"{words}: {kind}" for words in WORDS.values() for kind in ("size", "change")]
    lines = []
    for which, words in WORDS.items():
        part = found[which]
        ratio, slope = part["depth_ratio"], part["max_abs_slope_width"]
        over = f", {part['by_depth']['module']} over depths x {ratio:.3g}" if ratio else ""
        lines.append(f"{words} ({part['transfer']}): largest slope in width {slope:.3f}{over}")
    return Told(["slope in width", *headings], rows, lines)


def draw_coordinates(found: Mapping[str, Any]) -> Figure:
    """Changes of every module after the last step against the width, and the last residual against
    the depth."""
    with style.sheet(9, 4, 3) as sheet:
        left, middle, right = sheet.panels
        for axes, which in ((left, "rule"), (middle, "standard")):
            for i, (name, by_width) in enumerate(found[which]["sizes"].items()):
                widths = [int(w) for w in by_width]
                changes = [steps[-1][1] for steps in by_width.values()]
                axes.plot(widths, changes, marker=style.MARKERS[i % 7], color=style.SERIES[i % 7],
                          label=style.plain_label(name))  # fmt: skip
            axes.set(xscale="log", yscale="log", xlabel="width", title=WORDS[which])
            style.log_ticks(axes.xaxis)
        left.set_ylabel(f"change of activations in {found['steps']} steps (RMS)")
        left.sharey(middle)
        for which, color in (("rule", style.BLUE), ("standard", style.ORANGE)):
            sizes = found[which]["by_depth"]["size"]
            right.plot([int(d) for d in sizes], [*sizes.values()], "o-", color=color,
                       label=WORDS[which])  # fmt: skip
        right.set(xscale="log", yscale="log", xlabel="depth",
                  title=f"{found['rule']['by_depth']['module']} (RMS)")  # fmt: skip
        style.log_ticks(right.xaxis)
        right.legend()
        style.legend_above(sheet, left)
    return sheet.figure


def rate(found: Mapping[str, Any]) -> Told:
    """The optimum of every width, how far it moves, and whether wider is worse."""
    rows = []
    for i, width in enumerate(found["widths"]):
        row = [str(width)]
        for which in WORDS:
            entry = found[which]["optima"][i]
            row += [_optimum(entry), _curvature(entry), f"{entry['loss']:.4f}"]
        rows.append(row)
    kinds = ("learning rate", "curvature", "lowest loss")
    headings = [f"{words}: {kind}" for words in WORDS.values() for kind in kinds]
    lines = []
    for which, words in WORDS.items():
        part = found[which]
        between = part["optimum_shift_interval"]
        said = f" ({between[0]:+.2f} to {between[1]:+.2f})" if between else ""
        bound = "; a bound, for optima lie beyond the rates tried" if part["censored"] else ""
        rises = ", ".join(f"{rise['from']} to {rise['to']}" for rise in part["rises"])
        worse = f"wider is worse from {rises}" if rises else "wider is never worse"
        lines.append(
            f"{words} ({part['transfer']}): the best learning rate moves by "
            f"2^{part['optimum_shift_log2']:+.2f}{said} from width {found['widths'][0]} to "
            f"{found['widths'][-1]}{bound}; at {part['shared_lr']:.3g} {worse}"
        )
    return Told(["width", *headings], rows, lines)


def _optimum(entry: Mapping[str, Any]) -> str:
    if entry["censored"]:
        return f"{'<' if entry['censored'] == 'low' else '>'} {entry['lr']:.3g}"
    if entry["interval"]:
        low, high = entry["interval"]
        return f"{entry['lr']:.3g} ({low:.3g} to {high:.3g})"
    return f"{entry['lr']:.3g}"


def _curvature(entry: Mapping[str, Any]) -> str:
    """Of log loss over (log lr)^2."""
    if entry["curvature"] is None:
        return ""
    between = entry.get("curvature_interval")
    ends = f" ({between[0]:.2g} to {between[1]:.2g})" if between else ""
    return f"{entry['curvature']:.2g}{ends}"


def regret(found: Mapping[str, Any]) -> Told:
    """What the transferred rate loses, against the best with the rule and the standard one."""
    sd = found["seed_sd"]
    lines = [
        f"at width {found['width']}, with the best rate of width {found['from_width']}, in "
        f"{found['seeds']} fresh seeds:"
    ]
    for part, words in ((found, "a sweep there"), (found["standard"], "the standard's best there")):
        if part["loss"] is None:
            lines.append(f"against {words}: a run diverged")
        else:
            low, high = part["interval"] or (math.nan, math.nan)
            lines.append(f"against {words}: {part['loss']:+.4f} ({low:+.4f} to {high:+.4f})")
    lines.append(f"one standard deviation of a seed: {'none' if sd is None else f'{sd:.4f}'}")
    return Told([], [], lines)


def draw_rate(found: Mapping[str, Any]) -> Figure:
    """Loss against learning rate by width, with the optima and their intervals."""
    with style.sheet(9, 4, 2, sharey=True) as sheet:
        for axes, which in zip(sheet.panels, WORDS, strict=True):
            for i, entry in enumerate(found[which]["optima"]):
                color = style.SERIES[i % 7]
                done = [(x, y) for x, y in zip(*entry["tried"].values(), strict=True)
                        if y is not None]  # fmt: skip
                axes.plot(*zip(*done, strict=True), marker=style.MARKERS[i % 7], color=color,
                          label=f"width {entry['width']}")  # fmt: skip
                if entry["interval"]:
                    axes.plot(entry["interval"], [entry["loss"]] * 2, color=color, lw=5, alpha=0.3)
            axes.set(xscale="log", xlabel="learning rate", title=WORDS[which])
            style.log_ticks(axes.xaxis)
        losses = [e["loss"] for which in WORDS for e in found[which]["optima"]]
        low, span = min(losses), max(losses) - min(losses) or 1.0
        room = (low - 0.1 * span, low + 2.0 * span)
        sheet.panels[0].set(ylabel="held-out loss", ylim=room)
        sheet.panels[0].plot([], [], color=style.GRAY, lw=5, alpha=0.3,
                             label="best rate, 95 % interval")  # fmt: skip
        style.legend_above(sheet)
    return sheet.figure


def draw_regret(found: Mapping[str, Any]) -> Figure:
    """The losses of the candidates, seed by seed."""
    with style.sheet(4.5, 3.5) as sheet:
        (axes,) = sheet.panels
        for i, entry in enumerate(found["candidates"].values()):
            done = [x for x in entry["loss"] if x is not None]
            axes.plot([i] * len(done), done, "o", color=style.SERIES[i])
            if done:
                axes.plot([i - 0.2, i + 0.2], [sum(done) / len(done)] * 2, color=style.SERIES[i])
        axes.plot([], [], "o", color=style.GRAY, label="fresh seeds")
        axes.plot([], [], color=style.GRAY, label="their mean")
        names = [f"{name}\n{entry['lr']:.3g}" for name, entry in found["candidates"].items()]
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="held-out loss", xlabel="learning rate chosen by", xlim=(-0.5, 2.5))
        axes.set_title(f"width {found['width']}")
        style.legend_above(sheet)
    return sheet.figure


WRITTEN = {"coordinates": coordinates, "rate": rate, "regret": regret}
DRAWN = {"coordinates": draw_coordinates, "rate": draw_rate, "regret": draw_regret}


def write(document: Mapping[str, Any], workdir: Path) -> str:
    """Write the document and the figures of its stages; all of them in words."""
    files.write_json(files.make_directory(workdir) / FILE, document)
    for name, part in document.items():
        style.render_figure(DRAWN[name](part)).save(workdir / name)
    return "\n".join(str(WRITTEN[name](part)) for name, part in document.items())


def verdict(document: Mapping[str, Any]) -> str:
    """How far the best learning rate moves, with the rule and without, and what the transferred one
    costs; "" without these stages."""
    parts = []
    if found := document.get("rate"):
        moved = [
            f"2^{found[which]['optimum_shift_log2']:+.2f} {words}"
            + (" (a bound)" if found[which]["censored"] else "")
            for which, words in (("rule", "with the rule"), ("standard", "without"))
        ]
        narrow, wide = found["widths"][0], found["widths"][-1]
        parts.append(f"from width {narrow} to {wide}, the best learning rate moves by "
                     f"{' and '.join(moved)}")  # fmt: skip
    if (found := document.get("regret")) and found["loss"] is not None and found["interval"]:
        low, high = found["interval"]
        parts.append(f"at width {found['width']}, the best rate of width {found['from_width']} "
                     f"costs {found['loss']:+.4f} ({low:+.4f} to {high:+.4f}) of loss")  # fmt: skip
    return "; ".join(parts)


def read(workdir: Path) -> Mapping[str, Any]:
    """The document of a workdir; {} where there is none. Raises BadInput for one that is none of
    ours."""
    place = workdir / FILE
    if not place.exists():
        return {}
    document = files.read_json(place, LARGEST, follow=False)
    if not isinstance(document, Mapping):
        raise BadInput(f"{place}: not what isoflop transfer writes")
    return document


class Stages(NamedTuple):
    """What a document says in one sentence, and each of its stages in words and as a figure."""

    verdict: str = ""
    told: Mapping[str, Told] = {}
    figures: Mapping[str, Figure] = {}


def stages(workdir: Path, only: str | None = None) -> Stages:
    """Those of the document at `workdir`, or one of them; none where there is no document. Raises
    BadInput for one that is none of ours."""
    document = read(workdir)
    names = [name for name in WRITTEN if name in document and only in (None, name)]
    try:
        return Stages(
            verdict(document),
            {name: WRITTEN[name](document[name]) for name in names},
            {name: DRAWN[name](document[name]) for name in names},
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadInput(f"{workdir / FILE}: not what isoflop transfer writes ({error})") from error
