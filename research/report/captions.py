"""What each figure of the page shows, what its marks are, and what was found."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.io.humanize import flops_text, quantity
from research.report.fit_text import estimate, interval_end
from research.runs.schema import Column, is_number
from research.scaling.compute_optimal import PER_TOKEN

METHODS = {"akima": "Akima's interpolation", "parabola": "the parabola"}

CAPTIONS = {
    "ladder": "Loss of larger runs, predicted before they were trained and measured. Left: dots "
    "are the runs that were fitted, the line is the compute-optimal loss as registered, "
    "with its 95 % band; diamonds are predictions with the 95 % interval of a run, stars what was "
    "measured. Right: the error of each prediction (diamond) with the intervals of the law (thick) "
    "and of a run (thin), relative to the measured loss (star).",
    "forecasts": "Training curves of larger runs. Gray: forecast, with two standard deviations; "
    "orange: measured, smoothed.",
    "isoflop": "Loss against size at each budget. A color is a budget, labeled with the exact "
    "FLOPs of its runs; solid lines are Akima's interpolation through them, dashed ones the "
    "parabola fitted to them, and large marks the minima of either, as means over draws of the "
    "noise. A budget without curves has no minimum between its sizes. The power laws of N* in the "
    "legend, with 95 % intervals, are in C = 6 N D, as are all "
    "budgets on this page that are not called exact.",
    "loss": "Held-out loss of the runs, and the law that was fitted to them. Dots are runs that "
    "were fitted, circles runs that were left out; the line is the law with its 95 % band, stars "
    "are runs held out of the fit, beside the predictions (diamonds) with the 95 % interval of a "
    "run.",
    "runs": "Held-out loss of the finished runs, to which no law was fitted.",
    "groups": "Held-out loss of the runs of all groups, and the laws of groups that have one of "
    "this column, with their 95 % bands; stars are runs held out of them.",
    "losses": "Held-out loss against parameters, tokens and training FLOPs 6 N D. Dots are runs, "
    "colored by parameters, stars runs that were held out; the lines are the lowest loss that the "
    "law allows: at a size with unlimited tokens, at a number of tokens with unlimited parameters, "
    "and at a budget. A line that is not seen lies below the panel, or the law rises there.",
    "contours": "Loss of the law over parameters and tokens. Gray lines join equal losses, dots "
    "are the runs in the color of their measured loss, and the orange line is the efficient "
    "frontier: the best size of each budget. It is absent where all of it lies outside.",
    "frontier": "Optimal parameters, optimal tokens and their ratio against training FLOPs 6 N D. "
    "The solid line is this fit with its 95 % band, dots are the optima located at single budgets; "
    "beyond the dotted line, the largest budget of the runs, all is extrapolated. Dashed lines are "
    "published laws within a factor of 10.",
    "envelope": "Loss against training FLOPs 6 N D, and the lower convex hull. "
    "Dots are runs, colored by parameters; the line joins those that lie on the hull.",
    "residuals": "Residuals of the law. Dots are runs that were fitted, stars runs that were held "
    "out; the band is one standard deviation of a run.",
    "pairs": "Resampled parameters of the law against each other, positive ones as natural "
    "logarithms. Each dot is a refit to resampled residuals (without the outermost 2 %), the star "
    "is the best fit; a narrow cloud says that the data determine only a combination of both, a "
    "long tail that they hardly bound one side. The intervals of the table are by profile "
    "likelihood, not from these.",
    "multiverse": "The exponent under every combination of analysis choices. Left: all refits, "
    "sorted, with the median; right: the median exponent under each choice.",
    "curves": "Learning curves of all runs. Lines are the smoothed training loss, marks the "
    "held-out loss; colors go by size.",
    "set": "Learning curves of all runs on another set. Lines are the smoothed training loss, "
    "marks the loss on the set that the legend names; colors go by size.",
    "collapse": "Learning curves, normalized, and their common curve. Left: a line for each run, "
    "colored by size, and the common curve (dashed); right: each run's deviation from it, and two "
    "standard deviations of batch noise and spread (dashed). Runs that leave the band are orange.",
    "compare": "Losses of all groups, before and after their multiplier. Left: the runs; right: "
    "the same runs moved by the multiplier of their group, which lie on one curve if groups differ "
    "in nothing else.",
    "settling": "The loss predicted at the target as runs were added, the cheapest first. The band "
    "is the 95 % interval of the law.",
    "recipe": "What a learning rate off its optimum costs, and how the optimum moves. Left: a dot "
    "for each run, and the fitted parabola; right: the best rate of each cell with its 95 % "
    "interval, on the range that was tried.",
    "coordinates": "Change of activations, and size of the residual, as models grow. Left and "
    "middle: the change of each module's activations since initialization against the width, flat "
    "under a correct rule; right: the size of the last residual against the depth.",
    "rate": "Loss against learning rate at every width. Dots are runs, thick bars 95 % intervals "
    "of the best rate; under a correct rule all optima lie at one rate.",
    "regret": "Losses of fresh seeds at the largest width, by how the learning rate was chosen. "
    "Dots are runs, lines their means.",
    "confusion": "Predicted against true classes, of the most accurate run.",
    "metric": "Held-out metric of the runs. A dot is a run, or the mean of runs that differ in the "
    "seed alone, with their standard deviation as a bar; colors, if any, go by the runs' FLOPs.",
}
PREFIXES = {"metric": "metric", "curves": "set"}  # of figures of a metric or a set, before its name


def caption(figure: str) -> str:
    """The caption of a figure by its name, which is that of its kind, after its law or group."""
    prefix, _, name = figure.partition("_")
    kind = PREFIXES[prefix] if name and prefix in PREFIXES else figure.rpartition("_")[2]
    return CAPTIONS.get(kind, f"Figure: {figure}.")


def finding(kind: str, document: Mapping[str, Any]) -> str:
    """What a figure of a fit shows, in one sentence with its numbers; "" for those that show no
    single thing."""
    say = FINDINGS.get(kind)
    return say(document) if say else ""


def _span(ends: Any, spec: str) -> str:
    return " to ".join(interval_end(end, spec) for end in ends)


def _of_minima(document: Mapping[str, Any]) -> str:
    parts = []
    for name, side in document["methods"].items():
        span = _span(side["intervals"]["params_exponent"], ".2f")
        parts.append(f"C^{side['params_exponent']:.2f} ({span}) by {METHODS[name]}")
    return f"The optimal size grows as {' and as '.join(parts)}."


def _of_optima(document: Mapping[str, Any]) -> str:
    known = [p for p in document["predictions"] if p.get("params") and p.get("tokens")]
    if not known:
        return ""
    last = known[-1]
    # As the axis counts, also where the table counts otherwise.
    budget, ratio = PER_TOKEN * last["params"] * last["tokens"], last["tokens"] / last["params"]
    return (
        f"At {flops_text(budget)} FLOPs (6 N D) the best is {quantity(last['params'])} parameters "
        f"on {quantity(last['tokens'])} tokens, {ratio:.3g} tokens per parameter."
    )


def _of_floor(document: Mapping[str, Any]) -> str:
    value = document["params"].get("E")
    if value is None:
        return ""
    ends = document["intervals"]["E"]
    return f"The law's irreducible loss is E = {estimate(value, *ends)} ({_span(ends, '.3g')})."


def _of_hull(document: Mapping[str, Any]) -> str:
    count = len(document["minima"])
    return f"{count} of {document['n_points']} runs lie on the hull; they alone make its power law."


def _of_multiverse(document: Mapping[str, Any]) -> str:
    section = document["multiverse"]
    spread = section["spread"]["exponent"]
    return (
        f"Across {len(section['universes'])} analysis choices, the exponent ranges from "
        f"{spread['least']:.2f} to {spread['most']:.2f}, with a median of {spread['median']:.2f}."
    )


def _of_residuals(document: Mapping[str, Any]) -> str:
    words = f"R² = {document['r2']:.4f}" if document.get("r2") is not None else ""
    if value := (document.get("noise") or {}).get("value"):
        spread = f"a run scatters about the law by {value:.2%} (standard deviation)"
        words = f"{words}; {spread}" if words else f"{spread[0].upper()}{spread[1:]}"
    return f"{words}." if words else ""


def _of_pairs(document: Mapping[str, Any]) -> str:
    poor = [name for name, entry in document["identifiability"].items()
            if entry["flag"] not in ("ok", "fixed")]  # fmt: skip
    if not poor:
        return "All parameters are identified."
    return f"Not well identified: {', '.join(poor)}."


def best_run_sentence(rows: Sequence[Mapping[str, Any]], column: Column) -> str:
    """The best value of a metric among finished runs, and of which size; "" where none is best."""
    done = [row for row in rows if row.get("status") == "done" and is_number(row.get(column.name))]
    if not column.better or len(done) < 2:
        return ""
    choose, word = (min, "lowest") if column.better == "low" else (max, "highest")
    best = choose(done, key=lambda row: row[column.name])
    at = f", at {quantity(best['params'])} parameters" if best.get("params") else ""
    name = "held-out loss" if column.name == "loss" else f"held-out {column.title}"
    return f"The {word} {name} is {column.text(best[column.name])}{at}."


FINDINGS = {
    "loss": _of_floor,
    "residuals": _of_residuals,
    "pairs": _of_pairs,
    "isoflop": _of_minima,
    "frontier": _of_optima,
    "contours": _of_optima,
    "losses": _of_floor,
    "envelope": _of_hull,
    "multiverse": _of_multiverse,
}
