"""Whether what is called a loss, or a score, gets better with compute at all: an accuracy among the
losses, or an error rate among the scores, is described by no law here, and fitted all the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.tables.columns import COUNTS, Row
from research.tables.table import ALIKE

LEAST_TO_RANK, RISES = 6, 0.5  # rows, and rank correlation with compute, of what is no loss
SURE = 2.5  # standard deviations of a rank correlation of what is not related


def check_trends(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """Warnings about rows whose losses rise with compute, or whose scores fall, where a law of the
    columns `needed` reads these."""
    return _rising_losses(rows, needed) + _falling_scores(rows, needed)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of the ranks of x [n] and y [n], of which equal values share one; 0 where
    either does not vary."""
    a, b = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    return float(np.corrcoef(a, b)[0, 1]) if len(a) and np.ptp(a) and np.ptp(b) else 0.0


def is_trend(correlation: float, n: int) -> bool:
    """Whether a rank correlation of n pairs is large, and larger than 99 % are by chance."""
    return abs(correlation) >= max(RISES, SURE / math.sqrt(max(n - 1, 1)))


def highest_score(rows: Sequence[Row]) -> float:
    """The most that a score of these rows may be: 1, or 100 of percent; inf of another response."""
    most = max((float(row.get("accuracy") or 0.0) for row in rows), default=0.0)
    return next((limit for limit in (1.0, 100.0) if 0 < most <= limit), math.inf)


def beyond_scores(rows: Sequence[Row], predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where a law of scores was cut off at the most that one may be."""
    most = highest_score(rows)
    cut = [p for p in predictions if "accuracy" in p
           and most in (p["accuracy"], *p["interval"], *p["run_interval"])]  # fmt: skip
    if not cut or most == math.inf:
        return []
    above = sum(p["accuracy"] == most for p in cut)
    what = f"{above} of {len(predictions)} predictions are" if above else "intervals are"
    return [
        f"{what} cut off at {most:g}, the most that a score may be: the law goes beyond it, so "
        "these rows do not tell where scores level off, nor what they are so far out"
    ]


def _rising_losses(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    both, alone = {"params", "tokens"} <= set(needed), len(needed) == 2 and needed[0] in COUNTS
    if "loss" not in needed or not (both or alone) or len(rows) < LEAST_TO_RANK:
        return []
    # By whole steps, which make no other budget of one.
    of = ("params", "tokens") if both else needed[:1]
    amounts = np.array([math.prod(row[name] for name in of) for row in rows])
    steps = np.round(np.log(amounts) / math.log(ALIKE))
    if (along := rank_correlation(steps.tolist(), [row["loss"] for row in rows])) < RISES:
        return []
    what, by = ("compute", "flops") if both else (needed[0], needed[0])
    return [
        f"losses rise with {what} (rank correlation {along:+.2f}): an accuracy or another score "
        f"is no loss; --law=logistic --against={by} --columns=accuracy=… is of accuracies, and "
        "--columns='loss=loss*-1' turns log likelihoods"
    ]


def _falling_scores(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    by = needed[0]
    if "accuracy" not in needed or by not in (*COUNTS, "loss"):
        return []
    along = rank_correlation(*([row[name] for row in rows] for name in (by, "accuracy")))
    if (along > 0) == (by != "loss") or not is_trend(along, len(rows)):
        return []
    how = "the loss falls" if by == "loss" else f"{by} grow"
    return [
        f"scores fall as {how} (rank correlation with {by} {along:+.2f}), and the law rises: it "
        "does not describe them; of an error rate, add a column of 1 minus it to the table"
    ]
