"""Whether a law of params and tokens describes its rows at all.

An F test against a cubic surface in log params and log tokens, on the rows that are no outliers. In
large tables it finds what is too small to matter, so a law is only said not to describe the rows
where it is off them by a percent beyond what the surface leaves too.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import fdtrc

from research.scaling.fit import Fit
from research.scaling.influence import off_the_law

DEGREE = 3  # of the surface in both logarithms
CHANCE, MISFIT = 1e-4, 0.01  # p-value, and log loss that a law is off beyond noise


def misfit(fit: Fit) -> float:
    """By how much in log loss the law is off its rows beyond noise; 0 where that may be chance or
    matters little, or where there are too few rows to tell."""
    if not {"params", "tokens"} <= set(fit.law.columns):
        return 0.0
    kept = ~off_the_law(fit, fit.best)[1]
    log_y = fit.problem.log_y[kept]
    n, d = (np.log(fit.columns[name][kept]) for name in ("params", "tokens"))
    n, d = ((x - x.mean()) / max(float(np.ptp(x)), 1e-9) for x in (n, d))
    terms = [n**i * d**j for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    surface = np.linalg.qr(np.stack(terms, axis=1))[0]
    off_law = fit.law.evaluate(fit.best[None], fit.problem.x)[0][0][kept] - log_y
    off_surface = log_y - surface @ (surface.T @ log_y)
    parameters = fit.problem.n - fit.problem.freedom
    more, left = len(terms) - parameters, len(log_y) - len(terms)
    if more < 1 or left < len(terms):
        return 0.0
    of_law, of_surface = float(off_law @ off_law), float(off_surface @ off_surface) + 1e-300
    if fdtrc(more, left, max(of_law / of_surface - 1, 0.0) * left / more) > CHANCE:
        return 0.0
    beyond = math.sqrt(max(of_law / (len(log_y) - parameters) - of_surface / left, 0.0))
    return beyond if beyond > MISFIT else 0.0


def misfit_warning(fits: Sequence[Fit], averaged: bool = False) -> list[str]:
    """A warning, with what to do, where a law, or none of those that are `averaged`, describes the
    rows."""
    off, name = min((misfit(fit), fit.law.name) for fit in fits)
    if not off:
        return []
    if averaged:
        which, others = f"no law here describes these rows: the nearest, {name},", ""
    else:
        which = f"{name} does not describe these rows: it"
        others = "--law=auto asks other laws too, "
    return [
        f"{which} is off by {math.expm1(off):.1%} beyond their noise (F test); {others}"
        "--law=isoflop reads the valleys of budgets alone, or --where leaves out runs far from "
        "the best size"
    ]
