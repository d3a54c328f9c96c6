"""Training curves of a sweep, normalized so that they fall on one where all is tuned alike.

Of a run that ends at a loss L(T), (L(t) - E) / (L(T) - E) against the share of training t / T is
the same at every size, if learning rate, batch and schedule follow the size as they should (Qiu et
al. 2025, arXiv:2507.02119). How far the curves of a sweep are apart says how well they do, a run
that leaves the bundle is one to look at, and the bundle forecasts the curve of a larger run from
its last loss. E is that of the law; L(T) is the held-out loss, which is known better than the last
losses of batches, and what a law predicts.

Where a learning rate is too high for longer runs, what it adds before it decays does not shrink as
L(T) - E does. So L(t) - L(T) is also fitted as linear in log N and log D, at every share, and a
forecast weighs both by how well they describe the curves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import t as student

from research.errors import BadInput
from research.scaling.statistics import MEDIAN_OF_NORMAL, NORMAL
from research.tables.table import Row

SHARES = np.arange(1, 101) / 100
BEGIN = 0.1  # share of training from which curves are compared: before it they warm up
WIDTH = 0.25  # of the smoothing kernel, in the logarithm of the share
LEAST = 4  # records within it
ENOUGH = 0.5  # of the shares, at which a curve has to be known
FEWEST = 4  # curves of a bundle
MEDIAN_OF_SQUARES = 0.8  # root of the median to the mean, of squares of a few deviations
VARIED = 0.05  # standard deviation of a log size or length, from which on a trend is fitted in it
LEAVES = 3.0  # standard deviations off the bundle


@dataclass(frozen=True)
class Curve:
    """Losses of batches [n] at shares [n] of the training of a run, and its held-out loss."""

    run: str
    share: np.ndarray
    loss: np.ndarray
    final: float
    params: float
    tokens: float


@dataclass(frozen=True)
class Bundle:
    """Normalized curves [r, m] at SHARES (NaN where a run has too few records), their standard
    errors by the noise of batches, the curve [m] that they share with its own, and by how much
    curves differ from it beside noise, relative. `excess` [r, m] is how far above their last loss
    the curves are."""

    floor: float
    curves: Sequence[Curve]
    excess: np.ndarray
    normalized: np.ndarray
    errors: np.ndarray
    middle: np.ndarray
    middle_error: np.ndarray
    spread: float

    @property
    def known(self) -> np.ndarray:
        """Where the shared curve is known [m]."""
        return np.isfinite(self.middle)

    @property
    def off(self) -> np.ndarray:
        """How far each curve is off the shared one, relative [r, m]."""
        return self.normalized / self.middle - 1

    def forecast(
        self, predicted: float, run_interval: Sequence[float | None], params: float, tokens: float
    ) -> dict[str, list[float]] | None:
        """Losses of batches on the way of a run of that size to a `predicted` loss, with their
        standard deviations (without the noise of batches); None where its interval is open."""
        low, high = run_interval
        if low is None or high is None or low <= 0 or predicted <= self.floor:
            return None
        final = predicted * math.log(high / low) / (2 * NORMAL)
        g = self.middle[self.known]
        scale = predicted - self.floor
        shared = scale * g
        own = np.hypot(scale * np.hypot(g * self.spread, self.middle_error[self.known]), g * final)
        linear, sd, weight = self._linear(params, tokens)
        mean = (1 - weight) * (self.floor + shared) + weight * (predicted + linear)
        apart = (self.floor + shared) - (predicted + linear)
        variance = (1 - weight) * own**2 + weight * (sd**2 + final**2)
        variance += weight * (1 - weight) * apart**2
        if self._falls:  # as no line through its noisy shares says by itself
            mean = isotonic_regression(mean, weights=1 / variance, increasing=False).x
        return {
            "share": SHARES[self.known].tolist(),
            "loss": mean.tolist(),
            "sd": np.sqrt(variance).tolist(),
        }

    @property
    def _falls(self) -> bool:
        """Whether the shared curve falls all the way, as far as it is known."""
        g, allowed = self.middle[self.known], LEAVES * self.middle_error[self.known]
        return bool((np.abs(isotonic_regression(g, increasing=False).x - g) <= allowed).all())

    def _linear(self, params: float, tokens: float) -> tuple[np.ndarray, ...]:
        """What is above the last loss [k], where the shared curve is known, of a run of that size,
        by least squares in log N and log D over the curves; its standard deviations [k]; and its
        weight [k] beside the shared curve, by the likelihood of both (as if shares were one), or 0
        where too few curves are known, or sizes or tokens are as good as equal. A curve's residual
        is that of the fit to the others, no less than the noise of batches."""
        sizes = np.log([[curve.params, curve.tokens] for curve in self.curves])
        x = np.column_stack([np.ones(len(sizes)), sizes - sizes.mean(0)])
        at = np.concatenate([[1.0], np.log([params, tokens]) - sizes.mean(0)])
        if np.linalg.matrix_rank(x, tol=VARIED * math.sqrt(len(x))) < x.shape[1]:
            x, at = x[:, :2], at[:2]  # tokens grow as the sizes do
        all_vary = (sizes.std(0) > VARIED).all()
        scale = np.array([curve.final - self.floor for curve in self.curves])
        out, telling = [], []
        for i in np.flatnonzero(self.known):
            there = np.isfinite(self.excess[:, i])
            some, y, n = x[there], self.excess[there, i], int(there.sum())
            rank = np.linalg.matrix_rank(some, tol=VARIED * math.sqrt(len(some)))
            if not all_vary or n < some.shape[1] + 2 or rank < some.shape[1]:
                out.append((0.0, 0.0, 0.0))
                continue
            inverse = np.linalg.inv(some.T @ some)
            beta = inverse @ some.T @ y
            leverage = np.sum(some @ inverse * some, axis=1)
            left_out = np.mean(((y - some @ beta) / np.maximum(1 - leverage, 1e-6)) ** 2)
            noise = np.mean((scale[there] * self.errors[there, i]) ** 2)
            variance = max(left_out, noise) * (1 + at @ inverse @ at)
            few = student.ppf(0.975, n - some.shape[1]) / NORMAL
            out.append((at @ beta, few * math.sqrt(variance), 1.0))
            off = scale[there] * (self.normalized[there, i] - self.middle[i])
            shared = np.nanmean((off * n / (n - 1)) ** 2)
            telling.append(n * math.log(max(shared, 1e-12) / max(left_out, 1e-12)) / 2)
        linear, sd, there = np.array(out).T
        weight = 1 / (1 + np.exp(-np.clip(np.mean(telling), -50, 50))) if telling else 0.0
        return linear, sd, weight * there

    @property
    def late(self) -> np.ndarray:
        """Where curves are compared [m]."""
        return self.known & (SHARES >= BEGIN)

    @property
    def left(self) -> np.ndarray:
        """Which curves [r] are further off the shared one than noise and spread allow."""
        noise = np.nanmean((self.errors / self.middle)[:, self.late] ** 2, axis=1)
        return np.nanmean(self.off[:, self.late] ** 2, axis=1) > LEAVES**2 * (
            noise + self.spread**2
        )

    def leaving(self) -> list[dict[str, Any]]:
        """The runs that leave the bundle: from which share on, and by how much at most."""
        allowed = np.hypot(self.errors / self.middle, self.spread)[:, self.late]
        off, shares, out = self.off[:, self.late], SHARES[self.late], []
        for curve, from_it, limit, left in zip(self.curves, off, allowed, self.left, strict=True):
            if left:
                worst = int(np.nanargmax(np.abs(from_it)))
                within = np.flatnonzero(~(np.abs(from_it) > LEAVES * limit)[:worst])
                at = min(worst, int(within[-1]) + 1) if len(within) else 0
                out.append({"run": curve.run, "params": curve.params,
                            "share": float(shares[at]), "off": float(from_it[worst])})  # fmt: skip
        return out

    def section(self) -> dict[str, Any]:
        """What there is to say of the bundle: "spread" beside the noise, and the root mean squares
        of "all" and of what "noise" alone would give, relative."""
        late = self.late
        return {
            "runs": len(self.curves),
            "floor": self.floor,
            "spread": self.spread,
            "all": _root_mean_square(self.off[:, late]),
            "noise": _root_mean_square((self.errors / self.middle)[:, late]),
            "leaving": self.leaving(),
        }


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(values**2)))


def make_curves(
    rows: Sequence[Row], read: Callable[[str], Sequence[Mapping[str, Any]]]
) -> list[Curve]:
    """The training curves of finished runs; `read` gives the records of one by its name. Raises
    BadInput where their schedules differ in more than their length."""
    done = [row for row in rows if row.get("status") == "done" and row.get("steps")]
    names = sorted({name for row in done for name in row if name.startswith("optim.schedule.")})
    for name in names:
        if len(found := {str(row.get(name)) for row in done}) > 1:
            raise BadInput(f"the schedules differ: {name} is {' or '.join(sorted(found))}")
    out = []
    for row in done:
        records = [record for record in read(str(row["run"])) if "train_loss" in record]
        share = np.array([(record["step"] + 1) / row["steps"] for record in records])
        loss = np.array([record["train_loss"] for record in records])
        final, params, tokens = (float(row.get(k) or 0.0) for k in ("loss", "params", "tokens"))
        out.append(Curve(str(row["run"]), share, loss, final, params, tokens))
    return out


def make_bundle(curves: Sequence[Curve], floor: float) -> Bundle:
    """Raises BadInput where too few curves can be compared."""
    late = SHARES >= BEGIN
    pairs = [(curve, smooth(curve)) for curve in curves if curve.final > floor]
    pairs = [(c, both) for c, both in pairs if np.isfinite(both[0][late]).mean() > ENOUGH]
    if len(pairs) < FEWEST:
        raise BadInput(
            f"{len(pairs)} training curves with records enough, of {FEWEST} that a comparison needs"
        )
    curves, smoothed = [curve for curve, _ in pairs], [both for _, both in pairs]
    scale = np.array([curve.final - floor for curve in curves])[:, None]
    values = np.array([value for value, _ in smoothed])
    excess = values - np.array([[curve.final] for curve in curves])
    normalized = (values - floor) / scale
    errors = np.array([error for _, error in smoothed]) / scale
    enough = np.isfinite(normalized).sum(0) >= FEWEST
    normalized = np.where(enough & (normalized > 0), normalized, math.nan)
    # Those that leave it are no part of what the others share: first by what half of them show.
    middle = np.where(enough, np.nanmedian(np.where(enough, normalized, 1.0), axis=0), math.nan)
    bundle = Bundle(floor, curves, excess, normalized, errors, middle, middle, 0.0)
    bundle = replace(bundle, spread=_spread(bundle, np.median) / MEDIAN_OF_SQUARES)
    for _ in range(2):
        keep = ~bundle.left
        middle, own = _middle(normalized[keep], errors[keep], bundle.spread)
        bundle = replace(bundle, middle=middle, middle_error=own)
        bundle = replace(bundle, spread=_spread(bundle, np.mean, keep))
    return bundle


def _spread(
    bundle: Bundle, average: Callable[..., Any], keep: np.ndarray | slice = slice(None)
) -> float:
    """By how much curves are apart beside their noise, of an average over them of squares."""
    squares = bundle.off[:, bundle.late] ** 2 - (bundle.errors / bundle.middle)[:, bundle.late] ** 2
    return math.sqrt(max(float(average(np.nanmean(squares, axis=1)[keep])), 0.0))


def _middle(
    normalized: np.ndarray, errors: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of normalized curves [m], each weighed by what it is certain of, and its error."""
    there = np.isfinite(normalized)
    enough = there.sum(0) >= FEWEST
    variance = errors**2 + (spread * np.where(there, normalized, 1.0)) ** 2
    weights = np.where(there, 1 / np.where(there, variance, 1.0), 0.0)
    total = np.where(enough, weights.sum(0), math.nan)
    mean = (weights * np.where(there, normalized, 0.0)).sum(0) / total
    return mean, np.sqrt(1 / total)


def smooth(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The losses of a curve at SHARES, by lines through its records near them, and their standard
    errors; NaN where there are fewer than LEAST."""
    steps = np.diff(curve.loss) / math.sqrt(2)  # the fall from one record to the next is small
    noise = float(np.median(np.abs(steps))) / MEDIAN_OF_NORMAL
    at = np.log(curve.share)
    value, error = np.full((2, len(SHARES)), math.nan)
    for i, share in enumerate(SHARES):
        x = at - math.log(share)
        w = np.maximum(0.0, 1 - (x / WIDTH) ** 2)
        if (w > 0).sum() < LEAST:
            continue
        m0, m1, m2 = w.sum(), w @ x, w @ x**2
        if not (determinant := m0 * m2 - m1 * m1) > 1e-12 * m0 * m0:
            continue
        line = w * (m2 - m1 * x) / determinant
        value[i], error[i] = line @ curve.loss, noise * float(np.sqrt(line @ line))
    return value, error
