"""The best learning rate of every width, how far it moves, and what a transferred one costs.

The optimum of a width is the vertex of a parabola in log lr through the rates around its least
loss; its interval is what noise of the size of the residuals does to it. A least loss at the edge
of the rates that were tried is no minimum but a bound: it is censored, and has no interval.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from research.errors import BadInput
from research.scaling.isoflop import parabola_minimum
from research.scaling.recipes import PARABOLA

WINDOW = 2  # rates on either side of the least that a parabola goes through
DRAWS = 1000
INSIDE = 0.95  # of the draws, below which an optimum has no interval
LEAST = 3  # rates of a width that finished


@dataclass(frozen=True)
class Curve:
    """The losses [n] of one width by learning rate, ascending; infinite where a run diverged."""

    width: int
    params: int
    lr: np.ndarray
    loss: np.ndarray

    @property
    def least(self) -> int:
        return int(np.argmin(self.loss))

    @property
    def censored(self) -> str | None:
        """Beyond which of the rates that finished the optimum lies, if it lies between none."""
        ends = np.flatnonzero(np.isfinite(self.loss))[[0, -1]]
        return {ends[0]: "low", ends[-1]: "high"}.get(self.least)

    @property
    def around(self) -> tuple[np.ndarray, np.ndarray]:
        """log lr and log loss of the rates through which the parabola goes."""
        i = self.least
        nearest = np.arange(len(self.lr))
        near = abs(nearest - i) <= WINDOW
        near &= (self.loss <= (1 + PARABOLA) * self.loss[i]) | (abs(nearest - i) <= 1)
        near &= np.isfinite(self.loss)
        return np.log(self.lr[near]), np.log(self.loss[near])


def make_curve(width: int, params: int, losses: Mapping[float, float]) -> Curve:
    """Raises BadInput where too few runs have a loss."""
    lr = np.array(sorted(losses))
    loss = np.array([losses[x] for x in lr])
    loss = np.where(np.isfinite(loss), loss, np.inf)
    if np.isfinite(loss).sum() < LEAST:
        raise BadInput(
            f"width {width}: {np.isfinite(loss).sum()} learning rates have a loss; expected {LEAST}"
        )
    return Curve(width, params, lr, loss)


def describe(curves: Sequence[Curve], base: int) -> dict[str, Any]:
    """The optima of all widths, ascending, and how far they move; what a wider model loses at the
    rate that is shared, the tried one nearest to the optimum at width `base`."""
    noise, freedom = _noise(curves)
    found = [_locate(curve, noise, freedom) for curve in curves]
    optima = [entry for entry, _ in found]
    rates = np.log2([entry["lr"] for entry in optima])
    censored = any(entry["censored"] for entry in optima)
    moves = (found[-1][1] - found[0][1]) / math.log(2)
    known = next((i for i, curve in enumerate(curves) if curve.width == base), 0)
    return {
        "optima": optima,
        "noise": noise,
        "freedom": freedom,
        "optimum_shift_log2": float(rates[-1] - rates[0]),
        "optimum_shift_interval": None if censored else _quantiles(moves),
        "optimum_range_log2": float(np.ptp(rates)),
        "censored": censored,
        **_wider(curves, optima[known]["lr"]),
    }


def _noise(curves: Sequence[Curve]) -> tuple[float, int]:
    """The standard deviation of a log loss about the parabolas, and its degrees of freedom: noise
    and what no parabola follows."""
    squares, freedom = 0.0, 0
    for x, y in (curve.around for curve in curves if not curve.censored):
        squares += float(np.sum((y - np.polyval(np.polyfit(x, y, 2), x)) ** 2))
        freedom += len(x) - 3
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


def _locate(curve: Curve, noise: float, freedom: int) -> tuple[dict[str, Any], np.ndarray]:
    """The optimum of a width, and draws [K] of log lr (NaN where it has none inside)."""
    x, y = curve.around
    at, interval, bends, between = float(np.log(curve.lr[curve.least])), None, None, None
    draws = np.full(DRAWS, np.nan)
    if not (censored := curve.censored):
        rng = np.random.default_rng(curve.width)
        spread = noise * float(stdtrit(freedom, 0.975)) / 1.96 if freedom else 0.0
        drawn = y[:, None] + spread * rng.standard_normal((len(y), DRAWS))
        vertex, _ = parabola_minimum(x, np.concatenate([y[:, None], drawn], axis=1))
        at = float(vertex[0]) if np.isfinite(vertex[0]) else at
        bends = float(np.polyfit(x, y, 2)[0])
        if freedom:  # without, nothing says how large noise is
            draws, between = vertex[1:], _quantiles(np.polyfit(x, drawn, 2)[0])
            ends = _quantiles(draws)
            interval = ends and [math.exp(end) for end in ends]
    losses = [float(loss) if math.isfinite(loss) else None for loss in curve.loss]
    entry = {
        "width": curve.width,
        "params": curve.params,
        "lr": math.exp(at),
        "interval": interval,
        "censored": censored,
        "curvature": bends,
        "curvature_interval": between,
        "loss": float(curve.loss[curve.least]),
        "tried": {"lr": curve.lr.tolist(), "loss": losses},
    }
    return entry, draws


def _quantiles(draws: np.ndarray) -> list[float] | None:
    inside = draws[np.isfinite(draws)]
    if len(inside) < INSIDE * len(draws):
        return None
    return [float(end) for end in np.quantile(inside, [0.025, 0.975])]


def _wider(curves: Sequence[Curve], lr: float) -> dict[str, Any]:
    """Whether at the rate tried that is nearest to `lr` a wider model is ever worse."""
    rates = curves[0].lr
    i = int(np.argmin(abs(np.log(rates / lr))))
    losses = [float(curve.loss[i]) for curve in curves]
    rises = [
        {"from": a.width, "to": b.width, "loss": float(y - x) if math.isfinite(y) else None}
        for (a, x), (b, y) in itertools.pairwise(zip(curves, losses, strict=True))
        if not y <= x
    ]
    return {"shared_lr": float(rates[i]), "wider_never_worse": not rises, "rises": rises}


def compare_candidates(losses: Mapping[str, Sequence[float]], to: str) -> dict[str, Any]:
    """What the candidate `to` loses against each other one, in seeds that no choice has seen.

    `losses` of each candidate, by seed. One standard deviation of a run is pooled over all of them,
    and the intervals are Student's t.
    """
    count = len(losses[to])
    values = {name: np.array(x, float) for name, x in losses.items()}
    freedom = (count - 1) * len(values)
    finite = all(np.isfinite(x).all() for x in values.values())
    sd = math.sqrt(np.mean([np.var(x, ddof=1) for x in values.values()])) if finite else None
    out = {}
    for name, x in values.items():
        if name == to:
            continue
        loss = float(np.mean(values[to]) - np.mean(x))
        entry: dict[str, Any] = {"loss": loss if math.isfinite(loss) else None, "interval": None}
        if sd is not None:
            off = float(stdtrit(freedom, 0.975)) * sd * math.sqrt(2 / count)
            entry["interval"] = [loss - off, loss + off]
        out[name] = entry
    return {"seed_sd": sd, "freedom": freedom, "against": out}
