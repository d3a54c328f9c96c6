"""A check of transfer, in a terminal and as a figure."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from research.io.text_table import format_table
from research.report import style

WORDS = {"rule": "with the rule", "standard": "standard"}


def coordinates(found: Mapping[str, Any]) -> str:
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
    table = format_table(["slope in width", *headings], rows, right=headings)
    lines = [table]
    for which, words in WORDS.items():
        part = found[which]
        ratio, slope = part["depth_ratio"], part["max_abs_slope_width"]
        over = f", {part['by_depth']['module']} over depths x {ratio:.3g}" if ratio else ""
        lines.append(f"{words} ({part['transfer']}): largest slope in width {slope:.3f}{over}")
    return "\n".join(lines)


def draw(found: Mapping[str, Any]) -> style.Drawing:
    """Changes of every module after the last step against the width, and the last residual against
    the depth."""
    figure = Figure(figsize=(9, 4))
    left, middle, right = figure.subplots(1, 3)
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
    left.legend(fontsize=7)
    for which, color in (("rule", style.BLUE), ("standard", style.ORANGE)):
        sizes = found[which]["by_depth"]["size"]
        right.plot([int(d) for d in sizes], [*sizes.values()], "o-", color=color,
                   label=WORDS[which])  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="depth",
              title=f"{found['rule']['by_depth']['module']} (RMS)")  # fmt: skip
    style.log_ticks(right.xaxis)
    right.legend(fontsize=7)
    figure.tight_layout()
    return style.render_figure(figure)
