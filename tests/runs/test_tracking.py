"""A run is compared with the training curve that was forecast for it."""

import numpy as np
import pytest

from research.runs.tracking import LIMIT, Track, track

STEPS = 1000
SHARE = (np.arange(100) + 1) / 100
CURVE = {"share": SHARE.tolist(), "loss": (2.0 * SHARE**-0.2).tolist(), "sd": [0.02] * 100}


def records(until, off=0.0, noise=0.05, grad_norm=lambda share: 1.0, seed=0):
    """Those of a run up to a share of it, `off` its forecast."""
    rng = np.random.default_rng(seed)
    out = []
    for step in range(0, int(until * STEPS), 5):
        share = (step + 1) / STEPS
        loss = float(np.interp(share, SHARE, CURVE["loss"])) + off + noise * rng.standard_normal()
        norm = {"grad_norm": grad_norm(share), "lr": 0.1}
        out.append({"step": step, "train_loss": loss, **norm})
    return out


@pytest.mark.parametrize("until", [0.2, 0.5, 1.0])
def test_a_run_on_its_curve_is_on_track(until):
    found = track(CURVE, records(until), STEPS)
    assert found.share == pytest.approx(until, abs=0.01)
    assert not found.off
    assert str(found).startswith(f"on track at {found.share:.0%}: ")


@pytest.mark.parametrize("off", [0.12, -0.12])
def test_one_that_is_off_it_is_told_by_how_much(off):
    found = track(CURVE, records(0.5, off), STEPS)
    noise = 0.05 / np.sqrt(22)  # 0.39 to 0.5 of 1000 steps, each fifth
    assert found.sds == pytest.approx(off / np.hypot(0.02, noise), rel=0.2)
    assert found.off
    assert found.relative == pytest.approx(off / 2.35, rel=0.1)
    assert str(found) == (
        f"off track at 50%: {abs(found.sds):.1f} sd {'above' if off > 0 else 'below'}"
    )
    # With batches as loud as that, or a law as uncertain, it is not known to be off.
    assert not track(CURVE, records(0.5, off, noise=0.5), STEPS).off
    assert not track({**CURVE, "sd": [0.1] * 100}, records(0.5, off), STEPS).off


def test_what_else_moved_is_told():
    rising = records(0.5, 0.2, grad_norm=lambda share: 1.0 if share < 0.45 else 3.0)
    words = str(track(CURVE, rising, STEPS))
    assert words.endswith("; gradient norm 3 times what it was")
    assert "learning rate" not in words
    falling = records(0.5, 0.2, grad_norm=lambda share: 1.0 if share < 0.45 else 0.25)
    assert str(track(CURVE, falling, STEPS)).endswith("; gradient norm 0.25 times what it was")
    without = [{k: r[k] for k in ("step", "train_loss")} for r in rising]
    assert str(track(CURVE, without, STEPS)).endswith("sd above")


def test_too_early_and_without_a_forecast_nothing_is_said():
    assert track(None, records(0.5), STEPS) is None
    assert track(CURVE, [], STEPS) is None
    assert track(CURVE, [{"step": 500, "loss": 2.0}], STEPS) is None
    assert track(CURVE, records(0.04), STEPS) is None
    assert track(CURVE, records(0.5)[-5:], STEPS) is None
    later = {name: values[40:] for name, values in CURVE.items()}
    assert track(later, records(0.3), STEPS) is None
    assert track(later, records(0.9), STEPS) is not None


def test_the_limit_counts_on_both_sides():
    assert Track(0.5, LIMIT, 0.1).off
    assert Track(0.5, -LIMIT, 0.1).off
    assert not Track(0.5, LIMIT - 0.01, 0.1).off
