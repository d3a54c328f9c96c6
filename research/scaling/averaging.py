"""The laws that the data cannot tell apart, and their weights.

Which law holds is not known, and far from the data laws part that agree within them. Every
candidate is fitted; its weight is what the rows say for it, exp(-AIC / 2) with the errors that rows
share (Burnham and Anderson 2002), times the density of what it predicts for the largest budgets
from the others. No candidate is the truth, so how well one follows rows says little of where it
goes beyond them: in this a table counts as TELLING rows (a tempered likelihood, Grünwald and van
Ommen 2017), else a law of six parameters has all the weight of eighteen rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import compute_optimal
from research.scaling.extrapolation import effects_of, score_largest, stretch
from research.scaling.fit import Fit
from research.scaling.law import Law
from research.scaling.laws import break_points, broken_size, named_law
from research.scaling.options import Options, filter_rows, split_rows
from research.tables import table

BY_BOTH = ("chinchilla", "overtraining", "interaction", "skaling", "broken_size")
BY_ONE = ("power", "broken")
READ_ONE, READ_BOTH = ("params", "loss"), ("params", "tokens", "loss")
DRAWS = 500  # of the heaviest law
FEWEST = 0.2  # of that: of a law of less weight, whose draws count for less
SPEAKS = 0.15  # weight of a law that may stand for all
LEAST = 0.01  # weight, below which a law is told and not drawn
VANISHED = 0.01  # of the least loss: a floor that is none
TELLING = 3  # rows, that a table counts as where laws are told apart by how they follow it
# What predictions of a law at ten times the compute have been worth, those of the others being 1:
# one over how many times as far off they were (docs/reproductions.md).
RECORD = {"skaling": 0.2}

Weighed = tuple[Fit, float, float | None]  # with its AIC, and `score_largest`


@dataclass(frozen=True)
class Member:
    """A law with its weight, what that is made of, and draws [k, P] of its parameters."""

    fit: Fit
    weight: float
    aic: float
    score: float | None
    draws: np.ndarray
    stretch: float  # by which errors of its own extrapolations exceeded what it said of them


@dataclass(frozen=True)
class Average:
    """Members with weights that sum to one, in the order of the candidates, and the laws that could
    not be fitted, were left out or weigh next to nothing, with the reason."""

    members: list[Member]
    others: list[dict[str, Any]]
    fits: list[Fit]  # of all candidates that could be fitted

    @property
    def best(self) -> Fit:
        """The first law of some weight, whose parameters stand for the average."""
        heaviest = max(self.members, key=lambda m: m.weight)
        return next((m for m in self.members if m.weight >= SPEAKS), heaviest).fit

    @property
    def weighted(self) -> list[tuple[Fit, float]]:
        """The fits with their weights, `best` first."""
        pairs = [(m.fit, m.weight) for m in self.members]
        return sorted(pairs, key=lambda pair: pair[0] is not self.best)

    @property
    def weights(self) -> np.ndarray:
        return np.array([m.weight for m in self.members])


def candidates(rows: Sequence[table.Row], options: Options) -> list[Law]:
    """The laws that can be asked about these rows: those of params and tokens where most rows have
    both, and both vary, each in its own way, with a break at each of a few sizes; else those of the
    column `against`. Raises BadInput for a column that cannot be read."""
    of_one = [named_law(name, options.against) for name in BY_ONE]
    columns = {str(name) for row in rows for name in row}
    if options.predict or options.against != "params" or not {*READ_BOTH} <= columns:
        return of_one
    of_size, both = (_fitted_rows(rows, needed, options) for needed in (READ_ONE, READ_BOTH))
    if not both or len(both) < len(of_size) / 2:
        return of_one
    if compute_optimal.vary_together(both):
        if options.predict_flops:
            raise BadInput(
                "--predict_flops: params and tokens vary together in these rows, so no optimal "
                "size can be told; --against=flops predicts the loss of such runs at a budget"
            )
        return of_one
    if any(len({row[name] for row in both}) == 1 for name in ("params", "tokens")):
        return of_one
    out = [named_law(name) for name in BY_BOTH if name != "broken_size"]
    if "broken_size" in BY_BOTH:
        sizes = np.array([row["params"] for row in both])
        out += [broken_size(float(at)) for at in break_points(sizes)]
    return out


def _fitted_rows(
    rows: Sequence[table.Row], needed: Sequence[str], options: Options
) -> list[table.Row]:
    usable, dropped = table.usable_rows(rows, needed, options.where, options.finished)
    return filter_rows(usable, dropped, options, needed[:-1], needed[-1])[0]


def fit_average(laws: Sequence[Law], rows: Sequence[table.Row], options: Options) -> Average:
    """The candidates fitted to the rows. Raises BadInput where none can be fitted."""

    def fit(law: Law) -> Fit:
        options.check_against(law)
        return Fit(law, split_rows(law, rows, options), options)

    return weigh([(law.name, functools.partial(fit, law)) for law in laws], DRAWS)


def average_of(fit: Fit) -> Average:
    """The average that one law is, for what asks of averages alone."""
    return weigh([(fit.law.name, lambda: fit)], DRAWS)


def weigh(laws: Sequence[tuple[str, Callable[[], Fit]]], draws: int) -> Average:
    """The laws (by name, and how each is fitted) that can be fitted, with their weights, and so
    many draws of the heaviest."""
    found, others = _fit_all(laws)
    fits = _leave_out(found, others)
    if any(score is None for *_, score in fits):  # to be weighed alike or not at all
        fits = [(fit, aic, None) for fit, aic, _ in fits]
    kinds: dict[str, list[float]] = {}
    for fit, aic, _ in fits:
        kinds.setdefault(fit.law.name, []).append(aic)
    best = min(aic for _, aic, _ in fits)
    scores = [
        _support(aic - best, np.array(kinds[fit.law.name]) - best, TELLING / fit.problem.n)
        + (score or 0.0)
        + math.log(RECORD.get(fit.law.name, 1.0))
        for fit, aic, score in fits
    ]
    weights = np.exp(np.array(scores) - max(scores))
    weights /= weights.sum()
    enough = weights >= LEAST
    members = []
    for (fit, aic, score), weight, keep in zip(fits, weights, enough, strict=True):
        if keep:
            share = float(weight / weights[enough].sum())
            few = math.ceil(draws * max(FEWEST, weight / weights.max()))
            members.append(Member(fit, share, aic, score, _draws(fit, few), stretch(fit)))
        else:
            reason = f"its weight, {weight:.1g}, is too small to count"
            others.append({"law": fit.law.name, "weight": float(weight), "aic": aic,
                           "reason": reason})  # fmt: skip
    return Average(members, others, [fit for fit, *_ in found])


def _support(aic: float, kind: np.ndarray, telling: float) -> float:
    """The logarithm of what rows say for a law, of an AIC among those of its `kind`.

    One kind is one candidate, at however many sizes its exponent may change. The size is a
    parameter, told by the rows as any other: it is only the kinds that they hardly tell apart."""
    evidence = -2 * float(np.log(np.mean(np.exp(-(kind - kind.min()) / 2)))) + float(kind.min())
    of_kind = -(aic - evidence) / 2 - math.log(len(kind))
    return of_kind - min(1.0, telling) * evidence / 2


def _fit_all(
    laws: Sequence[tuple[str, Callable[[], Fit]]],
) -> tuple[list[Weighed], list[dict[str, Any]]]:
    """The fits, each with its AIC and how it predicts the largest budgets, and the laws that could
    not be fitted, with the reason. Raises BadInput where none can be."""
    fits, others = [], []
    errors: tuple[str, ...] = ()
    for name, make in laws:
        try:
            fit = make()
            fits.append((fit, _aic(fit), score_largest(fit)))
        except BadInput as error:
            reason = error.problems[0]
            others.append({"law": name, "weight": 0.0, "fitted": False, "reason": reason})
            errors = errors or tuple(error.problems)
    if not fits:
        raise BadInput(*errors)
    return fits, others


def _leave_out(fits: list[Weighed], others: list[dict[str, Any]]) -> list[Weighed]:
    """The fits whose loss falls (all, where none does), and has a floor where the first's has one;
    to the `others` those without.

    An E of nothing is the edge of what E may be, and no text can be predicted without a loss: in
    laws that bend, the bend has then taken the place of the floor, and what they say is far too low
    (docs/reproductions.md)."""
    falls = [not rising(fit) for fit, *_ in fits]
    kept = []
    for (fit, aic, score), right in zip(fits, falls, strict=True):
        told = {"law": fit.law.name, "weight": 0.0, "aic": aic}
        if not right and any(falls):
            others.append(told | {"reason": rising(fit)})
        elif kept and has_floor(kept[0][0]) and not has_floor(fit):
            reason = f"its E vanishes, and that of {kept[0][0].law.name} does not"
            others.append(told | {"floor": False, "reason": reason})
        else:
            kept.append((fit, aic, score))
    return kept


def _draws(fit: Fit, k: int) -> np.ndarray:
    if fit.draws is not None:
        return fit.draws
    return fit.best[None] if fit.options.bootstrap == 0 else fit.simulate(k)


def _aic(fit: Fit) -> float:
    """Not corrected for few rows: with hardly more rows than parameters the correction would
    choose the simplest law whatever they say, and its interval is the narrowest."""
    out = effects_of(fit).deviance + 2 * int((~fit.problem.fixed_mask).sum())
    if prior := fit.problem.prior:
        out += float(np.sum(prior.off(fit.law, fit.best[None])[0] ** 2))
    return out


def rising(fit: Fit) -> str:
    """Why this is no law of a loss that falls; "" if it is."""
    names = [name for name in compute_optimal.EXPONENTS if fit.params.get(name, 1.0) < 0]
    return f"{names[0]} is negative: its loss would rise with size or tokens" if names else ""


def has_floor(fit: Fit) -> bool:
    """Whether E is more than nothing beside the least loss of the rows."""
    least = float(np.exp(fit.problem.log_y.min()))
    return fit.params.get("E", least) >= VANISHED * least
