"""A whole analysis of a table: the fit, and what was asked beside it."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.errors import BadInput
from research.scaling import (
    averaged_predictions,
    averaging,
    checks,
    compare,
    design,
    downstream,
    extrapolation,
    fit_document,
    groups,
    influence,
    lifetime,
    minima_document,
    multiverse,
    recipes,
)
from research.scaling.fit import FEW, Fit
from research.scaling.law import Law
from research.scaling.laws import AUTO, METHODS, RECIPE, named_law
from research.scaling.options import Options, check_used, filter_rows, split_rows
from research.scaling.statistics import NORMAL
from research.tables import comparable, replicates, sampling, table, where
from research.tables.advice import unread_tokens
from research.tables.cells import check_columns

AGAINST_PRIOR = 2.0  # standard deviations between rows and a prior, from which that is told


def fit_law(law: str | Law, rows: Sequence[table.Row], **options: Any) -> dict[str, Any]:
    """The document of `fit.json` for a law (an object, or a name of LAWS or METHODS) on `rows` (see
    table.read_runs); `options` are the fields of Options.

    Raises BadInput for a table that cannot be fitted, and for options that do not fit the law.
    """
    return analyze(law, rows, options).document


@dataclass(frozen=True)
class Analysis:
    """The document of fit.json, its fit (None for minima, which have no law), and the rows."""

    document: dict[str, Any]
    fit: Fit | None
    rows: Sequence[table.Row]


@dataclass(frozen=True)
class Wanted:
    """What is asked beside the fit of a law: see `analyze`."""

    compare_by: str | None = None
    multiverse_too: bool = False
    next_budget: float | None = None
    anytime: bool = False
    checks_too: bool = True
    gate: str | None = None
    scores: str | None = None

    def check(self) -> None:
        """Raise BadInput for what does not go together."""
        if self.gate and not self.compare_by:
            raise BadInput(
                f"--gate={self.gate}: of two groups; add --compare=COLUMN, which tells them"
            )
        names = ("multiverse_too", "next_budget", "anytime")
        asked = next((name for name in names if getattr(self, name)), None)
        if self.compare_by and asked:
            flag = {"multiverse_too": "multiverse", "next_budget": "next_runs"}.get(asked, asked)
            raise BadInput(
                f"--{flag}: is for one law, and --compare={self.compare_by} fits several groups; "
                f"fit one of them with --where={self.compare_by}==NAME"
            )


@dataclass
class _Answer:
    """The sections of a fit to the `usable` rows, what there is to say of these, in which columns
    they are `mixed` that are not comparable, and how it is tried on the table's largest runs."""

    name: str
    options: Options
    fit: Fit | None
    sections: dict[str, Any]
    usable: list[table.Row]
    told: list[str]
    mixed: dict[str, dict[str, int]]
    extrapolate: Callable[[], dict[str, Any]] | None = None


def analyze(
    law: str | Law, rows: Sequence[table.Row], options: Mapping[str, Any], **wanted: Any
) -> Analysis:
    """`fit_law`, and the sections that are `wanted` (the fields of Wanted): "compare" (groups by
    the column `compare_by`, and whether one passes the `gate`), "multiverse" (of a law of LAWS or
    METHODS), "next_runs" (of at most `next_budget` FLOPs), "settling" (`anytime`) and "downstream"
    (of the column `scores`); without `checks_too` minima are not located again without each budget,
    and nothing is extrapolated within the table. Raises BadInput for what does not go together."""
    chosen, asked = Options(**options), Wanted(**wanted)
    chosen.check()
    check_used(law if isinstance(law, str) else law.name, options)
    asked.check()
    check_names(law, rows, chosen)
    few = (chosen.sample, chosen.seed, chosen.where, chosen.last_rows)
    most = sampling.MOST_OF_AVERAGE if law == AUTO else sampling.MOST_ROWS
    most = math.inf if law in METHODS else most  # these take no long
    rows, sampled = sampling.sample_rows(rows, *few, most)
    rows, grouping = groups.grouped(rows, chosen)
    if isinstance(law, str) and law in METHODS:
        answer = _by_minima(law, rows, chosen, grouping, asked)
    else:
        answer = _by_law(law, rows, chosen, grouping, asked)
    chosen, sections, told = answer.options, answer.sections, answer.told
    if asked.multiverse_too:
        sections["multiverse"] = multiverse.refit_universes(answer.name, rows, chosen)
    if chosen.prior:
        plain = {name: value for name, value in options.items() if name != "prior"}
        other = analyze(law, rows, plain, compare_by=asked.compare_by, checks_too=False).document
        kept = ("params", "intervals", "predictions", "optimal")
        sections["without_prior"] = {name: other[name] for name in kept}
        told += _prior_warnings(chosen.prior, other)
    sections["extrapolation"] = None
    if asked.checks_too and answer.extrapolate and not chosen.holdout and chosen.bootstrap != 0:
        try:
            sections["extrapolation"] = answer.extrapolate()
        except BadInput as error:
            sections["extrapolation"] = {"rows": [], "why": str(error)}
    sections["warnings"] = [*told, *sections["warnings"]]
    if asked.scores:
        sections["downstream"] = downstream.fit_downstream(answer.usable, chosen, asked.scores)
    if answer.mixed:
        sections["mixed"] = answer.mixed
    if sampled:
        sections["sample"] = sampled
        of = f"{sampled['rows']:,} of {sampled['of']:,} rows"
        sections["warnings"].insert(0, f"fitted to a sample of {of} (--sample, --seed)")
    return Analysis(_replace_non_finite(sections), answer.fit, answer.usable)


def check_names(law: str | Law, rows: Sequence[table.Row], options: Options) -> None:
    """Raises BadInput where the table has none of a column that the law reads, with the flag that
    names it, before anything else is said of the table."""
    if law == RECIPE:
        return  # which reads columns by several names
    if isinstance(law, str) and law in METHODS:
        needed: Sequence[str] = minima_document.needed_columns(law)
    elif law == AUTO:
        needed = (options.against, "loss")
    else:
        named = named_law(law, options.against) if isinstance(law, str) else law
        needed = (*named.columns, named.response)
    check_columns(rows, needed, getattr(rows, "advice", ""))


def _by_minima(
    name: str,
    rows: Sequence[table.Row],
    options: Options,
    grouping: comparable.Grouping,
    asked: Wanted,
) -> _Answer:
    """One of METHODS, which have no law of the loss."""
    if asked.compare_by:
        raise BadInput(f"--compare: {name} fits no law; give --law=power or chinchilla")
    if asked.next_budget or asked.anytime:
        raise BadInput(f"--next_runs, --anytime: {name} predicts no loss; give --law=chinchilla")
    needed = minima_document.needed_columns(name)
    usable, told, mixed = _checked(rows, needed, "loss", name, options, grouping, None)
    sections = minima_document.fit_minima(name, rows, options)
    answer = _Answer(name, options, None, sections, usable, told, mixed)
    if asked.checks_too:
        refit = functools.partial(minima_document.fit_minima, name)
        entries, decisive = influence.minima_influence(usable, options, sections, refit)
        sections["influence"] = entries
        sections["warnings"] = [*sections["warnings"], *decisive]
        if name == "isoflop":
            tried = minima_document.extrapolate_minima
            answer.extrapolate = functools.partial(tried, usable, options)
    return answer


def _by_law(
    law: str | Law,
    rows: Sequence[table.Row],
    options: Options,
    grouping: comparable.Grouping,
    asked: Wanted,
) -> _Answer:
    """A law, the average of laws, or a law of every group of a comparison."""
    # Of an average, the simplest law stands for what all of them need.
    laws, far = averaging.candidates(rows, options) if law == AUTO else [], []
    chosen = laws[0] if laws else law
    if chosen == RECIPE:
        recipes.check(asked.compare_by, asked.next_budget, asked.anytime, asked.multiverse_too)
        rows, named, far = recipes.prepare(rows, options)
    else:
        named = named_law(chosen, options.against) if isinstance(chosen, str) else chosen
    options.check_against(named)
    needed = [*named.columns, named.response]
    how = (options, grouping, asked.compare_by)
    usable, told, mixed = _checked(rows, needed, named.response, named.name, *how)
    if has_outliers(named, rows, options):
        options = replace(options, objective="huber_log")
        told.append(
            "rows far off the law that the others show: it is fitted by Huber's loss, which "
            "they do not move (--objective=mse_log lets them)"
        )
    average, extrapolate = None, None
    if asked.compare_by:
        fit, section = compare.fit_groups(named, rows, options, asked.compare_by, asked.gate)
        sections = {**fit_document.build_document(fit), "compare": section}
    elif law == AUTO:
        average = averaging.fit_average(laws, rows, options)
        fit, sections = average.best, averaged_predictions.build_average(average, options)
        extrapolate = functools.partial(averaged_predictions.extrapolate_average, average, options)
    else:
        fit = Fit(named, split_rows(named, rows, options), options)
        sections = fit_document.build_document(fit)
        extrapolate = functools.partial(extrapolation.extrapolate_fit, fit)
    if isinstance(named, recipes.RecipeLaw):
        assert fit
        extrapolate = None
        sections |= recipes.sections(named, fit, options, far, sections)
    sections |= _ask_further(fit, average, laws, options, asked.next_budget, asked.anytime)
    return _Answer(named.name, options, fit, sections, usable, told, mixed, extrapolate)


def _ask_further(
    fit: Fit,
    average: averaging.Average | None,
    laws: Sequence[Law],
    options: Options,
    next_budget: float | None,
    anytime: bool,
) -> dict[str, Any]:
    """The sections "next_runs", "settling" and "inference", of those that are wanted: averaged over
    `laws` where the predictions are."""
    out: dict[str, Any] = {}
    if next_budget or anytime:
        weighted = average.weighted if average else [(fit, 1.0)]
        target = design.prediction_target(weighted, options)
        if next_budget:
            out["next_runs"] = design.propose_runs(weighted, target, next_budget)
        if anytime:
            predict = (
                averaged_predictions.settle_average(laws, options, target)
                if average
                else design.settle_law(fit.law, options, target)
            )
            out["settling"] = design.settling_stages(fit.law, fit.parts, options, target, predict)
    if options.inference_tokens:
        of = average or averaging.average_of(fit)
        out["inference"] = lifetime.lifetime_optima(of, options)
    return out


def _prior_warnings(
    prior: Mapping[str, tuple[float, float]], without: Mapping[str, Any]
) -> list[str]:
    """A warning where the rows alone speak against what was known."""
    out = []
    for name, (mean, sd) in prior.items():
        value, (low, high) = without["params"][name], without["intervals"][name]
        near = high if mean > value else low  # the end towards the prior
        if near is None:
            continue
        off = abs(mean - value) / math.hypot(sd, (near - value) / NORMAL)
        if off > AGAINST_PRIOR:
            out.append(
                f"the rows alone say {name} = {value:.4g}, {off:.1f} standard deviations from the "
                f"prior {mean:g} ± {sd:g}: one of them is wrong, or the law"
            )
    return out


def has_outliers(law: Law, rows: Sequence[table.Row], options: Options) -> bool:
    """Whether rows lie so far off that least squares, the default for a few rows, would follow
    them."""
    if options.objective is not None:
        return False
    robust = replace(options, objective="huber_log", bootstrap=0, score={}, init={}, prior={})
    parts = split_rows(law, rows, robust)
    if len(parts.fitted) >= FEW:
        return False
    fit = Fit(law, parts, robust, best_only=True)
    return bool(influence.off_the_law(fit, fit.best)[1].any())


def _checked(
    rows: Sequence[table.Row],
    needed: Sequence[str],
    response: str,
    law: str,
    options: Options,
    grouping: comparable.Grouping,
    compare_by: str | None,
) -> tuple[list[table.Row], list[str], dict[str, dict[str, int]]]:
    """The rows that can be used, what there is to say of them before they are fitted, and in which
    columns they are mixed that are not comparable. Raises BadInput for what cannot be right."""
    usable, dropped = table.usable_rows(rows, needed, options.where, options.finished)
    # Of its highest losses a table is checked as well.
    usable, _ = filter_rows(
        usable, dropped, replace(options, drop_top_loss=0, best_of=None), needed, response
    )
    keep = where.match_where(rows, options.where) if options.where else [True] * len(rows)
    met = [row for row, k in zip(rows, keep) if k]
    told = table.notes_of(rows) + checks.check_some_flops(met, needed)
    told += checks.check_table(usable, needed, options, law, bool(compare_by))
    if options.best_of:
        told += replicates.edge_warnings(usable, needed[:-1], response)
    if compare_by:
        told += replicates.untuned_warning(usable, needed[:-1], compare_by)
    told += unread_tokens(usable, rows) if [*needed] == ["params", "loss"] else []
    of_groups, mixed = groups.check(usable, grouping, law, options.mix, compare_by)
    return usable, of_groups + told, mixed


def _replace_non_finite(value: Any) -> Any:
    """JSON has no infinities; what is not finite is null."""
    if isinstance(value, Mapping):
        return {k: _replace_non_finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
