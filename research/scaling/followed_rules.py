"""The rules by which the runs of a table got their batch, learning rate and other hyperparameters,
and what a fit should know of them: that its runs follow one rule, and that they were tuned for
about as many tokens per parameter as its target has."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from research.io.humanize import quantity
from research.scaling.checks import FRESH
from research.tables.numbers import parse_number
from research.tables.table import Row

BEGINS = ("transfer ", "batch = ", "learning rate = ", "horizon ")  # lines of a record's "rules"
WITHOUT = {
    "transfer ": "no rule of transfer",
    "batch = ": "batch as the config gives it",
    "horizon ": "no rule of the horizon",
}
RATE = re.compile(r"^learning rate = ([\d.e+-]+)")
NEAR, LEAST = 4.0, 3  # times the target's tokens per parameter; how many runs should be as near


def followed_rules(rows: Sequence[Row]) -> dict[str, Counter[str]]:
    """By what rules speak of, each rule in words with its number of runs; {} of a table that says
    nothing of rules. Learning rates that differ by one rule are a range in it."""
    told = [str(row["rules"]).splitlines() for row in rows if row.get("rules")]
    out: dict[str, Counter[str]] = {}
    for begins in BEGINS:
        lines = [next((x for x in of if x.startswith(begins)), "") for of in told]
        # What follows is of each run: a horizon's ratios, which the numbers before them decide.
        lines = [line.partition("; batch x")[0] for line in lines]
        if any(lines):
            named = _without_rates(lines) if begins == "learning rate = " else lines
            out[begins] = Counter(line or WITHOUT.get(begins, "no rule") for line in named)
    return out


def _without_rates(lines: Sequence[str]) -> list[str]:
    """Lines of learning rates, whose own number is a range where it differs by one rule."""
    shapes = [RATE.sub("learning rate = {}", line) for line in lines]
    rates: dict[str, set[float]] = {}
    for line, shape in zip(lines, shapes, strict=True):
        if match := RATE.match(line):
            rates.setdefault(shape, set()).add(float(match[1]))
    words = {
        shape: f"{min(found):g}" + (f" to {max(found):g}" if len(found) > 1 else "")
        for shape, found in rates.items()
    }
    return [shape.replace("{}", words.get(shape, ""), 1) for shape in shapes]


def rule_warnings(rows: Sequence[Row]) -> list[str]:
    """That runs follow several rules, and which."""
    out = []
    for rules in followed_rules(rows).values():
        if len(rules) > 1:
            named = ", ".join(f"{rule} ({count} of them)" for rule, count in rules.most_common())
            out.append(
                f"these runs follow {len(rules)} rules: {named}; what differs between their losses "
                "may be the rules' doing, not that of size and length"
            )
    return out


def ratio_warning(rows: Sequence[Row], predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """That few runs have about as many tokens per parameter as the optimum at the target: the best
    learning rate, batch and decay are not the same at others."""
    target = predictions[-1].get("tokens_per_param") if predictions else None
    ratios = tokens_per_param(rows)
    if not target or not ratios:
        return []
    near = sum(target / NEAR <= ratio <= target * NEAR for ratio in ratios)
    if near >= min(LEAST, len(ratios)):
        return []
    return [
        f"the optimum at the target has {target:.3g} tokens per parameter, the runs "
        f"{min(ratios):.3g} to {max(ratios):.3g}, {near} of {len(ratios)} within a factor of "
        f"{NEAR:g} of it: the best hyperparameters may differ there"
    ]


def repeat_warning(rows: Sequence[Row], predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """That the optimum at the target would see the data of these rows again and again, which a law
    of fresh tokens knows nothing of."""
    target = predictions[-1].get("tokens") if predictions else None
    unique = [x for row in rows if (x := parse_number(row.get("unique_tokens"))) and x > 0]
    if not target or len(unique) < len(rows) or target <= FRESH * max(unique):
        return []
    return [
        f"the optimum at the target takes {quantity(target)} tokens, {target / max(unique):.3g} "
        f"times the {quantity(max(unique))} that the data have: the law was fitted to fewer "
        "repetitions, and repeated tokens are worth less"
    ]


def tokens_per_param(rows: Sequence[Row]) -> list[float]:
    """Of the rows that have both, ascending."""
    counts = [(row.get("tokens"), row.get("params")) for row in rows]
    return sorted(float(d) / float(n) for d, n in counts if d and n)  # pyright: ignore
