"""Laws may drift outside their points: intervals widen with the distance and with what the points
show, as the random walk of a slope says, and hold where the form of a law is wrong."""

import math

import numpy as np
import pytest

from research.scaling import (
    analyze,
    compute_optimal,
    drift,
    isoflop,
    minima_document,
    power_laws,
    uncertainty,
    worlds,
)
from research.scaling.budgets import drop_outliers, estimate_noise, group_by_budget
from research.scaling.drift import Drift
from research.scaling.options import Options
from research.scaling.statistics import usual_range
from tests.scaling.test_minima import published

LOG_C = np.log(np.geomspace(1e18, 1e21, 7))
SLOPE, SD = 0.5, 0.01
FAR = 2 * math.log(10)  # beyond the last point


def line(log_c):
    return np.stack([np.ones(len(log_c)), log_c], 1)


def drift_of(residuals, sd=SD, log_c=LOG_C):
    return Drift(log_c, line(log_c), residuals, np.full((1, len(log_c)), sd), SLOPE, 0.1)


def walked(rng, log_c, steps=400):
    """log N* at `log_c`, whose slope is a random walk with steps of the prior."""
    grid = np.linspace(log_c[0], log_c[-1], steps)
    gap = grid[1] - grid[0]
    size = abs(rng.standard_normal()) * drift.step_size(SLOPE)
    slopes = (
        SLOPE
        + size * math.sqrt(gap) * np.concatenate([[0], rng.standard_normal(steps - 1)]).cumsum()
    )
    return np.interp(log_c, grid, np.concatenate([[0], (slopes[:-1] * gap).cumsum()]))


def laws_through(log_n, seed, k=400):
    sd, floor = np.full(len(LOG_C), SD), np.full(len(LOG_C), 0.1)
    return power_laws.random_effects(LOG_C, log_n, -log_n, sd, floor, -np.ones(7), None, k, seed)


def test_intervals_hold_slopes_that_walk_and_those_of_a_line_do_not(monkeypatch):
    held = {0.0: 0, drift.SHARE: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = walked(rng, np.append(LOG_C, LOG_C[-1] + FAR))
        noisy = truth[:-1] + SD * rng.standard_normal(7)
        for share in held:
            with monkeypatch.context() as patch:
                patch.setattr(drift, "SHARE", share)
                low, high = laws_through(noisy, seed).predict(math.exp(LOG_C[-1] + FAR))[
                    "intervals"
                ]["params"]
            held[share] += low <= math.exp(truth[-1]) <= high
    assert held[drift.SHARE] >= 0.9 * 60
    assert held[0.0] < 0.7 * 60


def test_what_points_show_decides_how_far_the_law_may_drift():
    rng = np.random.default_rng(0)
    x = LOG_C - LOG_C.mean()
    bend = 0.02 * (x**2 - np.mean(x**2))
    straight, bent = (drift_of(y + SD * rng.standard_normal(7)) for y in (0 * x, bend))
    at = np.array([LOG_C[-1] + FAR])
    assert straight.miss(at, line(at))[0] < bent.miss(at, line(at))[0] / 1.5
    blind = drift_of(0 * x, sd=1.0)  # points that show nothing leave the prior
    size = math.sqrt(float(blind.posterior().sum((0, 1)) @ blind.sizes**2))
    assert size == pytest.approx(drift.step_size(SLOPE), rel=0.1)


def test_a_law_drifts_by_the_formula_of_an_integrated_walk():
    """Twin: with steps twice the size, twice as far."""
    of_points = drift_of(np.zeros(7), sd=1.0)
    rng = np.random.default_rng(1)
    grid = np.linspace(LOG_C[0], LOG_C[-1] + FAR, 600)
    gap = grid[1] - grid[0]
    size = math.sqrt(float(of_points.posterior().sum((0, 1)) @ of_points.sizes**2))
    slopes = size * math.sqrt(gap) * rng.standard_normal((3000, 600)).cumsum(1)
    paths = (slopes * gap).cumsum(1)
    at_points = np.stack([np.interp(LOG_C, grid, path) for path in paths])
    best = np.linalg.lstsq(line(LOG_C), at_points.T)[0]
    missed = paths[:, -1] - (line(grid[-1:]) @ best)[0]
    (said,) = of_points.miss(grid[-1:], line(grid[-1:]))
    assert missed.std() == pytest.approx(said, rel=0.06)
    assert 2 * missed.std() != pytest.approx(said, rel=0.06)


def test_outside_of_a_table_alone_a_law_drifts():
    assert not drift.draw_outside(SLOPE, 0.0, 50, 0).any()
    assert not drift.draw_outside(SLOPE, -1.0, 50, 0).any()
    near, far = (drift.draw_outside(SLOPE, x, 4000, 0).std() for x in (1.0, 4.0))
    assert far / near == pytest.approx(8.0)
    assert near == pytest.approx(drift.step_size(SLOPE) / math.sqrt(3), rel=0.1)


def test_a_target_is_as_far_as_from_where_the_slope_was_last_seen():
    """Between the last two budgets; a stray is none, and within the table nothing is far."""
    rows = worlds.Simulator(worlds.isoflop_shape(), worlds.WORLDS["seed"]).table(0, 0)
    odd = {**rows[-1], "tokens": rows[-1]["tokens"] * 1e9}
    first, *_, before, last = worlds.BUDGETS
    for table in (rows, [*rows, odd]):
        above = compute_optimal.beyond_slope(table, 10 * last)
        assert above == pytest.approx(math.log(10 * last / math.sqrt(before * last)))
        below = compute_optimal.beyond_slope(table, first / 10)
        assert below == pytest.approx(math.log(10 * math.sqrt(3)))
        assert compute_optimal.beyond_slope(table, before) == 0.0
    one = [row for row in rows if row["flops"] == first]
    assert compute_optimal.beyond_slope(one, 10 * first) == pytest.approx(math.log(10))


def minima_of(world):
    """The true minima of the budgets of a shape, as documents have them, and the truth far away."""
    simulator = worlds.Simulator(worlds.isoflop_shape(), worlds.WORLDS[world])
    entries = [
        {"flops": float(c), "loss": simulator.optimum(c)[1], "loss_sd": 5e-4}
        for c in worlds.BUDGETS
    ]
    c = 100 * float(worlds.BUDGETS[-1])
    return entries, c, simulator.optimum(c)[1]


@pytest.mark.parametrize("world", ["interaction", "broken"])
def test_the_loss_at_minima_holds_where_its_law_has_another_form(world, monkeypatch):
    """Twin: a law that may not drift misses both."""
    entries, c, truth = minima_of(world)

    def interval():
        law, _ = minima_document._law_of_minima(entries, 7, Options(predict_flops=[c]))
        assert law
        return law["predictions"][0]["interval"]

    low, high = interval()
    assert low <= truth <= high
    monkeypatch.setattr(drift, "SHARE", 0.0)
    low, high = interval()
    assert not low <= truth <= high


def test_without_points_to_spare_a_line_has_the_drift_of_the_prior():
    two = LOG_C[[0, -1]]
    laws = power_laws.random_effects(
        two, SLOPE * two, SLOPE * two, np.full(2, SD), np.full(2, 0.1), -np.ones(2), None, 500, 0
    )
    low, high = laws.predict(math.exp(two[-1] + FAR))["intervals"]["params"]
    assert math.log(high / low) > 0.2
    by_6nd = laws.by_6nd().predict(6 * math.exp(2 * SLOPE * (two[-1] + FAR)))
    assert math.log(by_6nd["intervals"]["params"][1] / high) == pytest.approx(0, abs=0.1)


# Strays, and runs that crashed.


def test_the_usual_range_ends_before_a_stray_and_not_before_a_large_run():
    budgets = np.geomspace(1e18, 1e21, 40)
    assert usual_range(budgets) == (budgets[0], budgets[-1])
    assert usual_range([*budgets, 1e30]) == (budgets[0], budgets[-1])
    assert usual_range([*budgets, 1e3, 1e30]) == (budgets[0], budgets[-1])
    assert usual_range([*budgets, 9e23]) == (budgets[0], 9e23)  # a ladder's last rung
    assert usual_range([*budgets, *[1e30] * 9]) == (budgets[0], 1e30)  # no few
    assert usual_range([1e10, 1e20]) == (1e10, 1e20)
    assert usual_range(10.0 ** np.arange(10, 42, 4)) == (1e10, 1e38)  # steps alike


def table_of(world, stray=False):
    rows = worlds.Simulator(worlds.isoflop_shape(), worlds.WORLDS[world]).table(0, 0)
    if stray:
        far = {k: rows[-1][k] * 1e9 for k in ("tokens", "flops")}
        rows.append({**rows[-1], **far, "run": "odd"})
    return rows


def answer(law, rows, **options):
    return analyze(law, rows, {"predict_flops": [1e25], **options}, checks_too=False).document


@pytest.mark.parametrize("law", [pytest.param("chinchilla", marks=pytest.mark.slow), "isoflop"])
def test_one_stray_run_does_not_silence_what_is_extrapolated(law):
    """Twin: as many runs up there as below are data."""
    for stray in (False, True):
        warnings = " ".join(answer(law, table_of("seed", stray))["warnings"])
        assert "times the largest of the table (flops 7.29e+20): no data are near" in warnings
        assert ("of 57 rows are far off all others" in warnings) == stray
    below = table_of("seed")
    above = [{**r, "run": f"{r['run']}+", "tokens": 1e9 * r["tokens"], "flops": 1e9 * r["flops"]}
             for r in below]  # fmt: skip
    many = below + above
    assert "no data are near" not in " ".join(answer(law, many)["warnings"])


@pytest.mark.slow
def test_runs_that_crashed_are_no_extrapolation_that_failed(monkeypatch):
    """Twin: with them, the errors of a law seem many times larger."""

    def width(world):
        (predicted,) = answer("auto", table_of(world), predict_flops=[1e22])["predictions"]
        low, high = predicted["intervals"]["loss"]
        return math.log(high / low)

    clean, crashed = width("seed"), width("crashed")
    assert crashed < 2 * clean
    monkeypatch.setattr(uncertainty, "outliers", lambda problem, theta: np.zeros(problem.n, bool))
    assert width("crashed") > 5 * clean


def log_likelihood(found):
    """Of every size of the steps [G], noise and scatter integrated out."""
    p = found.posterior().sum((0, 1))
    prior = drift._cells(drift.STEPS) * np.exp(-(drift.STEPS**2) / 2)
    return np.log(np.maximum(p, 1e-300)) - np.log(prior)


@pytest.mark.slow
def test_how_far_laws_drift_is_what_published_sweeps_allow(monkeypatch):
    """The six sweeps of Porian et al., whose minima Akima's interpolation locates: SHARE is as
    likely as the likeliest share, and a fifth of the slope in a decade is not."""
    rows = [
        row | {name: float(row[name]) for name in ("flops", "params", "tokens", "loss")}
        for row in published("porian_rw_isoflop.csv")
    ]
    shares = np.concatenate([[0.0], np.geomspace(0.0025, 1, 25)])
    monkeypatch.setattr(drift, "STEPS", shares / drift.SHARE)
    total = np.zeros(len(shares))
    for setting in sorted({row["setting"] for row in rows}):
        some = drop_outliers([row for row in rows if row["setting"] == setting])[0]
        budgets, _ = group_by_budget(some)
        noise = estimate_noise(some, budgets, Options())
        minima, _ = isoflop.sample_minima(budgets, "akima", noise, 400, 0)
        log_c, log_n = (np.array(x) for x in zip(*((np.log(m.budget.flops), m.log_n)
                                                   for m in minima), strict=True))  # fmt: skip
        sd, floor = (np.array([getattr(m, name) for m in minima]) for name in ("sd", "sharpest"))
        law = power_laws.random_effects(
            log_c, log_n, -log_n, sd, floor, -np.ones(len(minima)), noise.freedom, 200, 0
        )
        total += log_likelihood(law.drift)
    total -= total.max()
    at = dict(zip(shares.round(3).tolist(), total.round(1).tolist(), strict=True))
    assert np.interp(drift.SHARE, shares, total) > -0.5, at
    assert np.interp(0.2, shares, total) < -2, at
