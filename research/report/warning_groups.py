"""The warnings of a report, each said once, merged where they differ in a name alone, or between
methods in a number, and grouped by what a reader can do about them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.report.methods import Methods

Row = Mapping[str, Any]

AGAIN = "Launch again, those that failed with --retry_failed"
LOWER = "Lower the learning rate of these (they are not trained again when launched again)"
MORE = "More runs would narrow this (isoflop fit --next_runs proposes them)"
COUNTING = "Ways of counting and fitting (isoflop fit --multiverse shows what they change)"
DATA = "Which runs and data these are"
# The first whose pattern is found in a warning; what no pattern knows is of DATA.
KINDS = (
    (LOWER, r"^Runs? .* diverged"),
    (AGAIN, r"^Runs? .* (failed|(is|are) (unfinished|new|running|stopped))"),
    (COUNTING, r"6 \* params \* tokens|akima and parabola|Huber|units?\b|convention|\(--objective"
               r"|follows these rows better"),
    (MORE, r"constrained|identified|at (its|their) bound|starts agree|\bfewer than|needs? \d"
           r"|noise of a run is|do not tell|two budgets|on the envelope|vary together|known to ±"
           r"|lies? outside|decide|without (it|them)|misfit|negative|too few|that was tried"),
)  # fmt: skip
NAMED = re.compile(r"^(Run )?([\w.-]{1,60}) is (.+)$", re.DOTALL)
ENDED = re.compile(r"(?:is|are) (failed|diverged)(?=\.)")
NUMBER = re.compile(r"\d[\d.,]*(e[+-]?\d+)?")
PLURAL = (
    (r"\bits\b", "their"),
    (r"\binterval is\b", "intervals are"),
    (r"\bit\b", "them"),
    (r"\bvalue\b", "values"),
)
OF_METHOD = {"isoflop": "isoFLOP minima", "envelope": "the envelope"}


def merge_lines(lines: Iterable[str]) -> list[str]:
    """Lines without their repetitions; such as differ in the name before "is" are one."""
    out: dict[tuple[str, str], list[str]] = {}
    for line in dict.fromkeys(lines):
        match = NAMED.match(line)
        key = (match[1] or "", match[3]) if match else ("", line)
        out.setdefault(key, []).append(match[2] if match else "")
    return [_joined(kind, rest, names) for (kind, rest), names in out.items()]


def _joined(kind: str, rest: str, names: Sequence[str]) -> str:
    if names == [""]:
        return rest
    if len(names) == 1:
        return f"{kind}{names[0]} is {rest}"
    for pattern, plural in PLURAL:
        rest = re.sub(pattern, plural, rest)
    every = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{'Runs ' if kind else ''}{every} are {rest}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def grouped_warnings(
    rows: Sequence[Row],
    fits: Mapping[str, Mapping[str, Any]],
    methods: Mapping[str, Methods],
    notes: Sequence[str],
) -> dict[str, list[str]]:
    """The lines by what to do about them."""
    lines = merge_lines(
        f"Run {row['run']} is {row['status']}. {_sentence(str(row.get('reason') or ''))}".strip()
        for row in rows
        if row["status"] != "done"
    )
    lines = [ENDED.sub(r"\1", line) for line in lines] + [*notes]
    told_of: dict[str, list[str]] = {}
    for name, fit in fits.items():
        document = fit["document"]
        told = list(document["warnings"]) if document else []
        for method, analysis in methods[name].analyses.items() if name in methods else ():
            title = OF_METHOD.get(method, "")
            if method != "parabola":  # says what that of Akima says
                shapes = {NUMBER.sub("#", line) for line in told}
                told += [f"{title}: {w}" if title and w not in told else w
                         for w in analysis.document["warnings"]
                         if w in told or NUMBER.sub("#", w) not in shapes]  # fmt: skip
        for line in merge_lines(told):
            if line not in notes:
                told_of.setdefault(line, []).append(name)
    for line, names in told_of.items():
        lines.append(f"{line} (of {', '.join(names)})" if len(fits) > 1 else line)
    repeated = [row for row in rows if row.get("epochs", 0) > 1 and row.get("context", 0) > 1]
    if repeated:
        lines.append(
            f"{len(repeated)} of {len(rows)} runs saw more tokens than the corpus has: data were "
            "repeated"
        )
    out: dict[str, list[str]] = {AGAIN: [], LOWER: [], MORE: [], COUNTING: [], DATA: []}
    for line in dict.fromkeys(lines):
        out[next((kind for kind, pattern in KINDS if re.search(pattern, line)), DATA)].append(line)
    return {kind: found for kind, found in out.items() if found}
