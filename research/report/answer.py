"""The answer that opens the page and the terminal's summary, and the methods that agree with it or
do not."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.io.humanize import amount_text, flops_text, quantity
from research.io.text_table import format_table
from research.report.fit_text import headline, interval_end, laws_sentence, loss_text
from research.report.methods import NAMES, Methods
from research.scaling.compute_optimal import AHEAD

HEADINGS = ("method", "exponent of N*", "N*", "D*", "tokens per parameter", "loss")
SHORT = (0, 1, 2, 5)  # of them, on a terminal
LEFT_OUT = "left out: "
AMOUNTS = ("params", "tokens", "tokens_per_param")
WIDE = 10.0  # factor between the ends of an interval of N*, from which agreeing says little


def answer_sentences(
    found: Methods,
    document: Mapping[str, Any] | None,
    verdict: str = "",
    unfinished: tuple[int, int] = (0, 0),
    why: str = "",
) -> list[str]:
    """What a group of runs says: what to train at the target, how the optimal size grows, the
    `verdict` on larger runs, what was held out; and how many of its runs are not done, of how many.
    `document` is that of its law, where there is no target; `why` there is none."""
    out = []
    if found.answer:
        document = found.document(found.answer)
        out += [_train_sentence(found), *_growth_sentence(document)]
        if found.answer != "auto":
            out.append(f"This is {NAMES[found.answer]}, alone: {found.reasons['auto']}.")
    elif document and document["predictions"]:
        row = document["predictions"][-1]
        against = document["against"]
        value, at = row.get(document["response"]), row.get(against)
        if value is not None and at is not None:
            ends = _losses(row["interval"])
            words = f"Expected {document['response']} at {amount_text(at, against)}"
            out.append(f"{words}: {loss_text(value)} ({ends}).")
    elif why:
        out += ["No law was fitted to these runs.", f"{why[0].upper()}{why[1:]}."]
    told = headline(document)
    out += [words for words in (f"{verdict}." if verdict else "", told) if words]
    if document and document["options"]["best_of"]:
        out.append("Only the best setting of each size and length counts.")
    count, of = unfinished
    if count:
        are = "is" if count == 1 else "are"
        out.append(f"{count} of {of} runs {are} not done, and in no law.")
    return out


def _train_sentence(found: Methods) -> str:
    at = f"{flops_text(found.target)} FLOPs (6 N D, {AHEAD:g} times the largest budget)"
    if (best := found.prediction(found.answer)) is None:
        return f"No optimal size for {at}: the law has none there."
    size, tokens, loss = quantity(best["params"]), quantity(best["tokens"]), ""
    if best["loss"] is not None:
        ends = _losses(best["intervals"]["loss"])
        loss = f"expected loss {loss_text(best['loss'])} ({ends})"
    low, high = best["intervals"]["params"]
    if low and high and high <= WIDE * low:
        words = f"Train {size} parameters on {tokens} tokens for {at}"
        return f"{words}: {loss}." if loss else f"{words}."
    ends = " to ".join("open" if end is None else quantity(end) for end in (low, high))
    words = f"These runs do not determine the best size for {at}: {size} parameters ({ends})"
    return f"{words}, {loss}." if loss else f"{words}."


def _growth_sentence(document: Mapping[str, Any]) -> list[str]:
    value, ends = _exponent(document)
    if value is None:
        return []
    if not any(end is not None for end in ends):
        return ["The exponent of the optimal size is not identified: its interval is open."]
    return [f"The optimal size grows as C^{value:.2f} ({_interval(ends, '.2f')})."]


def _exponent(document: Mapping[str, Any]) -> tuple[float | None, Sequence[float | None]]:
    """The exponent of N*, and its interval."""
    optimal, name = document["optimal"] or {}, "params_exponent"
    return optimal.get(name), optimal.get("intervals", {}).get(name, (None, None))


def methods_table(found: Methods) -> list[list[str]]:
    """A line for each method, below HEADINGS: what it says of the target; or why it says nothing,
    in the second cell."""
    out = []
    for name, title in NAMES.items():
        if name in found.reasons:
            out.append([title, f"{LEFT_OUT}{found.reasons[name]}", *[""] * (len(HEADINGS) - 2)])
        if name not in found.analyses:
            continue
        value, ends = _exponent(found.document(name))
        exponent = "none" if value is None else f"{value:.2f} ({_interval(ends, '.2f')})"
        best = found.prediction(name)
        if best is None:
            out.append([title, exponent, "no optimum there", "", "", ""])
            continue
        cells = []
        for key in AMOUNTS:
            low, high = ("open" if x is None else quantity(x) for x in best["intervals"][key])
            cells.append(f"{quantity(best[key])} ({low} to {high})")
        loss = "not predicted"
        if best["loss"] is not None:
            loss = f"{loss_text(best['loss'])} ({_losses(best['intervals']['loss'])})"
        out.append([title, exponent, *cells, loss])
    return out


def methods_text(found: Methods) -> str:
    """The table for a terminal: without tokens, and below it why a method is left out."""
    rows, reasons = [], []
    for line in methods_table(found):
        if line[1].startswith(LEFT_OUT):
            reasons.append(f"{line[0]}: {line[1]}")
        else:
            rows.append([line[i] for i in SHORT])
    table = [format_table([HEADINGS[i] for i in SHORT], rows)] if rows else []
    return "\n".join([*table, *reasons])


def agreement_sentences(found: Methods) -> list[str]:
    """Whether the intervals of N* overlap, and what the average is over."""
    spans = {}
    for name in found.analyses:
        if best := found.prediction(name):
            low, high = best["intervals"]["params"]
            spans[name] = (low or 0.0, math.inf if high is None else high)
    out = []
    if len(spans) > 1:
        low, high = max(s[0] for s in spans.values()), min(s[1] for s in spans.values())
        if low <= high:
            ends = " to ".join("open" if math.isinf(x) or not x else quantity(x)
                               for x in (low, high))  # fmt: skip
            which = "both" if len(spans) == 2 else f"all {len(spans)}"
            words = f"The 95 % intervals of N* of {which} methods overlap ({ends})"
        else:
            above = max(spans, key=lambda name: spans[name][0])
            below = min(spans, key=lambda name: spans[name][1])
            words = (
                f"The 95 % intervals of N* do not all overlap: that of {NAMES[above]} begins at "
                f"{quantity(low)}, where that of {NAMES[below]} has ended, at {quantity(high)}"
            )
        wide = [NAMES[name] for name, (a, b) in spans.items() if not a or b > WIDE * a]
        if wide:
            words += f"; a weak check, since some span more than a factor of {WIDE:g}: "
            words += ", ".join(wide)
        out.append(f"{words}.")
    if "auto" in found.analyses:
        words = laws_sentence(found.document("auto")["laws"])
        out.append(f"{words[0].upper()}{words[1:]}.")
    return out


def _losses(ends: Sequence[float | None]) -> str:
    return " to ".join(map(loss_text, ends))


def _interval(ends: Sequence[float | None], spec: str) -> str:
    return " to ".join(interval_end(end, spec) for end in ends)
