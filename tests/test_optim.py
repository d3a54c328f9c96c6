"""Schedules at their ends, AdamW against optax's own, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import optim, paths


def curve(name, total=100, warmup=10, lr=2.0, **schedule):
    hyper = {"lr": lr, "warmup": warmup, "total": total, "schedule": schedule}
    return np.array([optim.learning_rate(name, jnp.int32(t), hyper) for t in range(total)])


@pytest.mark.parametrize("name", list(optim.SCHEDULES))
def test_every_schedule_warms_up_linearly_to_its_peak(name):
    numbers = {"constant": {}, "cosine": {"final": 0.1}, "wsd": {"decay": 0.2, "final": 0.1}}[name]
    rates = curve(name, **numbers)
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates.max() == pytest.approx(2.0)


def test_cosine_ends_at_its_final_share_and_is_half_way_in_the_middle():
    rates = curve("cosine", warmup=0, total=101, final=0.1)
    assert rates[0] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert (np.diff(rates) < 0).all()


def test_wsd_is_flat_and_then_falls_in_a_line():
    rates = curve("wsd", decay=0.2, final=0.1)
    np.testing.assert_allclose(rates[10:79], 2.0, rtol=1e-6)
    assert rates[-1] == pytest.approx(0.2)
    np.testing.assert_allclose(np.diff(rates[80:]), (0.2 - 2.0) / 20, rtol=1e-4)


def test_constant_stays():
    np.testing.assert_allclose(curve("constant")[10:], 2.0)


def test_adamw_is_that_of_optax():
    params = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}}
    grads = {"dense": {"kernel": jnp.arange(9.0).reshape(3, 3), "bias": jnp.arange(3.0)}}
    numbers = {"b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.1}
    ours = optim.adamw(**numbers)
    theirs = optax.adamw(0.01, **numbers, mask=optim.decay_mask)
    plain = optax.adamw(0.01, **numbers)
    a, _ = ours.update(grads, ours.init(params), params)
    b, _ = theirs.update(grads, theirs.init(params), params)
    c, _ = plain.update(grads, plain.init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(-0.01 * x, y, rtol=1e-6), a, b)
    assert not np.allclose(-0.01 * a["dense"]["bias"], c["dense"]["bias"])


def test_matrices_decay_and_scales_do_not():
    mask = optim.decay_mask(
        {"embed": {"embedding": 0}, "norm": {"scale": 0}, "mlp": {"kernel": 0, "bias": 0}}
    )
    assert dict(paths.flatten(mask)) == {
        "embed/embedding": True,
        "norm/scale": False,
        "mlp/kernel": True,
        "mlp/bias": False,
    }
    with pytest.raises(ValueError, match="exactly one decay rule"):
        optim.decay_mask({"gate": {"theta": 0}})
