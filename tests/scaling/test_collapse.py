"""Training curves fall on one where they should, a run that leaves them is named, and what they
share forecasts a larger run."""

import math
from dataclasses import replace

import numpy as np
import pytest

from research.errors import BadInput
from research.report import sweep_figures, text
from research.scaling import collapse
from research.scaling.collapse import Curve, make_bundle, make_curves

E, TOKENS = 1.5, 2e5


def shape(share):
    """What all curves share: a power of the share, and the end of a schedule."""
    return share**-0.3 * (1 - 0.1 * share**4) / 0.9


def curve(i, noise=0.03, amplitude=None, records=300, changed=lambda share: 1.0, offset=0.0):
    rng = np.random.default_rng(i)
    share = (np.arange(records) + 1) / records
    amplitude = amplitude or 2.0 * 0.8**i
    loss = E + offset + amplitude * shape(share) * changed(share)
    loss = loss + noise * rng.standard_normal(records)
    return Curve(f"r{i}", share, loss, E + amplitude, 1e4 * 2.0**i, TOKENS * 2.0**i)


def test_curves_of_one_shape_fall_on_it():
    bundle = make_bundle([curve(i) for i in range(8)], E)
    late = collapse.SHARES >= 0.1
    assert bundle.middle[late] == pytest.approx(shape(collapse.SHARES[late]), rel=0.02)
    section = bundle.section()
    assert section["leaving"] == []
    assert section["spread"] < 0.01
    assert section["all"] == pytest.approx(section["noise"], rel=0.35)
    # The same curves less E alone, as if there were no floor, are apart.
    apart = make_bundle([curve(i) for i in range(8)], 0.0).section()
    assert apart["spread"] > 5 * max(section["spread"], 0.005)


def test_a_spread_beside_the_noise_is_measured():
    curves = [curve(i, changed=lambda u, i=i: 1 + 0.05 * (-1) ** i * np.sin(3 * u))
              for i in range(12)]  # fmt: skip
    wanted = 0.05 * math.sqrt(np.mean(np.sin(3 * collapse.SHARES[9:]) ** 2))
    assert make_bundle(curves, E).spread == pytest.approx(wanted, rel=0.25)


def with_one_that_leaves(by):
    """Curves of which the sixth rises from the middle of training on."""
    late = [curve(i, changed=lambda u, i=i: 1 + (by * np.maximum(u - 0.5, 0) if i == 5 else 0 * u))
            for i in range(10)]  # fmt: skip
    return make_bundle(late, E)


@pytest.mark.parametrize(("by", "left"), [(0.05, []), (0.1, ["r5"])])  # 2.2 and 4.4 of its errors
def test_a_run_is_off_the_bundle_from_three_standard_deviations_on(by, left):
    assert [entry["run"] for entry in with_one_that_leaves(by).section()["leaving"]] == left


def test_a_run_that_leaves_the_bundle_is_named_with_where():
    bundle = with_one_that_leaves(0.4)
    (left,) = bundle.section()["leaving"]
    assert left["run"] == "r5"
    assert 0.45 < left["share"] < 0.7
    assert left["off"] == pytest.approx(0.2, abs=0.06)
    assert bundle.spread < 0.015  # it is no part of what the others share
    words = " ".join(text.collapse_sentences(bundle.section()))
    assert "Run r5 (320k parameters) leaves it at" in words
    lines = [line.get_label() for line in sweep_figures.collapse_curves(bundle).axes[0].lines]
    assert "r5: 320k parameters" in lines


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-9, 1e-3])
@pytest.mark.parametrize("name", ["params", "tokens"])
def test_no_trend_is_fitted_in_sizes_or_lengths_that_are_as_good_as_equal(name, apart):
    """Twin: where they differ, the trend has weight (above)."""
    equal = [replace(hot(i), **{name: 1e4 * (1 + apart * i)}) for i in range(16)]
    bundle = make_bundle(equal, E)
    forecast = bundle.forecast(2.0, [1.98, 2.02], 6e5, 1e7)
    known = bundle.middle[bundle.known]
    assert forecast["loss"] == pytest.approx(E + 0.5 * known, rel=1e-12)


LARGE = 1e4 * 2**9.3, TOKENS * 2**9.3


def hot(i, seed=0):
    """A curve of a rate that is too high: what is above its last loss does not shrink with it."""
    rng = np.random.default_rng((i, seed))
    share = (np.arange(300) + 1) / 300
    n, d = 1e4 * 2.0 ** (i % 4), TOKENS * 2.0 ** (i // 4 + rng.uniform(-0.3, 0.3))
    final = E + 60 * n**-0.5 + 200 * d**-0.5
    excess = (0.3 + 0.04 * math.log(n / 1e4)) * (1 - share)
    return Curve(f"r{i}", share, final + excess + 0.01 * rng.standard_normal(300), final, n, d)


def test_a_forecast_holds_where_curves_do_not_fall_on_one(monkeypatch):
    """The twin: the shared curve alone, scaled to the predicted loss, is off by far."""
    bundle = make_bundle([hot(i) for i in range(16)], E)
    n, d = 1e4 * 2.0**6, TOKENS * 2.0**6
    final = E + 60 * n**-0.5 + 200 * d**-0.5
    truth = final + (0.3 + 0.04 * math.log(n / 1e4)) * (1 - collapse.SHARES)
    apart = []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(collapse.Bundle, "_linear", lambda *_: (0.0, 0.0, 0.0))
        forecast = bundle.forecast(final, [0.99 * final, 1.01 * final], n, d)
        loss, sd = (np.array(forecast[name]) for name in ("loss", "sd"))
        middle = slice(20, 60)
        off = loss - truth[bundle.known]
        apart.append((np.abs(off / sd)[middle].max(), np.abs(off)[middle].max()))
    assert apart[0][0] < 2
    assert apart[0][1] < 0.02
    assert apart[1][0] > 3
    assert apart[1][1] > 0.1


def test_a_forecast_of_few_noisy_curves_is_as_uncertain_as_it_should_be():
    n, d = 1e4 * 2.0**6, TOKENS * 2.0**6
    final = E + 60 * n**-0.5 + 200 * d**-0.5
    truth = final + (0.3 + 0.04 * math.log(n / 1e4)) * (1 - collapse.SHARES)
    inside = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        few = [hot(i, seed) for i in (0, 2, 3, 4, 6, 9, 11, 14, 15)]
        few = [replace(c, loss=(c.loss + 0.15 * rng.standard_normal(300))[::6], share=c.share[::6])
               for c in few]  # fmt: skip
        bundle = make_bundle(few, E)
        forecast = bundle.forecast(final, [0.99 * final, 1.01 * final], n, d)
        loss, sd = (np.array(forecast[name]) for name in ("loss", "sd"))
        assert (np.diff(loss) <= 1e-9).all()  # as those of the sweep do
        inside.append(np.mean(np.abs(loss - truth[bundle.known]) < 2 * sd))
    assert np.mean(inside) > 0.93
    assert min(inside) > 0.5


def test_a_forecast_rises_where_all_curves_do():
    """The twin of one that falls."""
    curves = [curve(i, changed=lambda u: 1 + 0.6 * np.exp(-(((u - 0.6) / 0.08) ** 2)))
              for i in range(8)]  # fmt: skip
    forecast = make_bundle(curves, E).forecast(E + 0.25, [1.7, 1.8], *LARGE)
    assert np.diff(forecast["loss"]).max() > 0.005


def test_a_forecast_holds_the_curve_of_a_larger_run():
    bundle = make_bundle([curve(i) for i in range(8)], E)
    final = E + 0.25
    forecast = bundle.forecast(final, [0.98 * final, 1.02 * final], *LARGE)
    share, loss, sd = (np.array(forecast[name]) for name in ("share", "loss", "sd"))
    truth = E + 0.25 * shape(share)
    inside = share >= 0.1
    assert (np.abs(loss - truth) < 2 * sd)[inside].all()
    assert loss[inside] == pytest.approx(truth[inside], rel=0.01)
    assert sd[-1] == pytest.approx(final * math.log(1.02 / 0.98) / 3.92 * loss[-1] / final, rel=0.3)
    wider = bundle.forecast(final, [0.9 * final, 1.1 * final], *LARGE)
    assert (np.array(wider["sd"]) > 2 * sd).all()
    assert bundle.forecast(final, [None, 2.0], *LARGE) is None
    assert bundle.forecast(E - 0.1, [1.3, 1.5], *LARGE) is None


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [curve(i) for i in range(3)],
        [curve(i, records=5) for i in range(8)],
        [curve(i, amplitude=-0.5) for i in range(8)],
    ],
)
def test_too_few_curves_are_no_bundle(curves):
    with pytest.raises(BadInput, match="training curves with records enough"):
        make_bundle(curves, E)


def test_curves_are_read_from_records_of_one_schedule():
    rows = [{"run": f"r{i}", "status": "done", "steps": 100, "loss": 3.0, "params": 1e4,
             "optim.schedule.name": "cosine"} for i in range(4)]  # fmt: skip
    records = [{"step": k, "train_loss": 4.0 - k / 100} for k in range(0, 100, 10)]
    records += [{"step": 100, "loss": 3.0}]
    (one, *_) = make_curves([*rows, {"run": "bad", "status": "failed"}], lambda run: records)
    assert one.share == pytest.approx((np.arange(0, 100, 10) + 1) / 100)
    assert one.final == 3.0
    rows[1]["optim.schedule.name"] = "wsd"
    with pytest.raises(BadInput, match=r"optim\.schedule\.name is cosine or wsd"):
        make_curves(rows, lambda run: records)


def test_smoothing_is_exact_for_lines_in_the_logarithm():
    share = (np.arange(200) + 1) / 200
    value, error = collapse.smooth(Curve("r", share, 3.0 - np.log(share), 3.0, 1.0, 1.0))
    there = np.isfinite(value)
    assert value[there] == pytest.approx(3.0 - np.log(collapse.SHARES[there]))
    assert (error[there] < 0.05).all()
