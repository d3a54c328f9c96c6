"""Which rules the runs of a report followed, and what a check of transfer found of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.io.humanize import quantity
from research.report.elements import escape, html_table, paragraphs
from research.report.transfer_text import Told
from research.scaling.followed_rules import followed_rules, tokens_per_param

STAGES = {
    "coordinates": "Sizes and changes of activations over widths and depths",
    "rate": "Learning rates at every width",
    "regret": "What the transferred learning rate costs",
}


def rules_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line for each rule with the number of runs that followed it; [] where no run says."""
    found = followed_rules([dict(row) for row in rows])
    return [[rule, f"{count}"] for rules in found.values() for rule, count in rules.most_common()]


def ratio_sentence(rows: Sequence[Mapping[str, Any]], document: Mapping[str, Any] | None) -> str:
    """Between which tokens per parameter the runs lie, and the optimum at the target; "" where
    there is nothing to say."""
    ratios = tokens_per_param([dict(row) for row in rows if row.get("status") == "done"])
    predictions = (document or {}).get("predictions") or [{}]
    target = predictions[-1].get("tokens_per_param")
    if not ratios or not target:
        return ""
    return (
        f"The runs have {quantity(ratios[0])} to {quantity(ratios[-1])} tokens per parameter, "
        f"{quantity(ratios[len(ratios) // 2])} in the middle; the optimum at the target has "
        f"{quantity(target)}. Rules were tuned for some ratio, and the best learning rate differs "
        "at others."
    )


def page(result: Mapping[str, Any], take: Callable[[str], list[str]]) -> list[str]:
    """The sections of the page; `take` gives the figure of a name where there is one."""
    out, several = [], len(result["fits"]) > 1
    for group, fit in result["fits"].items():
        of = f": {group}" if several else ""
        if table := rules_table(fit["rows"]):
            words = ratio_sentence(fit["rows"], fit["document"])
            out.append(f"<h2>Rules that the runs followed{escape(of)}</h2>")
            out.append(html_table(("rule", "runs"), table, label=f"rules{of}"))
            out += paragraphs([words] if words else [])
    if stages := result["transfer"].told:
        out.append("<h2>Whether the hyperparameters transfer</h2>")
    for name, told in stages.items():
        out.append(f"<h3>{STAGES[name]}</h3>")
        out += _stage(name, told)
        out += take(f"transfer_{name}")
    return out


def _stage(name: str, told: Told) -> list[str]:
    table = [html_table(told.headings, told.rows, label=name)] if told.rows else []
    return table + paragraphs(
        [f"{line[:1].upper()}{line[1:]}{'' if line.endswith(':') else '.'}" for line in told.lines]
    )
