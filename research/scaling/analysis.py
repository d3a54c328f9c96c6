"""A whole analysis of a table: the fit, and what was asked beside it."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.errors import BadInput
from research.scaling import (
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
from research.scaling.laws import AUTO, METHODS, RECIPE, Law, named_law
from research.scaling.options import Options, check_used, filter_rows, split_rows
from research.tables import comparable, sampling, table, where

NORMAL = 1.96  # standard deviations in half of a 95 % interval
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


def analyze(
    law: str | Law,
    rows: Sequence[table.Row],
    options: Mapping[str, Any],
    compare_by: str | None = None,
    multiverse_too: bool = False,
    next_budget: float | None = None,
    anytime: bool = False,
    checks_too: bool = True,
    gate: str | None = None,
    scores: str | None = None,
) -> Analysis:
    """`fit_law`, and where they are wanted the sections "compare" (groups by a column, and whether
    one passes the `gate`), "multiverse" (of a law of LAWS or METHODS), "next_runs" (of at most so
    many FLOPs), "settling" and "downstream" (of the column `scores`); without `checks_too` minima
    are not located again without each budget, and nothing is extrapolated within the table. Raises
    BadInput for what does not go together."""
    chosen = Options(**options)
    chosen.check()
    check_used(law if isinstance(law, str) else law.name, options)
    if gate and not compare_by:
        raise BadInput(f"--gate={gate}: of two groups; add --compare=COLUMN, which tells them")
    if compare_by and (next_budget or anytime or multiverse_too):
        flag = "multiverse" if multiverse_too else "next_runs" if next_budget else "anytime"
        raise BadInput(
            f"--{flag}: is for one law, and --compare={compare_by} fits several groups; fit one of "
            f"them with --where={compare_by}==NAME"
        )
    few = (chosen.sample, chosen.seed, chosen.where, chosen.last_rows)
    most = sampling.MOST_OF_AVERAGE if law == AUTO else sampling.MOST_ROWS
    most = math.inf if law in METHODS else most  # these take no long
    rows, sampled = sampling.sample_rows(rows, *few, most)
    rows, grouping = groups.grouped(rows, chosen)
    how = (chosen, grouping, compare_by)
    named, extrapolate, average = None, None, None
    if isinstance(law, str) and law in METHODS:
        if compare_by:
            raise BadInput(f"--compare: {law} fits no law; give --law=power or chinchilla")
        if next_budget or anytime:
            raise BadInput(f"--next_runs, --anytime: {law} predicts no loss; give --law=chinchilla")
        needed = minima_document.needed_columns(law)
        usable, told, mixed = _checked(rows, needed, "loss", law, *how)
        fit, sections = None, minima_document.fit_minima(law, rows, chosen)
        if checks_too:
            refit = functools.partial(minima_document.fit_minima, law)
            entries, decisive = influence.minima_influence(usable, chosen, sections, refit)
            sections["influence"] = entries
            sections["warnings"] = [*sections["warnings"], *decisive]
            if law == "isoflop":
                extrapolate = functools.partial(minima_document.extrapolate_minima, usable, chosen)
    else:
        # Of an average, the simplest law stands for what all of them need.
        laws, far = averaging.candidates(rows, chosen) if law == AUTO else [], []
        name = laws[0] if laws else law
        if name == RECIPE:
            recipes.check(compare_by, next_budget, anytime, multiverse_too)
            rows, named, far = recipes.prepare(rows, chosen)
        else:
            named = named_law(name, chosen.against) if isinstance(name, str) else name
        chosen.check_against(named)
        needed = [*named.columns, named.response]
        usable, told, mixed = _checked(rows, needed, named.response, named.name, *how)
        if has_outliers(named, rows, chosen):
            chosen = replace(chosen, objective="huber_log")
            told.append(
                "rows far off the law that the others show: it is fitted by Huber's loss, which "
                "they do not move (--objective=mse_log lets them)"
            )
        if law == AUTO and not compare_by:
            average = averaging.fit_average(laws, rows, chosen)
            fit, sections = average.best, averaging.build_average(average, chosen)
            extrapolate = functools.partial(averaging.extrapolate_average, average, chosen)
        elif compare_by:
            fit, section = compare.fit_groups(named, rows, chosen, compare_by, gate)
            sections = {**fit_document.build_document(fit), "compare": section}
        else:
            fit = Fit(named, split_rows(named, rows, chosen), chosen)
            sections = fit_document.build_document(fit)
            extrapolate = functools.partial(extrapolation.extrapolate_fit, fit)
        if isinstance(named, recipes.RecipeLaw):
            assert fit
            extrapolate = None
            sections |= recipes.sections(named, fit, chosen, far, sections)
        sections |= _ask_further(fit, average, laws, chosen, next_budget, anytime)
    if multiverse_too:
        name = named.name if named else str(law)
        sections["multiverse"] = multiverse.refit_universes(name, rows, chosen)
    if chosen.prior:
        plain = {name: value for name, value in options.items() if name != "prior"}
        other = analyze(law, rows, plain, compare_by, checks_too=False).document
        kept = ("params", "intervals", "predictions", "optimal")
        sections["without_prior"] = {name: other[name] for name in kept}
        told += _prior_warnings(chosen.prior, other)
    sections["extrapolation"] = None
    if checks_too and extrapolate and not chosen.holdout and chosen.bootstrap != 0:
        try:
            sections["extrapolation"] = extrapolate()
        except BadInput as error:
            sections["extrapolation"] = {"rows": [], "why": str(error)}
    sections["warnings"] = [*told, *sections["warnings"]]
    if scores:
        sections["downstream"] = downstream.fit_downstream(usable, chosen, scores)
    if mixed:
        sections["mixed"] = mixed
    if sampled:
        sections["sample"] = sampled
        of = f"{sampled['rows']:,} of {sampled['of']:,} rows"
        sections["warnings"].insert(0, f"fitted to a sample of {of} (--sample, --seed)")
    return Analysis(_replace_non_finite(sections), fit, usable)


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
                averaging.settle_average(laws, options, target)
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
    fit = Fit(law, parts, robust, resample=False)
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
    of_groups, mixed = groups.check(usable, grouping, law, options.mix, compare_by)
    return usable, of_groups + told, mixed


def _replace_non_finite(value: Any) -> Any:
    """JSON has no infinities; what is not finite is null."""
    if isinstance(value, Mapping):
        return {k: _replace_non_finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
