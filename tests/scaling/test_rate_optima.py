"""Where the best learning rates lie, how far they move, and what another one costs."""

import math

import numpy as np
import pytest

from research.errors import BadInput
from research.scaling import rate_optima

RATES = [0.01 * 2.0**k for k in range(-3, 4)]


def curve(width, best, noise=0.0, diverged=(), seed=0):
    rng = np.random.default_rng(seed + width)
    losses = {
        lr: math.inf
        if lr in diverged
        else (3 + 4 / width) * math.exp(0.02 * math.log(lr / best) ** 2 + noise * rng.normal())
        for lr in RATES
    }
    return rate_optima.make_curve(width, width**2, losses)


def test_an_optimum_is_recovered_and_how_far_it_moves():
    exact = rate_optima.describe([curve(32, 0.02), curve(64, 0.01), curve(256, 0.005)], 64)
    assert [e["lr"] for e in exact["optima"]] == pytest.approx([0.02, 0.01, 0.005])
    assert exact["optimum_shift_log2"] == pytest.approx(-2)
    assert exact["optimum_range_log2"] == pytest.approx(2)
    assert [e["curvature"] for e in exact["optima"]] == pytest.approx([0.02] * 3)
    still = rate_optima.describe([curve(32, 0.01), curve(256, 0.01)], 32)
    assert still["optimum_shift_log2"] == pytest.approx(0, abs=1e-9)
    assert not exact["censored"]
    assert not still["censored"]


def test_intervals_cover_the_optimum_and_widen_with_noise():
    widths, inside, sizes, bends = (32, 64, 128, 256), 0, {}, 0
    for noise in (0.001, 0.004):
        sizes[noise] = 0.0
        for seed in range(30):
            found = rate_optima.describe(
                [curve(w, 0.012, noise, seed=9 * seed) for w in widths], 64
            )
            low, high = found["optimum_shift_interval"]
            inside += low <= 0 <= high
            sizes[noise] += high - low
            for entry in found["optima"]:
                assert entry["interval"][0] < entry["lr"] < entry["interval"][1]
                low, high = entry["curvature_interval"]
                assert low < entry["curvature"] < high
                bends += low <= 0.02 <= high
    assert 52 <= inside < 61  # of 60
    assert 210 <= bends < 240  # of 240
    assert sizes[0.004] > 2 * sizes[0.001]


def test_an_optimum_at_the_edge_is_a_bound():
    found = rate_optima.describe([curve(32, 0.3), curve(64, 0.01), curve(128, 1e-4)], 64)
    assert [e["censored"] for e in found["optima"]] == ["high", None, "low"]
    assert [e["lr"] for e in found["optima"]] == pytest.approx([0.08, 0.01, 0.00125])
    assert found["optima"][0]["interval"] is None
    assert found["censored"]
    assert found["optimum_shift_interval"] is None
    # The last rate that did not diverge is an edge as well.
    wild = rate_optima.describe([curve(32, 0.3, diverged=RATES[-2:]), curve(64, 0.01)], 64)
    assert wild["optima"][0]["censored"] == "high"
    assert wild["optima"][0]["lr"] == pytest.approx(0.02)
    assert wild["optima"][0]["tried"]["loss"][-2:] == [None, None]


def test_wider_is_told_where_it_is_worse():
    better = rate_optima.describe([curve(32, 0.01), curve(64, 0.01)], 32)
    assert better["wider_never_worse"]
    assert better["shared_lr"] == pytest.approx(0.01)
    worse = rate_optima.describe([curve(32, 0.01), curve(64, 0.01), curve(128, 1e-4)], 32)
    assert not worse["wider_never_worse"]
    assert [(rise["from"], rise["to"]) for rise in worse["rises"]] == [(64, 128)]
    assert worse["rises"][0]["loss"] > 0


def test_a_width_needs_three_losses():
    with pytest.raises(BadInput, match="width 32: 2 learning rates have a loss; expected 3"):
        curve(32, 0.01, diverged=RATES[2:])
    assert len(curve(32, 0.01, diverged=RATES[3:]).lr) == len(RATES)


def test_candidates_are_compared_by_the_noise_of_all():
    losses = {"transferred": [3.02, 3.0], "tuned": [3.0, 2.98], "standard": [3.11, 3.09]}
    found = rate_optima.compare_candidates(losses, "transferred")
    assert found["seed_sd"] == pytest.approx(0.02 / math.sqrt(2))
    assert found["freedom"] == 3
    tuned, standard = found["against"]["tuned"], found["against"]["standard"]
    assert tuned["loss"] == pytest.approx(0.02)
    off = 3.1824 * 0.02 / math.sqrt(2)  # Student's t, of the difference of two means of two
    assert tuned["interval"] == pytest.approx([0.02 - off, 0.02 + off], rel=1e-4)
    assert standard["loss"] == pytest.approx(-0.09)
    assert standard["interval"][1] < 0 < tuned["interval"][1]
    wild = rate_optima.compare_candidates(losses | {"standard": [3.1, math.inf]}, "transferred")
    assert wild["against"]["standard"] == {"loss": None, "interval": None}
    assert wild["seed_sd"] is None
    assert wild["against"]["tuned"]["loss"] == pytest.approx(0.02)
