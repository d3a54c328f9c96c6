"""What a sweep showed, in words: tables and sentences for a terminal and for the report's page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import printable
from research.io.humanize import amount_text, flops_text, quantity
from research.io.text_table import format_table
from research.report.fit_text import (
    comparison_sentences,
    expected_exponent_sentence,
    fit_summary,
)
from research.report.provenance import provenance_line
from research.runs.schema import NOUNS, Column, is_number, shown_columns, task_metrics
from research.runs.settings import MOST_SETTINGS, shown_setting, varying_settings
from research.tables.replicates import replicate_groups

Row = dict[str, Any]


def group_name(row: Row) -> str:
    """Runs of one group share a law."""
    return str(row.get("group") or "")


def rows_by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by group, in the order of their first row."""
    out: dict[str, list[Row]] = {}
    # A run that failed before it wrote what it is belongs to no group of its own.
    usual = next((group_name(row) for row in rows if group_name(row)), "")
    for row in rows:
        out.setdefault(group_name(row) or usual, []).append(row)
    return out


def varying_column(rows: Sequence[Row]) -> str:
    """The column that a law is drawn against: the first in which finished runs differ."""
    done = [row for row in rows if row["status"] == "done"]
    for column in ("params", "train_examples", "tokens", "flops"):
        if len({row.get(column) for row in done}) > 1:
            return column
    return "params"


def score_statistics(
    rows: Sequence[Row], against: str, score: str
) -> list[tuple[float, float, float, int]]:
    """(value of `against`, mean, standard deviation, runs) of a score, of runs that differ in
    nothing but the seed, by that value and by tokens; the standard deviation of one run is NaN."""
    done = _scored(rows, against, score)
    return [
        (
            group[0][against],
            float(np.mean([row[score] for row in group])),
            float(np.std([row[score] for row in group], ddof=1)) if len(group) > 1 else math.nan,
            len(group),
        )
        for group in _replicates(done, against)
    ]


def _scored(rows: Sequence[Row], against: str, score: str) -> list[Row]:
    return [
        row
        for row in rows
        if row["status"] == "done" and is_number(row.get(score)) and row.get(against)
    ]


def _replicates(done: Sequence[Row], against: str) -> list[list[Row]]:
    names = (against, "params", "tokens", "train_examples")
    cells = replicate_groups(done, [n for n in names if all(n in row for row in done)])
    return sorted(cells.values(), key=lambda g: (g[0][against], g[0].get("tokens") or 0))


def score_budgets(rows: Sequence[Row], against: str, score: str) -> list[float]:
    """The exact FLOPs of each point of `score_statistics`, by which a figure tells budgets apart;
    [] where a run has none."""
    done = _scored(rows, against, score)
    flops = [group[0].get("flops") for group in _replicates(done, against)]
    return [float(x) for x in flops if x] if all(flops) else []


def figure_name(metric: Column, kind: str = "metric") -> str:
    """The name of the figure of a metric, which is a file's, too: one of a set is loss/NAME."""
    return f"{kind}_{metric.name.replace('/', '_')}"


def set_losses(rows: Sequence[Row]) -> list[Column]:
    """Those of `page_metrics` that are the loss on a set of eval.sets, or on what is held out
    beside them."""
    return [metric for metric in page_metrics(rows) if metric.name.startswith("loss/")]


def page_metrics(rows: Sequence[Row]) -> list[Column]:
    """The metrics that the tasks of the runs show on the page: each has a figure there."""
    return [column for column in task_metrics(rows) if "page" in column.shown]


def collapse_sentences(section: Mapping[str, Any]) -> list[str]:
    """How near the normalized training curves of a sweep are to one, and which runs are not."""
    out = [
        f"The normalized training curves of {section['runs']} runs deviate from their common curve "
        f"by {section['all']:.1%} (root mean square, from a tenth of training on). Batch noise "
        f"alone would give {section['noise']:.1%}, which leaves {section['spread']:.1%} between "
        "runs. Sizes whose learning rate and batch are right fall on one curve (Qiu et al. 2025)"
    ]
    return out + [
        f"Run {entry['run']} ({quantity(entry['params'])} parameters) leaves it at "
        f"{entry['share']:.0%} of its training, by {entry['off']:+.1%} at most"
        for entry in section["leaving"]
    ]


def comparison_table(rows: Sequence[Row], against: str) -> list[list[str]]:
    """Groups side by side: a header, and a row for each score at each value of `against`, of the
    runs of the most tokens there."""
    by_group = {g: _longest(r, against) for g, r in rows_by_group(rows).items()}
    body = []
    for score in (column.name for column in shown_columns(rows, "summary")):
        cells: dict[str, dict[float, list[tuple]]] = {g: {} for g in by_group}
        for g, r in by_group.items():
            for x, *cell in score_statistics(r, against, score):
                cells[g].setdefault(x, []).append(tuple(cell))
        for x in sorted({x for statistics in cells.values() for x in statistics}):
            if sum(x in statistics for statistics in cells.values()) < 2:
                continue
            shown = [
                _mean_text(statistics[x]) if x in statistics else "–"
                for statistics in cells.values()
            ]
            at = f"{amount_text(x, against)} {NOUNS.get(against, against)}"
            body.append([f"{score} at {at}", *shown])
    return [["", *by_group], *body] if body else []


def _longest(rows: Sequence[Row], against: str) -> list[Row]:
    """Of the finished runs of every value of `against` those of the most tokens."""
    done = [
        (row, row.get(against), row.get("tokens") or 0) for row in rows if row["status"] == "done"
    ]
    most: dict[Any, float] = {}
    for _, x, tokens in done:
        most[x] = max(most.get(x, 0), tokens)
    return [row for row, x, tokens in done if tokens == most[x]]


def _mean_text(cells: Sequence[tuple[float, float, int]]) -> str:
    """The mean of replicates; of runs that differ in a setting too, from the least to the most."""
    means = [mean for mean, *_ in cells]
    if len(cells) > 1:
        return f"{min(means):.4f} to {max(means):.4f} ({len(cells)} settings)"
    mean, sd, count = cells[0]
    return f"{mean:.4f}" if count == 1 else f"{mean:.4f} ± {sd:.4f} ({count:.0f})"


def text_summary(result: Mapping[str, Any]) -> str:
    """The table, the laws and the verdicts for a terminal, and where the files are."""
    rows, several = result["rows"], len(result["fits"]) > 1
    lines = [""]
    for name, sentences in result["answers"].items():
        lines += [f"{name}: {line}" if several else line for line in sentences]
    lines += ["", _runs_table(rows, several, result["against"])]
    for name, fit in result["fits"].items():
        lines += ["", *([f"{name}:"] if several else [])]
        if words := result["methods_text"].get(name):
            lines += [words, ""]
        if words := provenance_line(fit["rows"]):
            lines.append(words)
        words = fit_summary(fit["document"], True, alone=False) if fit["document"] else ""
        lines.append(words or f"no law: {fit['why']}")
        if fit["document"] and (
            words := expected_exponent_sentence(result["cards"], fit["document"])
        ):
            lines.append(words)
    for entry in result["collapse"]["leaving"] if result["collapse"] else ():
        lines.append(f"run {entry['run']} leaves the common curve of the others at "
                     f"{entry['share']:.0%} of its training, by {entry['off']:+.1%}")  # fmt: skip
    if compared := result["compared"]:
        lines[1:1] = comparison_sentences(compared.document)
    if side := comparison_table(rows, result["against"]) if several else []:
        lines += ["", format_table(side[0], side[1:], right=side[0][1:])]
    lines += ["", *(f"warning: {line}" for of in result["warnings"].values() for line in of)]
    written = result["files"]
    first = [str(path) for name, path in written.items() if name.split("-")[0] in ("report", "fit")]
    figures = (str(path) for name, path in written.items() if name.endswith(".png"))
    return printable("\n".join([*lines, "", *first, *figures]), keep="\n")


def _runs_table(rows: Sequence[Row], several: bool, against: str) -> str:
    rows = sorted(rows, key=lambda r: (group_name(r), r.get(against) or 0, r.get("seed") or 0))
    scores = shown_columns(rows, "summary")
    label = "examples" if all(row.get("context") == 1 for row in rows) else "tokens"
    columns: dict[str, list[object]] = (
        {"group": [group_name(row) for row in rows]} if several else {}
    )
    if against == "train_examples":
        columns[against] = [row.get(against, 0) for row in rows]
    columns["params"] = [row.get("params", 0) for row in rows]
    columns[label] = [quantity(row.get("tokens", 0)) for row in rows]
    columns["exact FLOPs"] = [flops_text(row["flops"]) if row.get("flops") else "" for row in rows]
    columns["seed"] = [row.get("seed") for row in rows]
    for name in varying_settings(rows, ("params", "tokens", "seed", "group"), MOST_SETTINGS):
        columns[name] = [shown_setting(row.get(name)) for row in rows]
    for column in scores:
        columns[column.name] = [column.text(row.get(column.name)) for row in rows]
    columns["status"] = [row["status"] for row in rows]
    return format_table(
        list(columns),
        list(zip(*columns.values(), strict=True)),
        right=(label, "exact FLOPs", *(column.name for column in scores)),
    )
