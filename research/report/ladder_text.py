"""What was registered of larger runs and what they measured, in words, for terminal and page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.io.humanize import quantity
from research.io.text_table import format_table
from research.report.fit_text import loss_text

HEADINGS = ("times", "parameters", "tokens", "predicted", "95 % of a run", "measured", "error",
            "compute", "inside", "from E", "law", "registered in")  # fmt: skip
LEFT = ("inside", "law", "registered in")


def registered(
    workdir: str | Path, path: Path | None, registrations: Mapping[str, Mapping[str, Any]]
) -> str:
    """What a command that registers has done, by the workdir's registrations."""
    if path is None:
        return f"{workdir}/verify: these rungs are registered, and stay as they are"
    done = f"{path}: registered before any of its rungs is trained; it is not changed any more"
    return "\n".join([done, *registrations[path.name]["notes"]])


def measured(rungs: Sequence[Mapping[str, Any]]) -> str:
    """The ladder as a table, and what there is to say of it."""
    head, rows = table_rows(rungs)
    return "\n".join(
        ["", format_table(head, rows, left=LEFT, right=HEADINGS[:9]), *sentences(rungs)]
    )


def table_rows(rungs: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    """Headings and rows; the law and its registration where there are several."""
    rows = [
        [
            f"{rung['ratio']:.4g}",
            quantity(rung["params"]),
            quantity(rung["tokens"]),
            loss_text(rung["predicted"]),
            " to ".join(map(loss_text, rung["run_interval"])) + _half_width_text(rung),
            *_outcome(rung),
            f"±{rung['parts']['floor']:.2%}",
            rung["law"],
            rung["registration"].removesuffix(".json"),
        ]
        for rung in rungs
    ]
    several = len({(rung["law"], rung["registration"]) for rung in rungs}) > 1
    shown = len(HEADINGS) if several else len(HEADINGS) - 2
    return HEADINGS[:shown], [row[:shown] for row in rows]


def _half_width_text(rung: Mapping[str, Any]) -> str:
    """Of the interval of a run, relative; nothing where an end of it is open."""
    low, high = rung["run_interval"]
    return "" if low is None or high is None or low <= 0 else f" (±{math.sqrt(high / low) - 1:.2%})"


def _outcome(rung: Mapping[str, Any]) -> list[str]:
    """Measured, error, compute and verdict of a rung."""
    if rung["measured"] is None:
        words = "not trained" if rung["status"] in ("new", "unfinished") else rung["status"]
        return [words, "", "", ""]
    return [
        loss_text(rung["measured"]),
        f"{rung['error']:+.2%}",
        f"{rung['compute']:.3g}x",
        "yes" if rung["covered"] else "no",
    ]


def verdict(rungs: Sequence[Mapping[str, Any]]) -> str:
    """How predictions that were registered before their runs came out; "" if none was measured."""
    done = [rung for rung in rungs if rung["measured"] is not None and rung["found"] == "new"]
    if not done:
        return ""
    inside = sum(rung["covered"] for rung in done)
    worst = max(done, key=lambda rung: abs(rung["error"]))
    return (
        f"{inside} of {len(done)} rungs measured lie inside the interval that was registered; "
        f"the largest error is {abs(worst['error']):.2%}, at {worst['ratio']:.4g} times the "
        "largest budget"
    )


def sentences(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdict, and what a reader of the table has to know."""
    out = [words] if (words := verdict(rungs)) else []
    for rung in rungs:
        name = f"the rung of {rung['ratio']:.4g} times ({rung['registration']})"
        if rung["found"] != "new":
            begun = "begun" if rung["found"] == "unfinished" else "trained"
            out.append(f"{name} had been {begun} before it was registered there: no prediction")
        if rung["measured"] is None and rung["status"] in ("failed", "diverged"):
            out.append(f"{name} {rung['status']}: {rung['reason']}")
        if rung.get("epochs", 0) > 1:
            out.append(
                f"{name} sees its corpus {rung['epochs']:.3g} times, which the law takes for fresh"
            )
    return out


def registration_line(name: str, registration: Mapping[str, Any]) -> str:
    """When a registration was made, from what and by which code."""
    weights: dict[str, float] = {}
    for law in registration["laws"]:
        weights[str(law.get("law"))] = weights.get(str(law.get("law")), 0.0) + law.get("weight", 0)
    words = ", ".join(f"{law} {weight:.0%}" for law, weight in weights.items())
    of = f" of {registration['group']}" if registration["group"] else ""
    code = registration["code"]
    commit = str(code.get("commit") or code.get("source") or "unknown")
    return (
        f"{name}: {registration['time']}, from {registration['n_points']} runs{of} by "
        f"{registration['law']} ({words}); table {str(registration.get('table'))[:12]}, fit "
        f"{str(registration.get('fit'))[:12]}, code {commit[:12]}; its digest "
        f"{registration['digest'][:12]}"
    )
