"""A fit in words, for a terminal and for the report's page: the law, its predictions with their
intervals, and how these compare with what was measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.io.humanize import amount_text, flops_text, quantity, significant
from research.runs.schema import NOUNS
from research.scaling.compute_optimal import PER_TOKEN
from research.scaling.laws import AUTO
from research.scaling.power_laws import SIX_ND

LETTERS = {  # of the power laws through minima, as their formula has them
    "params_exponent": "a",
    "params_coefficient": "k",
    "tokens_exponent": "a'",
    "tokens_coefficient": "k'",
}
SMALL = 0.01  # of what is predicted, below which four decimals say too little
SAME_COUNT = 0.01  # relative, up to which two ways of counting FLOPs are the same


def interval_end(value: float | None, spec: str = ".3g") -> str:
    """The end of an interval, "open" where the data leave it so. What rounds to 0 has no sign."""
    return "open" if value is None else format(float(value), f"z{spec}")


def estimate(value: float, low: float | None, high: float | None) -> str:
    """A fitted number; one that its interval, which reaches 0, cannot tell from 0 at all is 0."""
    nothing = low is not None and high is not None and low <= 0
    return "0" if nothing and abs(value) < 1e-6 * (high - low) else f"{value:.4g}"  # type: ignore


def loss_text(value: float | None) -> str:
    """A loss, or the end of its interval; None is one that the data leave open."""
    return "open" if value is None else significant(value)


def comparison_sentences(document: Mapping[str, Any]) -> list[str]:
    """What a shared law says of the groups, whose names keep their letters."""
    words = document["compare"]["words"]
    return [f"{w if ' needs ' in w else w[0].upper() + w[1:]}." for w in words]


def headline(document: Mapping[str, Any] | None) -> str:
    """The result in a sentence: predictions against measurements of the largest runs, which were
    held out, or within the table."""
    if not document:
        return ""
    if not (holdout := document["holdout"]):
        return _extrapolation_sentence(document)
    count, row = document["n_points"], holdout["rows"][-1]
    if len(holdout["rows"]) > 1 or document["response"] not in row or not _has_interval(row):
        what = "optimal sizes" if document["law"] == "isoflop" else "runs"
        return f"From {count} runs: {_held_out_words(holdout, f'{what} that were held out')}."
    low, high = (loss_text(x) for x in row["run_interval"])
    verdict = "inside" if row["covered"] else "outside"
    at = amount_text(row[document["against"]], document["against"])
    noun, response = NOUNS.get(document["against"], document["against"]), document["response"]
    runs = "smaller runs" if response == "loss" else "runs"
    return (
        f"From {count} {runs}, the {response} at {at} {noun} was predicted as "
        f"{loss_text(row[response])} (95 % interval {low} to {high}); measured: "
        f"{loss_text(row['measured'])}, "
        f"{verdict} the interval, {abs(row['error']):.1%} off."
    )


def _has_interval(row: Mapping[str, Any]) -> bool:
    return any(end is not None for end in row["run_interval"])


def _held_out_words(holdout: Mapping[str, Any], what: str) -> str:
    """How the predictions of several runs, `what` they are, compare with their measurements."""
    off = f"mean absolute error {holdout['mean_absolute_error']:.2%}, bias {holdout['bias']:+.2%}"
    if not any(map(_has_interval, holdout["rows"])):  # of which nothing is outside
        return f"{what} have no intervals; {off}"
    half = holdout["half_width"]
    width = "an end of it open" if half is None else f"±{half:.2%}"
    if half is not None and half > 1:
        width = f"a factor of {1 + half:.3g} either way, which says little"
    return (
        f"{holdout['covered']} of {len(holdout['rows'])} {what} lie inside their 95 % interval "
        f"({width}); {off}"
    )


def _extrapolation_sentence(document: Mapping[str, Any]) -> str:
    """What the law made of the largest runs of the table from far smaller ones; "" where that was
    not asked, and why where it could not be tried."""
    trial = document.get("extrapolation")
    if not trial:
        return ""
    if "why" in trial:
        return f"No backtest: {trial['why']}."
    count = " (6 N D)" if trial.get("flops_convention") == SIX_ND else ""
    unit = f"{NOUNS.get(trial['column'], trial['column'])}{count}"
    most = amount_text(trial["largest"], trial["column"])
    what = "optimal sizes" if document["law"] == "isoflop" else "runs"
    what += f" at {trial['ratio']:.3g} times as much"
    return (
        f"Backtest: predicted from the {trial['n_points']} runs of at most {most} {unit}, "
        f"{_held_out_words(trial, what)}."
    )


def fit_summary(document: Mapping[str, Any], brief: bool = False, alone: bool = True) -> str:
    """A fit as text: the law, the fall of the loss, prediction against measurement, warnings.
    `brief` has only the last prediction; without `alone`, the headline and the warnings are left to
    the report that it is a part of."""
    parts = []
    for name, value in document["params"].items():
        low, high = document["intervals"][name]
        if name.endswith("exponent"):  # of which 1e-14 is 0
            low, high = (end if end is None else round(end, 4) for end in (low, high))
        ends = f"{interval_end(low)} to {interval_end(high)}"
        parts.append(f"{LETTERS.get(name, name)} = {estimate(value, low, high)} ({ends})")
    lines = [words] if alone and (words := headline(document)) else []
    lines.append(f"{document['formula']}: {', '.join(parts)}; 95 % by {document['method']}")
    if (fall := document["fall"]) and fall["in_seed_sd"]:
        sd = document["seed_noise"]["sd"]
        nats = " nats" if "nats" in document["unit"] else ""
        lines.append(
            f"the loss falls by {fall['nats']:.3g}{nats} from the smallest to the largest, "
            f"{fall['in_seed_sd']:.0f} times the seed-to-seed standard deviation ({sd:.2g})"
        )
    if laws := document.get("laws"):
        lines.append(laws_sentence(laws))
    predictions = document["predictions"][-1:] if brief else document["predictions"]
    lines += [_prediction_line(row, document) for row in predictions]
    if "without_prior" in document:
        lines += _prior_lines(document, brief)
    if scored := document.get("score"):
        lines.append(
            f"the given point: objective {scored['objective']:.6g}, {scored['above_optimum']:.3%} "
            f"above the optimum, R² {interval_end(scored['r2'], '.4f')}"
        )
    lines += document.get("compare", {}).get("words", [])
    lines += document.get("recipe", {}).get("words", [])
    if section := document.get("inference"):
        optima = section["optima"][-1:] if brief else section["optima"]
        lines += [line for row in optima for line in _lifetime_lines(row, section["tokens"])]
    if plan := document.get("next_runs"):
        lines.append(
            f"{len(plan['runs'])} runs of {flops_text(plan['spent'])} FLOPs in all would narrow "
            f"the interval at the target from ±{plan['half_width_before']:.2%} to "
            f"±{plan['half_width_after']:.2%} of the loss"
        )
    if "settling" in document:
        lines.append(f"after {document['n_points']} runs: {document['settling']['suggestion']}")
    if "multiverse" in document:
        lines.append(_multiverse_sentence(document["multiverse"]))
    told = document["warnings"] if alone else ()
    return "\n".join([*lines, *(f"warning: {text}" for text in told)])


def _prior_lines(document: Mapping[str, Any], brief: bool) -> list[str]:
    """What the rows alone would have said, beside a prior."""
    without = document["without_prior"]
    parts = []
    for name, (mean, sd) in document["options"]["prior"].items():
        low, high = (interval_end(x) for x in without["intervals"][name])
        parts.append(f"{name} = {without['params'][name]:.4g} ({low} to {high}), "
                     f"with {mean:g} ± {sd:g} {document['params'][name]:.4g}")  # fmt: skip
    rows = without["predictions"][-1:] if brief else without["predictions"]
    rows = [{k: v for k, v in row.items() if k not in ("parts", "regret")} for row in rows]
    own = [_prediction_line(row, document) for row in rows]
    return [f"without the prior: {line}" for line in ["; ".join(parts), *own]]


def laws_sentence(laws: Sequence[Mapping[str, Any]]) -> str:
    """Over which laws a prediction is averaged, each with its weight."""
    weights: dict[str, float] = {}
    for law in laws:
        weights[law["law"]] = weights.get(law["law"], 0.0) + law["weight"]
    shown = [f"{name} {weight:.0%}" for name, weight in weights.items() if weight >= 0.005]
    if len(shown) > 1:
        return f"predictions are averaged over laws: {', '.join(shown)}"
    alone = shown[0].split()[0]
    if not all(law.get("fitted", True) for law in laws):
        return f"{alone} alone could be fitted, so no interval holds the choice of the law"
    if left_out := {law["law"]: law["reason"] for law in laws if not law["weight"]}:
        told = "; ".join(f"{name} is left out: {reason}" for name, reason in left_out.items())
        return f"predictions are of {alone} alone: {told}"
    return f"predictions are of {alone} alone: the other laws have next to no weight"


def _parts_words(parts: Mapping[str, float | None]) -> str:
    """What an interval is made of."""
    of = {name: "open" if x is None else f"±{x:.2%}" for name, x in parts.items()}
    words = f"{of['noise']} noise of a run, {of['parameters']} parameters"
    if (parts["floor"] or 0.0) > 0.005 * (parts["parameters"] or 0.0):
        words += f" ({of['floor']} by E alone)"
    return words + f", {of['law']} choice of the law"


def _multiverse_sentence(section: Mapping[str, Any]) -> str:
    def ends(key: str, written: Callable[[float], str]) -> str:
        spread = section["spread"][key]
        return " to ".join("open" if spread[k] is None else written(spread[k])
                           for k in ("least", "most"))  # fmt: skip

    predicted = quantity if section["target"].startswith("the size") else significant
    return (
        f"across {len(section['universes'])} analysis choices, the exponent ranges from "
        f"{ends('exponent', '{:.3f}'.format)}, and {section['target']} from "
        f"{ends('prediction', predicted)}"
    )


def _prediction_line(row: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """A prediction: of a law of one column, or of what is optimal for a budget."""
    if not {"flops", "params"} <= row.keys():
        digits = ".4f" if abs(row[document["response"]]) >= SMALL else ".4g"
        low, high = (interval_end(x, digits) for x in row["interval"])
        at = amount_text(row[document["against"]], document["against"])
        value = row[document["response"]]
        return f"predicted at {at}: {value:{digits}} (law: {low} to {high})"
    words = f"best for {flops_text(row['flops'])} FLOPs"
    if row["params"] is None:
        return f"{words}: the law has no optimum there"
    counted = PER_TOKEN * row["params"] * row["tokens"]
    if abs(counted / row["flops"] - 1) > SAME_COUNT:
        words += f" as the table counts them ({flops_text(counted)} as 6 N D)"
    words += ": "

    def amount(name: str) -> str:
        low, high = ("open" if x is None else quantity(x) for x in row["intervals"][name])
        return f"{quantity(row[name])} ({low} to {high})"

    words += f"{amount('params')} parameters, {amount('tokens')} tokens, "
    words += f"{row['tokens_per_param']:.3g} tokens per parameter"
    if row["loss"] is None:
        return words
    low, high = (loss_text(x) for x in row["intervals"]["loss"])
    words += f", loss {loss_text(row['loss'])} ({low} to {high})"
    if (parts := row.get("parts")) and document["law"] == AUTO:  # of others, the law is no part
        words += f": {_parts_words(parts)}"
    if (most := row.get("regret", {}).get("quantile_95")) is not None:
        words += f"; this choice costs at most {most:.2g} of loss (95 %)"
    return words


def _lifetime_lines(row: Mapping[str, Any], served: float) -> list[str]:
    """The optimum of a budget where a model is also used."""
    words = f"with {quantity(served)} tokens of inference"
    if not row["same_loss"] or not row["same_total"]:
        return [f"{words}: the law has no optimum for {flops_text(row['flops'])} FLOPs"]

    def size(at: Mapping[str, Any]) -> str:
        n, d = (
            f"{quantity(at[k])} ({' to '.join('open' if x is None else quantity(x) for x in ends)})"
            for k, ends in ((k, at["intervals"][k]) for k in ("params", "tokens"))
        )
        return f"{n} parameters, {d} tokens"

    cheap, best = row["same_loss"], row["same_total"]
    saved = " to ".join("open" if x is None else f"{x:.1%}" for x in cheap["intervals"]["saved"])
    low, high = (loss_text(x) for x in best["interval"])
    return [
        f"{words}, the cheapest that is as good as the best for {flops_text(row['flops'])} FLOPs "
        f"of training: {size(cheap)}; {flops_text(cheap['total_flops'])} FLOPs in all, "
        f"{cheap['saved']:.1%} ({saved}) less than with that",
        f"{words} and {flops_text(row['flops'])} FLOPs in all: {size(best)}, "
        f"loss {loss_text(best['loss'])} ({low} to {high})",
    ]


def expected_exponent_sentence(
    cards: Sequence[Mapping[str, Any]], document: Mapping[str, Any]
) -> str:
    """The measured exponent beside the one that the data were made to have, if they were."""
    expected = [card["expected_exponent"] for card in cards if "expected_exponent" in card]
    if len(expected) != 1:
        return ""
    low, high = document["intervals"]["alpha"]
    inside = (low is None or low <= expected[0]) and (high is None or expected[0] <= high)
    return (
        f"The data were made for an exponent of {expected[0]:g}; measured: "
        f"{document['params']['alpha']:.4g} ({interval_end(low)} to {interval_end(high)}), "
        f"{'inside' if inside else 'outside'} the interval."
    )
