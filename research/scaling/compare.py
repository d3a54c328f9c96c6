"""Recipes side by side: one law for all groups, and how much compute each needs for the same loss.

Group g at compute C is taken to be worth the reference at m C. A law of parameters and tokens has
both multiplied by sqrt(m), so that C = 6 N D is multiplied by m; a law of one column has that
column multiplied. The exponents and the floor are shared, and an F test asks whether the data allow
it: against a law of its own for every group, both by least squares of the log loss.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import fdtrc

from research.errors import BadInput
from research.scaling import gate as gates
from research.scaling.fit import Fit
from research.scaling.law import GROUP, Columns, Law, Params
from research.scaling.options import Options, Split, split_rows
from research.tables import table
from research.tables.comparable import group_of, group_value

NOUNS = {"flops": "compute", "params": "parameters", "train_examples": "training examples"}
LEVEL = 0.05  # of the test


def fit_groups(
    law: Law, rows: Sequence[table.Row], options: Options, column: str, gate: str | None = None
) -> tuple[Fit, dict[str, Any]]:
    """The fit of the shared law, whose own parameters are the reference group's, and the section of
    the document that compares the groups. The first group by name is the reference, or that of the
    `gate` (see gates.parse_gate), which is then decided.

    Raises BadInput for fewer than two groups, for a group that is too small, and where the shared
    law's loss does not fall.
    """
    names = _group_names(law, rows, options, column)
    asked = gates.parse_gate(gate, names) if gate else None
    if asked:
        names.sort(key=lambda name: name != asked.reference)
    numbered = table.with_rows(
        rows, [{**row, GROUP: 1.0 + names.index(group_value(row, column))} for row in rows]
    )
    joint = build_shared_law(law, names)
    parts = split_rows(joint, numbered, options)
    fit = Fit(joint, parts, options)
    if reason := rising_loss(fit):
        raise BadInput(f"--compare={column}: {reason}; no compute is worth anything there")
    own, groups = {}, {}
    intervals = fit.reported_intervals()
    for name in names:
        its = [row for row in parts.fitted if group_value(row, column) == name]
        if not its:
            raise BadInput(f"--compare={column}: no row of group {name!r} is left to fit")
        if (alone := _fit_alone(law, its, options)) is not None:
            own[name] = alone
        groups[name] = {"n_points": len(its), "params": alone.params if alone else None}
        if name != names[0]:
            label = f"multiplier[{name}]"
            m, (low, high) = fit.params[label], intervals[label]
            groups[name]["compute_multiplier"] = {"value": m, "interval": [low, high]}
            needs = [1 / high if high else None, 1 / low if low else None]
            groups[name]["needs"] = {"value": 1 / m, "interval": needs}
    test = _f_test(law, joint, parts, own, options)
    section = {"column": column, "reference": names[0], "groups": groups, "test": test}
    one = law.columns[0] if len(law.columns) == 1 else "flops"
    section["of"] = NOUNS.get(one, one.replace("_", " "))
    section["words"] = comparison_sentences(section)
    if asked:
        section["gate"] = gates.decide(asked, law, section, own, fit)
        section["words"].insert(0, section["gate"]["words"])
    return fit, section


def _group_names(law: Law, rows: Sequence[table.Row], options: Options, column: str) -> list[str]:
    """The groups, by name. Raises BadInput for what cannot be compared."""
    if options.init or options.score:
        flag = "init" if options.init else "score"
        raise BadInput(f"--{flag}: is for one law; --compare adds a parameter for every group")
    if law.response != "loss" or "loss" in law.columns:
        raise BadInput(
            f"--compare: {law.name} predicts {law.response} from {', '.join(law.columns)}; a group "
            "is compared by how much compute it needs for the same loss"
        )
    if law.predict is None:
        raise BadInput(f"--compare: {law.name} gives terms alone, no prediction to rescale")
    if column != "group" or not any(group_of(row) for row in rows):
        table.require_column(rows, "compare", column)
    missing = [i for i, row in enumerate(rows) if not group_value(row, column)]
    if missing:
        raise BadInput(f"--compare={column}: row {missing[0] + 1} has no {column}")
    names = sorted({group_value(row, column) for row in rows})
    if len(names) < 2:
        raise BadInput(f"--compare={column}: every row is {names[0]!r}; two groups are needed")
    return names


def _fit_alone(law: Law, rows: Sequence[table.Row], options: Options) -> Fit | None:
    """The law of one group; None for too few rows, which still have a place on the shared law."""
    alone = dataclasses.replace(options, where=None, holdout=None, drop_top_loss=0)
    try:
        fitted = split_rows(law, rows, alone).fitted
    except BadInput:
        return None
    return Fit(law, Split(fitted, [], []), options, resample=False)


def rescaled_columns(law: Law) -> list[str]:
    """The columns of a law that the multiplier of a group rescales."""
    columns = [name for name in law.columns if name != GROUP]
    return [name for name in columns if name != "unique_tokens" or len(columns) == 1]


def rising_loss(fit: Fit) -> str:
    """Why more of what a multiplier rescales is worth nothing in this law; "" if it is worth
    something: over the table the loss falls with each of these columns."""
    rows = table.column_arrays(fit.parts.fitted, fit.law.columns)
    middle = {name: np.exp(np.log(values).mean()) for name, values in rows.items() if name != GROUP}
    for name in rescaled_columns(fit.law):
        ends = np.array([rows[name].min(), rows[name].max()])
        if ends[0] == ends[1]:
            continue
        columns = {key: np.full(2, value) for key, value in {GROUP: 0.0, **middle}.items()}
        log_loss = fit.law.evaluate(fit.best[None], fit.law.prepare({**columns, name: ends}))[0][0]
        if log_loss[1] >= log_loss[0]:
            return f"the loss of the law does not fall with {name} over the table"
    return ""


def build_shared_law(law: Law, names: Sequence[str]) -> Law:
    """`law` for several groups, numbered from 1 in the column GROUP (0 is the reference too)."""
    labels = [f"multiplier[{name}]" for name in names[1:]]
    scaled = rescaled_columns(law)

    def predict(p: Params, x: Columns) -> Any:
        m: Any = 1.0
        for i, label in enumerate(labels, 2):
            m = m * np.where(x[GROUP] == i, p[label], 1.0)
        moved = {name: x[name] * m ** (1 / len(scaled)) for name in scaled}
        assert law.predict
        return law.predict(p, {**x, **moved})

    return dataclasses.replace(
        law,
        formula=f"{law.formula}, of {' and '.join(scaled)} times a multiplier for each group",
        columns=(*law.columns, GROUP),
        parameters=(*law.parameters, *labels),
        positive=(*law.positive, *labels),
        starts={**law.starts, **dict.fromkeys(labels, (1.0,))},
        predict=predict,
        terms=None,
    )


def _f_test(
    law: Law, joint: Law, parts: Split, own: dict[str, Fit], options: Options
) -> dict[str, Any]:
    """Whether one law for all explains the rows as well as one each; rows of one size or budget of
    a group may err together, as its own law shows (generalized least squares). Nothing is tested
    where laws of their own have no more free parameters than the shared one."""
    none = {"f": None, "p_value": None, "shared_exponents_justified": None}
    if len(own) <= len(joint.parameters) - len(law.parameters):  # a group has no law of its own
        return none
    squares = dataclasses.replace(options, objective="mse_log", bootstrap=0)
    shared = Fit(joint, parts, squares, resample=False)
    separate = [Fit(law, f.parts, squares, resample=False) for f in own.values()]
    count = sum(int((~f.problem.fixed_mask).sum()) for f in separate)
    more = count - int((~shared.problem.fixed_mask).sum())
    left = sum(f.problem.n for f in separate) - count
    if more <= 0 or left <= 0 or sum(f.value for f in separate) <= 0:
        return none
    value = sum(_sum_of_squares([_whitened(f, f)]) for f in separate)
    together = _sum_of_squares([_whitened(shared, f) for f in separate])
    f = (together - value) / more / (value / left)
    p = float(fdtrc(more, left, max(f, 0.0)))
    return {"f": float(f), "p_value": p, "shared_exponents_justified": p > LEVEL}


def _whitened(fit: Fit, own: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Residuals [n] of the rows of one group about `fit`, and derivatives [n, P], both divided by
    the errors that these rows have by their own law."""
    covariance = np.eye(own.problem.n)
    if own.effects is not None and own.effects.shared:
        covariance = own.effects.covariance() / own.run_noise**2
    away = np.linalg.inv(np.linalg.cholesky(covariance))
    away = away * np.sqrt(own.problem.weights / own.problem.weights.mean())
    x = fit.law.prepare(table.column_arrays(own.parts.fitted, fit.law.columns))
    log_loss, slopes = (part[0] for part in fit.law.evaluate(fit.best[None], x)[:2])
    return away @ (log_loss - own.problem.log_y), away @ slopes[~fit.problem.fixed_mask].T


def _sum_of_squares(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The least sum of squared residuals of several groups along their derivatives."""
    r, j = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    return float(np.sum((r - j @ np.linalg.lstsq(j, r)[0]) ** 2))


def comparison_sentences(section: dict[str, Any]) -> list[str]:
    """The comparison in words."""
    out = []
    for name, entry in section["groups"].items():
        if "needs" in entry:
            low, high = ("open" if x is None else f"{x:.3g}" for x in entry["needs"]["interval"])
            out.append(
                f"{name} needs {entry['needs']['value']:.3g} times the {section['of']} of "
                f"{section['reference']} for the same loss (95 %: {low} to {high})"
            )
    p = section["test"]["p_value"]
    if p is None:
        out.append(
            "too few rows, or free parameters, to test whether the groups share their exponents"
        )
    elif section["test"]["shared_exponents_justified"]:
        out.append(f"the data allow shared exponents (F test, p = {p:.2g})")
    else:
        out.append(
            f"the data reject shared exponents (F test, p = {p:.2g}): the multiplier depends on "
            "the scale, so compare the groups' own laws"
        )
    return out
