"""How a table is to be fitted, and its rows accordingly: to fit, to predict, left out and why."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np

from research.errors import BadInput
from research.scaling.law import Law
from research.scaling.laws import AGAINST, AUTO, METHODS, METHODS_OF_MINIMA
from research.scaling.optimize import OBJECTIVES
from research.tables import curves, replicates, sampling, states, table, where
from research.tables.numbers import parse_number

# What not every law uses; the others refuse it.
ONLY_FOR = {
    "against": (AUTO, *AGAINST),
    "method": ("isoflop",),
    "noise": ("isoflop",),
    "six_nd": ("isoflop", "envelope"),
}
NOT_FOR = {
    "inference_tokens": METHODS,
    **dict.fromkeys(("objective", "huber_delta"), METHODS),
    "cluster": ("isoflop", "optima", AUTO),
    "holdout": ("envelope", "optima"),
}


def compare_flag(law: str) -> str:
    """The flag that compares groups, with a law that has them where `law` (a name) has none."""
    return "--law=chinchilla --compare" if law in METHODS else "--compare"


def check_used(law: str, given: Mapping[str, object]) -> None:
    """Raise BadInput for options that are given and that a law or method does not use."""
    asked = {name for name, value in given.items() if value is not None}
    problems = [
        f"--{name}: {law} does not use it, only {', '.join(laws)} does"
        for name, laws in ONLY_FOR.items()
        if name in asked and law not in laws
    ]
    problems += [
        f"--{name}: {law} does not use it"
        for name, laws in NOT_FOR.items()
        if name in asked and law in laws
    ]
    if "huber_delta" in asked and given.get("objective") != "huber_log":
        problems.append("--huber_delta: is of --objective=huber_log; give both")
    if problems:
        raise BadInput(*problems)


@dataclass(frozen=True)
class Options:
    """How a table is fitted; the flags of `experiments.fit` by the same names.

    `objective` is huber_log, mse_log or mse, summed over rows; None: mse_log for fewer than 30
    rows without outliers, else huber_log, which these do not move. `holdout` is "largest"
    (the rows with the largest value of the law's column) or comparisons; those rows are predicted
    and not fitted. `predict` are values of the column `against` and `predict_flops` budgets to
    predict at; with `inference_tokens` their optima count these too. `best_of` is "cell" where of
    the rows that are equal in what the law reads the best setting is fitted. `bootstrap`
    counts resamples by `cluster` whose quantiles are the
    intervals (None: profile intervals, and resamples only where rows of one cluster err together;
    0: none at all).
    `sample` fits at most so many rows, chosen by `seed` to cover sizes and lengths as all do.
    `fix`, `init` and `score` map parameters to reported values: not fitted, where the only start
    is, and what to compare with the optimum; `prior` maps them to mean and standard deviation of
    what is known beside the rows. `starts` replaces the law's grid of starts. `method`
    and `noise` are for the law "isoflop"; with `six_nd` the budgets of minima and of the envelope
    are 6 N D, as those of laws are, and not the FLOPs of the table. `finished` are further
    words for the state of a run that is done; `last_rows` fits the last row of each run alone;
    `far` allows targets however far beyond the table, `mix` one law for rows that are not
    comparable, `odd_units` FLOPs that look as if they were in another unit than parameters and
    tokens.
    """

    against: str = "params"
    objective: str | None = None
    huber_delta: float = 1e-3
    where: str | None = None
    best_of: str | None = None
    drop_top_loss: int = 0
    sample: int | None = None
    holdout: str | None = None
    predict: Sequence[float] = ()
    predict_flops: Sequence[float] = ()
    inference_tokens: float | None = None
    bootstrap: int | None = None
    cluster: str = "run"
    seed: int = 0
    fix: Mapping[str, float] = field(default_factory=dict)
    prior: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    init: Mapping[str, float] = field(default_factory=dict)
    score: Mapping[str, float] = field(default_factory=dict)
    starts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    method: str = "akima"
    noise: float | None = None
    six_nd: bool = False
    finished: Sequence[str] = ()
    last_rows: bool = False
    far: bool = False
    mix: bool = False
    odd_units: bool = False

    def check(self) -> None:
        """Raises BadInput for what no table can be fitted with."""
        if problems := _wrong_types(self):
            raise BadInput(*problems)
        if self.objective not in (None, *OBJECTIVES):
            problems.append(
                f"--objective={self.objective}: expected one of {', '.join(OBJECTIVES)}"
            )
        if not 0 < self.huber_delta < math.inf:
            problems.append(f"--huber_delta={self.huber_delta}: expected a number above 0")
        for name in ("drop_top_loss", "bootstrap", "seed"):
            if (getattr(self, name) or 0) < 0:
                problems.append(f"--{name}={getattr(self, name)}: expected 0 or more")
        if self.sample is not None and not 1 <= self.sample <= sampling.MOST_ROWS:
            problems.append(f"--sample={self.sample}: expected 1 to {sampling.MOST_ROWS} rows")
        if self.best_of not in (None, "cell"):
            problems.append(f"--best_of={self.best_of}: expected cell")
        if self.method not in METHODS_OF_MINIMA:
            names = " or ".join(METHODS_OF_MINIMA)
            problems.append(f"--method={self.method}: expected {names}")
        if self.bootstrap == 1:
            problems.append("--bootstrap=1: one resample has no spread; expected 0, or 2 or more")
        for name in ("predict", "predict_flops"):
            if bad := [x for x in getattr(self, name) if not 0 < x < math.inf]:
                problems.append(f"--{name}: {bad[0]:g}; expected numbers above 0")
        for name in ("noise", "inference_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                problems.append(f"--{name}={value}: expected a number above 0")
        if problems:
            raise BadInput(*problems)

    def check_against(self, law: Law) -> None:
        """Raises BadInput for options that do not fit the law."""
        problems = [
            f"--prior={name}: --fix gives its value; give one of both"
            for name in self.prior
            if name in self.fix
        ]
        for flag in ("fix", "prior", "init", "score", "starts"):
            values = getattr(self, flag)
            if unknown := [name for name in values if name not in law.parameters]:
                problems.append(
                    f"--{flag}: {law.name} has no parameter {unknown[0]!r}; there are "
                    f"{', '.join(law.parameters)}"
                )
            missing = [name for name in law.parameters if name not in values]
            if flag in ("init", "score") and values and missing and not problems:
                problems.append(f"--{flag}: no value for {missing[0]}; {law.name} needs every one")
            for name, value in values.items():
                given = {"starts": value, "prior": value[:1]} if flag in ("starts", "prior") else {}
                if words := _out_of_range(law, name, given.get(flag, [value])):
                    problems.append(f"--{flag}={name}={words}")
        if len(law.columns) > 1 and self.predict:
            problems.append(
                f"--predict is for laws of one column; {law.name} reads {', '.join(law.columns)}: "
                "--predict_flops"
            )
        if law.name in AGAINST and self.against == law.response:
            problems.append(f"--against={self.against}: is what the law predicts")
        if law.name in AGAINST and self.predict_flops and self.against != "flops":
            problems.append(
                f"--predict_flops: the law is against {self.against}; give --against=flops, or a "
                "law of params and tokens"
            )
        if law.response != "loss" and self.predict_flops and law.name not in AGAINST:
            problems.append(
                f"--predict_flops: {law.name} predicts {law.response} from "
                f"{', '.join(law.columns)}; give --predict"
            )
        if problems:
            raise BadInput(*problems)


def _wrong_types(options: Options) -> list[str]:
    """Values that are no numbers, or no collections of them, where those are expected."""
    problems = []
    for name in (
        "huber_delta",
        "noise",
        "inference_tokens",
        "drop_top_loss",
        "sample",
        "bootstrap",
        "seed",
    ):
        value = getattr(options, name)
        whole = name not in ("huber_delta", "noise", "inference_tokens")
        if value is not None and not isinstance(value, Integral if whole else Real):
            expected = "a whole number" if whole else "a number"
            problems.append(f"--{name}={value!r}: expected {expected}")
    for name in ("predict", "predict_flops"):
        if not _are_numbers(value := getattr(options, name)):
            problems.append(f"--{name}={value!r}: expected a list of numbers")
    for parameter, value in options.prior.items():
        if not _are_numbers(value) or len(value) != 2:
            problems.append(f"--prior={parameter}={value!r}: expected MEAN±SD")
        elif not (math.isfinite(value[0]) and 0 < value[1] < math.inf):
            problems.append(
                f"--prior={parameter}={value[0]:g}±{value[1]:g}: expected a finite mean and a "
                "standard deviation above 0"
            )
    for name in ("fix", "init", "score", "starts"):
        for parameter, value in getattr(options, name).items():
            if name == "starts" and not (_are_numbers(value) and len(value)):
                problems.append(f"--starts={parameter}={value!r}: expected a list of numbers")
            elif name != "starts" and not isinstance(value, Real):
                problems.append(f"--{name}={parameter}={value!r}: expected a number")
    return problems


def _are_numbers(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and all(isinstance(x, Real) for x in value)


def _out_of_range(law: Law, parameter: str, values: Sequence[float]) -> str | None:
    """Why the law cannot have one of these values of a parameter, None if it can."""
    for value in values:
        if not math.isfinite(value):
            return f"{value}: expected a finite number"
        if parameter in law.positive and value <= 0:
            return f"{value:g}: {parameter} is positive; expected a number above 0"
    return None


@dataclass(frozen=True)
class Split:
    """Rows to fit, rows to predict, and the others with why they are in neither."""

    fitted: list[table.Row]
    held_out: list[table.Row]
    dropped: list[dict[str, str]]

    @property
    def usable(self) -> list[table.Row]:
        return self.fitted + self.held_out


def split_rows(law: Law, rows: Sequence[table.Row], options: Options) -> Split:
    """Rows that can be used, filtered as the options say. Raises BadInput when they are too few."""
    needed = [*law.columns, law.response]
    usable, dropped = table.usable_rows(rows, needed, options.where, options.finished)
    unweighted = [row for row in usable if not table.row_weight(row)]
    dropped = dropped + [{"run": row["run"], "reason": "weight is 0"} for row in unweighted]
    usable = [row for row in usable if table.row_weight(row)]
    usable, dropped = filter_rows(usable, dropped, options, law.columns, law.response)
    against = law.columns[0]
    fitted, held_out = hold_out_rows(usable, options.holdout, against)
    distinct = len({tuple(row[c] for c in law.columns) for row in fitted})
    needs = len(law.parameters) - len(options.fix) + 1
    if distinct < needs:
        s = "" if distinct == 1 else "s"
        what = f"value{s} of {against}"
        if len(law.columns) > 1:
            what = f"point{s} of {', '.join(law.columns)}"
        others = {"run held out": held_out, "row left out": dropped}
        words = ", ".join(
            f"{len(rows)} {name if len(rows) == 1 else name.replace(' ', 's ', 1)}"
            for name, rows in others.items()
            if rows
        )
        apart = f" ({words}{_main_reason(dropped)})" if words else ""
        raise BadInput(
            f"{distinct} distinct {what} to fit{apart}; {law.formula} has {needs - 1} parameters "
            f"and needs at least {needs}{_other_column(law, fitted, needs)}"
        )
    return Split(fitted, held_out, dropped)


def _other_column(law: Law, rows: Sequence[table.Row], needs: int) -> str:
    """The flag by which a law of one column reads another, which varies enough."""
    for name in ("tokens", "flops", "params") if law.name in AGAINST else ():
        values = {x for row in rows if (x := parse_number(row.get(name)))}
        if name != law.columns[0] and len(values) >= needs:
            return f"; there are {len(values)} of {name}: --against={name} is a law of these"
    return ""


def _main_reason(dropped: Sequence[dict[str, str]]) -> str:
    """The most frequent reason, for a message."""
    reasons = [row["reason"] for row in dropped]
    if not reasons:
        return ""
    most = max(reasons, key=reasons.count)
    below = sum(" is -" in reason for reason in reasons)
    if 2 * below > len(reasons):
        most += f" ({below} are below 0; laws are of positive losses: --columns='loss=loss*-1' "
        most += "turns log likelihoods)"
    words = dict.fromkeys(word for r in reasons if (word := states.unknown_state(r)))
    if len(words) > 1:
        flag = ",".join(words)
        most = f"states that are not known: --finished='{flag}' takes runs in any of them"
    if states.is_state(most):
        most = f"its state {most!r}; --finished='{most}' takes such runs"
    return f", most often: {most}"


def filter_rows(
    usable: list[table.Row],
    dropped: list[dict],
    options: Options,
    columns: Sequence[str],
    response: str,
) -> tuple[list[table.Row], list[dict]]:
    """The rows that the options fit or hold out; a cell of best_of is equal in `columns`."""
    text, top = options.where, options.drop_top_loss
    if text:
        keep = where.match_where(usable, text, "where")
        dropped = dropped + [
            {"run": row["run"], "reason": f"not {text}"} for row, k in zip(usable, keep) if not k
        ]
        usable = [row for row, k in zip(usable, keep) if k]
    if options.last_rows:
        keep = curves.last_rows(usable)
        dropped = dropped + [
            {"run": row["run"], "reason": "not the last row of its run"}
            for row, k in zip(usable, keep)
            if not k
        ]
        usable = [row for row, k in zip(usable, keep) if k]
    if top and usable:
        sense = replicates.sense(response)  # of scores, the lowest are the worst
        limit = sorted((sense * row[response] for row in usable), reverse=True)[:top][-1]
        worst = [row for row in usable if sense * row[response] >= limit]
        words = f"one of the {top} {'highest losses' if sense > 0 else 'lowest scores'}"
        dropped = dropped + [{"run": row["run"], "reason": words} for row in worst]
        usable = [row for row in usable if sense * row[response] < limit]
    if options.best_of:
        usable, others = replicates.best_of_cell(usable, columns, response)
        dropped = dropped + others
    return usable, dropped


def hold_out_rows(
    rows: list[table.Row], holdout: str | None, against: str
) -> tuple[list[table.Row], list[table.Row]]:
    if not holdout or not rows:
        return rows, []
    if holdout == "largest":
        largest = max(row[against] for row in rows)
        out = np.array([row[against] == largest for row in rows])
    else:
        out = where.match_where(rows, holdout, "holdout")
        if not out.any():
            raise BadInput(f"--holdout={holdout}: holds out none of {len(rows)} runs")
    return (
        [row for row, is_held in zip(rows, out) if not is_held],
        [row for row, is_held in zip(rows, out) if is_held],
    )
