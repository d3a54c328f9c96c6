"""What a run costs: bytes against the arrays themselves, seconds between those that were timed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from research import accounting, cost, grid, models, prepare, sharding, sweep, train
from research.cost import Sample
from research.run import make_run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cost"


def made(tiny, **changes):
    run = make_run(tiny({key.replace("__", "."): value for key, value in changes.items()}))
    return run, sharding.make_mesh(run.mesh, run.batch)


# Bytes.


@pytest.mark.parametrize("mesh", [{}, {"mesh__data": 2, "mesh__fsdp": 4}])
def test_the_state_and_the_heldout_set_take_what_is_predicted(mesh, tiny):
    run, placed = made(tiny, **mesh)
    trainer = train.Trainer(run, placed)
    first = placed.devices.flat[0]

    def on_first(tree):
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
        return sum(s.data.nbytes for s in shards if s.device == first)

    state, held = trainer.init(), cost.held(run, placed)
    assert held["state"] == on_first(state)
    assert held["gradients"] == on_first(state.params)
    assert held["heldout"] == on_first(trainer._heldout())
    assert held["batches"] == 2 * on_first(trainer.batches(0, 10, run.every.dispatch))


def test_a_sharded_state_takes_less(tiny):
    whole, split = made(tiny), made(tiny, mesh__data=2, mesh__fsdp=4)
    assert cost.held(*split)["state"] < 0.5 * cost.held(*whole)["state"]


def test_activations_grow_with_the_batch_and_shrink_with_devices_and_remat(tiny):
    small, large = made(tiny, batch__size=8), made(tiny, batch__size=64)
    assert cost.activations(*large) == pytest.approx(8 * cost.activations(*small), rel=0.05)
    one = made(tiny, batch__size=8, mesh__data=1)
    assert cost.activations(*one) == pytest.approx(8 * cost.activations(*small), rel=0.05)
    again = made(tiny, batch__size=64, model__remat="full", model__depth=4)
    deep = made(tiny, batch__size=64, model__depth=4)
    assert cost.activations(*again) < 0.5 * cost.activations(*deep)


def test_activations_are_about_what_xla_reserves(tiny):
    run, mesh = made(tiny, batch__size=64)
    trainer = train.Trainer(run, mesh)
    batches = trainer.batches(0, 1, run.every.dispatch)
    program = trainer._dispatch.lower(trainer.abstract, batches, trainer.hyper, np.int32(1))
    reserved = program.compile().memory_analysis().temp_size_in_bytes
    predicted = cost.activations(run, mesh) + cost.held(run, mesh)["gradients"]
    assert 0.4 < predicted / reserved < 2.5


def test_activations_between_are_interpolated(tiny, monkeypatch):
    pairs = [made(tiny, model__hidden=16 * k) for k in range(1, 2 * cost.TRACED)]
    traced, original = [], cost.activations
    monkeypatch.setattr(cost, "activations", lambda *pair: traced.append(1) or original(*pair))
    guessed = [price.memory for price in cost.of([run for run, _ in pairs])]
    assert len(traced) == cost.TRACED
    exact = [original(*pair) + sum(cost.held(*pair).values()) for pair in pairs]
    assert guessed == pytest.approx(exact, rel=0.05)
    assert exact[-1] > 1.2 * exact[0]


# Seconds.


def fake(run, mesh):
    """A machine of 1 MFLOP/s after an overhead of a millisecond a step."""
    flops = accounting.step_flops(run.model, run.batch)
    return Sample(flops, 1e-3 + flops / 1e6, 5.0, 0.25)


def test_seconds_are_exact_where_timed_and_between_elsewhere(tiny, monkeypatch):
    monkeypatch.setattr(cost, "measure", fake)
    widths = (8, 16, 32, 64)
    changes = {"eval__every": 4, "horizon__amount": 12.0}
    runs = [made(tiny, model__width=w, model__hidden=2 * w, **changes)[0] for w in widths]
    assert [price.seconds for price in cost.of(runs)] == [None] * 4
    cost.calibrate(runs)
    seconds = [price.seconds for price in cost.of(runs)]
    assert seconds == sorted(seconds)
    for run, predicted in ((runs[0], seconds[0]), (runs[3], seconds[3])):
        step = fake(run, None).step
        assert predicted == pytest.approx(12 * step + 3 * 16 * 0.25)  # evaluated at 4, 8 and 12
    assert [price.compiling for price in cost.of(runs)] == pytest.approx([5.0] * 4)
    far = made(tiny, model__width=512, model__hidden=1024, **changes)[0]
    assert cost.of([far])[0].seconds is None


def test_what_decides_a_step_is_calibrated_for_itself(tiny, monkeypatch):
    monkeypatch.setattr(cost, "measure", fake)
    run, _ = made(tiny)
    cost.calibrate([run])
    for same in ({"seed": 3}, {"optim__lr": 0.5}, {"horizon__amount": 40.0}, {"batch__size": 16}):
        assert cost.of([made(tiny, **same)[0]])[0].seconds is not None, same
    for other in (
        {"model__norm": "layer"},
        {"optim__clip": None},
        {"loop__steps_per_dispatch": 4},
        {"mesh__data": 2},
        {"data__context": 16},
    ):
        assert cost.of([made(tiny, **other)[0]])[0].seconds is None, other


def test_a_calibration_is_kept_and_a_damaged_one_is_none(tiny, monkeypatch, cache):
    monkeypatch.setattr(cost, "measure", fake)
    run, _ = made(tiny)
    cost.calibrate([run])
    (path,) = cache.glob("*.json")
    assert len(json.loads(path.read_text())["samples"]) == 1
    large, _ = made(tiny, model__width=32)
    cost.calibrate([large])
    assert len(json.loads(path.read_text())["samples"]) == 2
    assert cost.of([run])[0].seconds is not None
    for text in ("{", '{"samples": [{}]}', '{"samples": 3}', '{"samples": [{"flops": "x"}]}'):
        path.write_text(text)
        assert cost.of([run])[0].seconds is None
    cost.calibrate([run])
    assert cost.of([run])[0].seconds is not None


def test_runs_of_one_program_compile_once(tiny):
    same, other, wide = made(tiny), made(tiny, seed=1, optim__lr=0.5), made(tiny, model__hidden=48)
    assert cost.program(*same) == cost.program(*other) != cost.program(*wide)


def test_a_real_program_is_timed_and_leaves_no_run(tiny, tmp_path):
    run, mesh = made(tiny)
    sample = cost.measure(dataclasses.replace(run, steps=10**6), mesh)
    assert sample.flops == accounting.step_flops(run.model, run.batch)
    assert 0 < sample.step < 60
    assert 0 < sample.example < 60
    assert sample.compiling >= 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_these_devices_cannot_take_costs_nobody_knows_what(tiny):
    run = make_run(tiny({"mesh.data": 3}))
    (price,) = cost.of([run])
    assert (price.seconds, price.memory) == (None, None)


def test_needed_seconds_are_measured_if_nothing_is_known(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "measure", fake)
    points = sweep.plan([({}, tiny())], tmp_path)
    assert prepare.priced(points, calibrate=False, needed=False)[0].seconds is None
    assert prepare.priced(points, calibrate=False, needed=True)[0].seconds is not None


# The time that planning takes.


def test_a_plan_traces_every_model_once(tiny, tmp_path, monkeypatch):
    """200 points are planned in no time because nothing is done twice."""
    traced = []
    original = models.Model.init

    def init(self, *args):
        traced.append(self)
        return original(self, *args)

    monkeypatch.setattr(models.Model, "init", init)
    shapes = grid.values("model.hidden", [41, 43])  # of no other test: counts are remembered
    points = grid.product(shapes, grid.values("optim.lr", grid.log_grid(0.1, 1, 10)), grid.seeds(5))
    planned = sweep.plan([(p, tiny(p)) for p in points], tmp_path)
    prepare.priced(planned, calibrate=False, needed=False)
    assert len(planned) == 100
    assert len(traced) == 2
    assert not (tmp_path / "runs").exists()
