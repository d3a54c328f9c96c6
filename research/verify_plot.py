"""The figure of a verified prediction."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from research import plots
from research.plots import BLUE, GREEN, LABELS, ORANGE, STYLE
from research.scaling import Fit, frontier


def figure(fit: Fit, found: Mapping[str, Any]) -> Figure:
    """Loss against FLOPs 6 N D: the sweep's runs, the least loss that the law allows with its 95 %
    band, and the larger run as it was predicted and as it was measured."""
    rows = fit.parts.fitted
    x = np.array([frontier.PER_TOKEN * row["params"] * row["tokens"] for row in rows])
    at = frontier.PER_TOKEN * found["params"] * found["tokens"]
    grid = np.geomspace(x.min(), at * 1.5, 24)
    n = frontier.best_params(fit.law, fit.best[None], grid)[0]
    least, band, _ = fit.predict({"params": n, "tokens": grid / frontier.PER_TOKEN / n})
    band = np.clip(band, 0.5 * least.min(), 2 * least.max())
    low, high = found["run_interval"]
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(6.8, 4.4))
        axes = drawn.subplots()
        axes.scatter(x, [row["loss"] for row in rows], s=26, color=BLUE, label="runs, fitted")
        axes.plot(grid, least, color=GREEN, lw=1.8, label="least loss of a budget, by the law")
        axes.fill_between(
            grid, band[:, 0], band[:, 1], color=GREEN, alpha=0.15, lw=0, label="its 95 % band"
        )
        span = np.array([[found["loss"] - low], [high - found["loss"]]])
        axes.errorbar(at * 1.08, found["loss"], span, fmt="D", ms=5, color=ORANGE, mfc="white",
                      capsize=4, lw=1.4, label="predicted, 95 % interval of a run")  # fmt: skip
        axes.scatter(at, found["measured"], s=90, marker="*", color=ORANGE, zorder=5,
                     label="measured afterwards")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=f"{LABELS['flops']} (6 N D)")
        axes.set_ylabel(f"held-out loss ({found['unit']})")
        plots.log_ticks(axes.xaxis)
        plots.plain_ticks(axes.yaxis)
        axes.legend(fontsize=9)
    return drawn
