"""From compute to the score of a task, in words: terminal and page."""

from collections.abc import Mapping
from typing import Any

from research.io.humanize import flops_text
from research.io.text_table import format_table
from research.report import fit_text
from research.report.elements import escape, html_table, paragraphs
from research.report.fit_text import interval_end, loss_text

HEADINGS = ("FLOPs", "loss", "measured", "by the loss", "directly", "by the measured loss")
WAYS = ("two_steps", "direct", "measured_loss")
WORDS = {"two_steps": "by the loss", "direct": "directly"}
NEEDED = 3  # scores above chance: as many as the curve from there on has parameters
LAWS = {
    "loss_of_flops": "FLOPs to loss",
    "score_of_loss": "loss to score",
    "score_of_flops": "FLOPs to score",
}


def summary(document: Mapping[str, Any]) -> str:
    """What a fit found, and the laws of scores where there are any."""
    words, section = fit_text.fit_summary(document), document.get("downstream")
    return f"{words}\n{downstream(section)}" if section else words


def downstream(section: Mapping[str, Any]) -> str:
    """The whole section for a terminal."""
    lines = ["", f"{section['score']} of {section['n_points']} runs, {_chance(section)}:"]
    lines += law_lines(section)
    lines += ["", format_table(HEADINGS, table_rows(section), right=HEADINGS)]
    return "\n".join([*lines, *sentences(section)])


def law_lines(section: Mapping[str, Any]) -> list[str]:
    return [
        f"  {words}: {law['formula']}, "
        + ", ".join(f"{name} = {value:.4g}" for name, value in law["params"].items())
        for name, words in LAWS.items()
        for law in [section["laws"][name]]
    ]


def table_rows(section: Mapping[str, Any]) -> list[list[str]]:
    """The runs that were held out, then the budgets of which nothing is measured."""
    rows = [
        [flops_text(row["flops"]), loss_text(row["loss"]), f"{row['measured']:.3f}"]
        + [_interval(row[way]) for way in WAYS]
        for row in section["holdout"]["rows"]
    ]
    ahead = [
        [flops_text(row["flops"]), "", "", *(_interval(row[way]) for way in WAYS[:2]), ""]
        for row in section["predictions"]
    ]
    return rows + ahead


def sentences(section: Mapping[str, Any]) -> list[str]:
    """How both ways did on what was held out, and what the columns are."""
    holdout, above = section["holdout"], section.get("above_chance")
    shown = ["predictions with 95 % intervals of a run"]
    if above is not None and above < NEEDED:
        shown.append(
            f"{above or 'none'} of the scores {'is' if above < 2 else 'are'} above chance by more "
            f"than two standard errors; a law of them needs {NEEDED}, and this one is of noise"
        )
    if not holdout["rows"]:
        return [f"no run is held out: {holdout['why']}", *shown]
    errors = holdout["errors"]
    count = len(holdout["rows"])
    told = "; ".join(
        f"{words} ±{errors[way]['mean_absolute_error']:.3f}, "
        + (
            f"{errors[way]['covered']} of {count} inside"
            if any(row[way]["run_interval"] != [None, None] for row in holdout["rows"])
            else "without intervals"
        )
        for way, words in WORDS.items()
    )
    runs = "1 run" if count == 1 else f"{count} runs"
    return [
        f"{runs} above {flops_text(holdout['largest'])} FLOPs, predicted from "
        f"{holdout['n_points']}, mean absolute error: {told}",
        *shown,
    ]


def _chance(section: Mapping[str, Any]) -> str:
    chance = section["chance"]
    return "whose chance is not known" if chance is None else f"chance {chance:.3g}"


def _interval(predicted: Mapping[str, Any]) -> str:
    low, high = (interval_end(end, ".3f") for end in predicted["run_interval"])
    return f"{predicted['score']:.3f} ({low} to {high})"


def page(found: Mapping[str, Mapping[str, Any]], several: bool) -> list[str]:
    """The sections of the report, {group: {column: its laws, or why there are none}}; nothing
    where no run has a score."""
    out = []
    for group, columns in found.items():
        of = f" of {group}" if several else ""
        for column, section in columns.items():
            out.append(f"<h2>From compute to {escape(column)}{escape(of)}</h2>")
            if isinstance(section, str):
                out += paragraphs([f"Left out: {section}."])
                continue
            out += [
                f"<p>{section['n_points']} runs, {escape(_chance(section))}.</p>",
                f"<pre>{escape(chr(10).join(law_lines(section)))}</pre>",
                html_table(
                    ("FLOPs 6 N D", *HEADINGS[1:]),
                    table_rows(section),
                    text=0,
                    label=f"scores of {column}{of}",
                ),
                *paragraphs([f"{line}." for line in sentences(section)]),
            ]
    return out
