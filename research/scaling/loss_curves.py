"""A law of whole training curves under a learning-rate schedule: the multi-power law.

    L(t) = L0 + A S(t)^-alpha - B sum_k (eta_{k-1} - eta_k) G(eta_k^-gamma S_k(t)),
    G(x) = 1 - (1 + C x)^-beta

S(t) is the sum of learning rates up to step t with those of the warm-up, S_k(t) that from step k
on, and the sum over k is over the steps after the peak (Luo et al. 2025, arXiv:2503.12811). Fitted
to the runs of one model under two or more schedules it predicts the curve under another one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from research.errors import BadInput
from research.scaling.laws import CURVE
from research.scaling.options import Options
from research.tables import where
from research.tables.table import Row

FORMULA = (
    "L(t) = L0 + A S(t)^-alpha - B sum_k (eta_{k-1} - eta_k) G(eta_k^-gamma S_k(t)), "
    "G(x) = 1 - (1 + C x)^-beta"
)
PARAMETERS = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
HUBER = 1e-3  # of residuals of log loss, as published
STARTS = 6
COARSE, FINE = (60, 120), (400, 800)  # most losses of a curve in a fit, and pieces of its schedule
FEWEST = 12  # losses of a curve, after the peak too
POOR = 0.01  # mean error of a curve in the fit, from which that is told
FIT, ALL = 2, 3  # schedules that a fit needs, and those of which each can be predicted by others
SAME = ("params", "batch.size", "data", "optim.optimizer.name")  # columns alike in all curves
# Bounds of the parameters in units where the peak rate, the longest S and the last loss are one.
LOW = np.array([0.05, 1e-4, 0.02, 1e-5, 1e-3, 0.02, 0.0])
HIGH = np.array([1.5, 50.0, 4.0, 5.0, 1e4, 4.0, 1.5])

START = np.array([0.8, 0.2, 0.5, 0.1, 5.0, 0.5, 0.6])
SPREAD = np.array(
    [0.2, 1.0, 0.5, 1.0, 1.5, 0.5, 0.3]
)  # of other starts, in logarithms but of gamma


class LossCurve(NamedTuple):
    """Held-out losses [n] of a run after so many steps [n], and its learning rate [m] at others
    [m], the first of them at or before the peak."""

    run: str
    step: np.ndarray
    loss: np.ndarray
    rate_step: np.ndarray
    rate: np.ndarray

    @property
    def label(self) -> str:
        """The schedule in words."""
        last = self.rate[-1] / self.rate.max()
        return f"{self.rate_step[-1]:,.0f} steps to {last:.3g} of the peak rate"


class Points(NamedTuple):
    """Losses [n] of one curve, S [n] and, of the pieces of its schedule after the peak, the fall of
    the rate [m], the rate [m] and S_k at each loss [n, m] (0: it comes later)."""

    loss: np.ndarray
    area: np.ndarray
    fall: np.ndarray
    rate: np.ndarray
    since: np.ndarray


class Scale(NamedTuple):
    """What is one in the units of a fit: a learning rate, a sum of them, a loss."""

    rate: float
    area: float
    loss: float


class CurveFit(NamedTuple):
    """Parameters of the law by name in the units of table, and in those of `scale` [7]."""

    theta: np.ndarray
    scale: Scale

    @property
    def params(self) -> dict[str, float]:
        """In losses, learning rates and steps."""
        floor, a, alpha, b, c, beta, gamma = (float(x) for x in self.theta)
        rate, area, loss = self.scale
        values = (loss * floor, loss * a * area**alpha, alpha, loss * b / rate,
                  c * rate**gamma / area, beta, gamma)  # fmt: skip
        return dict(zip(PARAMETERS, values, strict=True))

    def predict(self, curve: LossCurve) -> np.ndarray:
        """The losses [n] of a curve, by its schedule alone."""
        return self.scale.loss * _losses(self.theta, _points(curve, self.scale))


def read_curves(
    rows: Sequence[Row], records: Callable[[str], Sequence[Mapping[str, Any]]]
) -> list[LossCurve]:
    """The curves of runs; `records` gives what one of them logged, in order: "step" (of a workdir
    from 0) with "lr", "loss" or both. Raises BadInput where one has too little of either."""
    out = []
    for row in rows:
        found = list(records(str(row["run"])))
        rates, losses = ([r for r in found if r.get(name) is not None] for name in ("lr", "loss"))
        if len(losses) < FEWEST or len(rates) < FEWEST:
            raise BadInput(
                f"--law={CURVE}: run {row['run']} has {len(losses)} held-out losses and "
                f"{len(rates)} learning rates on record; expected {FEWEST} of each (eval.every and "
                "log.every in a config; columns run, step, lr and loss in a table)"
            )
        columns = [
            np.array([float(r[name]) for r in of])
            for of, name in ((losses, "step"), (losses, "loss"), (rates, "step"), (rates, "lr"))
        ]
        out.append(_checked(LossCurve(str(row["run"]), *columns)))
    return out


def _checked(curve: LossCurve) -> LossCurve:
    """Raises BadInput for what is no curve."""
    for name, steps in (("losses", curve.step), ("learning rates", curve.rate_step)):
        if (np.diff(steps) <= 0).any() or steps[0] < 0:
            raise BadInput(f"--law={CURVE}: the steps of run {curve.run} do not grow in its {name}")
    if not (np.isfinite(curve.loss).all() and (curve.loss > 0).all()):
        raise BadInput(f"--law={CURVE}: run {curve.run} has a loss that is no number above 0")
    if not (np.isfinite(curve.rate).all() and (curve.rate >= 0).all() and curve.rate.any()):
        raise BadInput(f"--law={CURVE}: run {curve.run} has a learning rate that is no number >= 0")
    if (after := int(_after_peak(curve).sum())) < FEWEST:
        raise BadInput(
            f"--law={CURVE}: run {curve.run} has {after} held-out losses after the peak of its "
            f"learning rate; expected {FEWEST}"
        )
    return curve


def fit_curves(
    rows: Sequence[Row], curves: Sequence[LossCurve], options: Options
) -> tuple[dict[str, Any], CurveFit]:
    """The document of fit.json, and the law fitted to all curves that are not held out.

    With `options.holdout` the runs that it names are predicted; without it each run of three or
    more schedules is, by the law of those under other schedules. Raises BadInput for too few
    schedules, and for runs that differ in more than schedule and seed.
    """
    _check_alike(rows)
    held = [False] * len(rows)
    if options.holdout:
        held = list(map(bool, where.match_where(rows, options.holdout, "holdout")))
        if not any(held):
            raise BadInput(f"--holdout={options.holdout}: no run is of that kind")
    fitted = [curve for curve, out in zip(curves, held, strict=True) if not out]
    if (found := len(_schedules(fitted))) < FIT:
        raise BadInput(
            f"--law={CURVE}: {found} learning-rate schedules in {len(fitted)} runs to fit; "
            f"expected {FIT} or more, of one model"
        )
    law = _fit(fitted, options.seed)
    if options.holdout:
        checks = [(law, curve) for curve, out in zip(curves, held, strict=True) if out]
    else:
        checks = _each_by_others(fitted, options.seed)
    rule = options.holdout or "each run by those of other schedules"
    document = {
        "law": CURVE,
        "formula": FORMULA,
        "response": "loss",
        "n_points": len(fitted),
        "params": law.params,
        "at_bounds": _at_bounds(law.theta),
        "runs": [described(law, curve) for curve in fitted],
        "holdout": {"rule": rule, "rows": [described(by, curve) for by, curve in checks]},
    }
    document["warnings"] = _warnings(document)
    return document, law


def described(law: CurveFit, curve: LossCurve) -> dict[str, Any]:
    """A curve beside the law: PredE, the mean of |predicted / measured - 1| after the peak, the
    worst of them, and the last loss."""
    after = _after_peak(curve)
    off = np.abs(law.predict(curve) / curve.loss - 1)[after]
    last = float(law.predict(curve)[-1])
    return {
        "run": curve.run,
        "schedule": curve.label,
        "losses": int(after.sum()),
        "error": float(off.mean()),
        "worst": float(off.max()),
        "loss": float(curve.loss[-1]),
        "predicted": last,
    }


def _check_alike(rows: Sequence[Row]) -> None:
    for name in SAME:
        if len(found := sorted({str(row.get(name)) for row in rows})) > 1:
            raise BadInput(
                f"--law={CURVE}: is for runs that differ in their schedule; {name} is "
                f"{' or '.join(found[:4])}: choose with --where"
            )


def _schedules(curves: Sequence[LossCurve]) -> set[tuple[float, ...]]:
    """Schedules that differ: by the rate at twelve places of a run, and its length."""
    out = set()
    for curve in curves:
        end = curve.rate_step[-1]
        at = np.interp(np.linspace(0.2, 1, 12) * end, curve.rate_step, curve.rate)
        out.add((round(float(end), -1), *np.round(at / curve.rate.max(), 2).tolist()))
    return out


def _each_by_others(curves: Sequence[LossCurve], seed: int) -> list[tuple[CurveFit, LossCurve]]:
    """Each curve with the law of those under other schedules; [] where these are too few."""
    if len(_schedules(curves)) < ALL:
        return []
    out = []
    for curve in curves:
        others = [c for c in curves if _schedules([c]) != _schedules([curve])]
        out.append((_fit(others, seed), curve))
    return out


def _warnings(document: Mapping[str, Any]) -> list[str]:
    out = []
    if not document["holdout"]["rows"]:
        out.append(
            f"no run checks the law: {ALL} schedules are needed for each to be predicted by the "
            "others, or --holdout='run==NAME'"
        )
    rows = [*document["runs"], *document["holdout"]["rows"]]
    if below := [row["run"] for row in rows if row["predicted"] <= 0]:
        out.append(f"{below[0]}: a loss below 0 is predicted; its schedule is none the law can say")
    poor = max(document["runs"], key=lambda row: row["error"])
    if poor["error"] > POOR:
        out.append(
            f"{poor['run']} is off its own law by {poor['error']:.1%} on average: the runs share "
            "no law (a run that diverged, rates in other units, losses that rise?)"
        )
    if at := document["at_bounds"]:
        out.append(f"{', '.join(at)}: at a bound; the schedules do not tell what it is")
    return out


def _at_bounds(theta: np.ndarray) -> list[str]:
    near = (theta < LOW + 1e-3 * (HIGH - LOW) * (LOW == 0) + 1e-3 * LOW) | (theta > 0.999 * HIGH)
    return [name for name, at in zip(PARAMETERS, near, strict=True) if at]


def _fit(curves: Sequence[LossCurve], seed: int) -> CurveFit:
    """The least sum of Huber losses of log losses, from several starts."""
    areas = [float(_areas(c.rate_step, c.rate, c.rate_step[-1:])[0]) for c in curves]
    scale = Scale(
        max(float(c.rate.max()) for c in curves),
        max(areas),
        min(float(c.loss[-1]) for c in curves),
    )
    # The starts are tried on fewer points; the best of them is finished on all.
    few, many = ([_points(curve, scale, *most) for curve in curves] for most in (COARSE, FINE))
    rng = np.random.default_rng(seed)
    starts = [
        _pack(START) + i * rng.normal(size=len(START)) * SPREAD for i in (0, *[1] * (STARTS - 1))
    ]
    found = min((_least(few, start) for start in starts), key=lambda pair: pair[1])
    return CurveFit(_unpack(_least(many, found[0])[0]), scale)


def _least(points: Sequence[Points], start: np.ndarray) -> tuple[np.ndarray, float]:
    """Where the sum of Huber losses is least from a start, and that sum."""

    def residuals(u: np.ndarray) -> np.ndarray:
        theta = _unpack(u)
        with np.errstate(all="ignore"):
            off = [np.log(np.maximum(_losses(theta, p), 1e-6) / p.loss) for p in points]
        return np.nan_to_num(np.concatenate(off), nan=10.0)

    low, high = _pack(LOW), _pack(HIGH)
    found = least_squares(residuals, np.clip(start, low + 1e-6, high - 1e-6), bounds=(low, high),
                          x_scale="jac", loss="huber", f_scale=HUBER, max_nfev=300)  # fmt: skip
    return found.x, float(found.cost)


def _pack(theta: np.ndarray) -> np.ndarray:
    """To where bounds are boxes and steps alike: logarithms, and gamma as it is."""
    return np.append(np.log(theta[:-1]), theta[-1])


def _unpack(u: np.ndarray) -> np.ndarray:
    return np.append(np.exp(u[:-1]), u[-1])


def _losses(theta: np.ndarray, points: Points) -> np.ndarray:
    """The law [n], in the units of Scale."""
    floor, a, alpha, b, c, beta, gamma = theta
    x = points.rate**-gamma * points.since
    drop = np.where(points.since > 0, 1 - (1 + c * x) ** -beta, 0.0)
    return floor + a * points.area**-alpha - b * drop @ points.fall


def _after_peak(curve: LossCurve) -> np.ndarray:
    """Which losses the law is of [n]: those from the peak of the rate on."""
    return curve.step >= curve.rate_step[int(np.argmax(curve.rate))]


def _points(
    curve: LossCurve, scale: Scale, losses: int | None = None, pieces: int = FINE[1]
) -> Points:
    """What the law reads of a curve; all its losses, or at most so many after the peak."""
    step, loss = curve.step, curve.loss
    if losses:
        keep = np.flatnonzero(_after_peak(curve))
        keep = keep[np.unique(np.linspace(0, len(keep) - 1, losses).round().astype(int))]
        step, loss = step[keep], loss[keep]
    peak = curve.rate_step[int(np.argmax(curve.rate))]
    grid = np.union1d(curve.rate_step, step)
    grid = grid[(grid >= peak) & (grid <= max(step[-1], peak))]
    if len(grid) > pieces:  # as many pieces where the rate falls as where it does not
        rate = np.interp(grid, curve.rate_step, curve.rate)
        along = np.append(0, np.cumsum(np.abs(np.diff(rate)))) / max(np.ptp(rate), 1e-30)
        along = along / max(along[-1], 1e-30) + np.linspace(0, 1, len(grid))
        places = np.searchsorted(along, np.linspace(0, along[-1], pieces))
        grid = grid[np.unique(places.clip(0, len(grid) - 1))]
    rate = np.interp(grid, curve.rate_step, curve.rate)
    middle = (grid[1:] + grid[:-1]) / 2
    at = np.maximum(np.interp(middle, curve.rate_step, curve.rate), 1e-6 * scale.rate)
    s = _areas(curve.rate_step, curve.rate, step)
    since = np.maximum(s[:, None] - _areas(curve.rate_step, curve.rate, middle)[None], 0.0)
    return Points(loss / scale.loss, np.maximum(s, 1e-12 * scale.area) / scale.area,
                  -np.diff(rate) / scale.rate, at / scale.rate, since / scale.area)  # fmt: skip


def _areas(rate_step: np.ndarray, rate: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The sum of learning rates up to steps `at` [n], between records along lines; before the first
    of them a warm-up from 0."""
    x, y = np.append(0.0, rate_step), np.append(0.0, rate)
    if rate_step[0] == 0:
        x, y = rate_step, rate
    before = np.append(0.0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2))
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 1)
    return before[i] + (at - x[i]) * (y[i] + np.interp(at, x, y)) / 2
