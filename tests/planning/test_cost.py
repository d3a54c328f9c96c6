"""What a run costs: bytes against the arrays themselves, seconds between those that were timed."""

import dataclasses
import json
import resource

import jax
import pytest

from research import models
from research.config import grid
from research.errors import BadInput
from research.io import host
from research.models import accounting
from research.parallel import device_memory
from research.planning import calibration, memory
from research.planning.calibration import Sample
from research.sweep import plan
from research.sweep.points import resolve_points
from research.training.make_run import make_run
from research.training.trainer import Trainer, resident, run_mesh

pytestmark = pytest.mark.usefixtures("barely_optimized")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cost"


def made(tiny, **changes):
    run = make_run(tiny({key.replace("__", "."): value for key, value in changes.items()}))
    return run, run_mesh(run)


# Bytes.


@pytest.mark.parametrize(
    ("lines", "name", "values", "expected"),
    [
        ("0::/a/b\n", "memory.max", {"a": "1000", "a/b": "max", "": "3000"}, [1000, 3000]),
        ("5:cpu:/x\n4:cpuacct,memory:/a\n", "memory.limit_in_bytes", {"a": "77", "x": "5"}, [77]),
        ("0::/\n", "memory.max", {}, []),
        ("nonsense\n", "memory.max", {"": "1"}, []),
    ],
)
def test_the_memory_of_a_container_is_what_it_may_use(lines, name, values, expected, tmp_path):
    (tmp_path / "proc").write_text(lines)
    root = tmp_path / ("memory" if name != "memory.max" else "")
    for folder, value in values.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(f"{value}\n")
    assert host._limits(tmp_path / "proc", tmp_path) == expected
    assert host._limits(tmp_path / "none", tmp_path) == []
    assert host.memory() > 1e8


@pytest.mark.parametrize("mesh", [{}, {"mesh__data": 2, "mesh__fsdp": 4}])
def test_the_state_and_the_heldout_set_take_what_is_predicted(mesh, tiny):
    run, placed = made(tiny, **mesh)
    trainer = Trainer(run, placed)
    first = placed.devices.flat[0]

    def on_first(tree):
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
        return sum(s.data.nbytes for s in shards if s.device == first)

    state, held = trainer.init(), resident(run, placed)
    batches = on_first(trainer.batches(0, 10, run.cadence.dispatch))
    assert held.parameters == on_first(state.params)
    assert held.parameters + held.optimizer == on_first(state)
    assert held.batches == batches
    assert held.waiting == batches + on_first(trainer._heldout[0])
    assert memory.MemoryEstimate(*held).temporary == 0


def test_a_sharded_state_takes_less(tiny):
    whole, split = made(tiny), made(tiny, mesh__data=2, mesh__fsdp=4)
    for part in ("parameters", "optimizer"):
        assert getattr(resident(*split), part) < 0.5 * getattr(resident(*whole), part)


def test_what_a_step_keeps_grows_with_the_batch_and_shrinks_with_devices_and_remat(tiny):
    def activations(**changes):
        return memory.estimate(*made(tiny, **changes)).activations

    small, large = activations(batch__size=8), activations(batch__size=64)
    assert large == pytest.approx(8 * small, rel=0.05)
    assert activations(batch__size=8, mesh__data=1) == pytest.approx(8 * small, rel=0.05)
    deep = {"batch__size": 64, "model__depth": 4}
    assert activations(**deep, model__remat="full") < 0.5 * activations(**deep)
    assert activations(**deep, batch__grad_accumulation=4) == pytest.approx(
        activations(**deep) / 4, rel=0.05
    )


def test_what_is_between_is_interpolated(tiny, monkeypatch):
    pairs = [made(tiny, model__hidden=16 * k) for k in range(1, 2 * calibration.TRACED_PROGRAMS)]
    exact = [memory.estimate(*pair).total for pair in pairs]
    traced, original = [], memory.estimate
    monkeypatch.setattr(memory, "estimate", lambda *pair: traced.append(1) or original(*pair))
    guessed = [price.memory for price in calibration.predict([run for run, _ in pairs])]
    assert len(traced) == calibration.TRACED_PROGRAMS
    assert guessed == pytest.approx(exact, rel=0.05)
    assert exact[-1] > 1.2 * exact[0]


@pytest.mark.fault(
    "R19",
    "a run that does not fit",
    "refused before it is compiled, with the parts and the size that would fit",
    "the memory that is there replaced by a smaller figure",
)
def test_a_run_that_does_not_fit_is_rejected_before_it_is_compiled(tiny, monkeypatch):
    run, mesh = made(tiny, model__hidden=512)
    memory.check_fits(run, mesh)
    needed = memory.estimate(run, mesh).total
    for there, fits in ((1.01 * needed, True), (0.99 * needed, False), (0.1 * needed, False)):
        monkeypatch.setattr(device_memory, "available", lambda there=there: there)
        if fits:
            memory.check_fits(run, mesh)
        else:
            with pytest.raises(BadInput, match=r"optimizer .* about .* parameters would fit"):
                memory.check_fits(run, mesh)


@pytest.mark.fault(
    "R19",
    "a config of 13e12 parameters",
    "refused before it is compiled; nothing of its size is allocated",
    "65,536 wide and 192 deep",
)
def test_a_huge_config_is_rejected_without_its_memory(tiny):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = {"model__width": 65536, "model__hidden": 262144, "model__depth": 192}
    run, mesh = made(tiny, **huge, model__heads=512, model__kv_heads=512)
    with pytest.raises(BadInput, match=r"13,.* parameters need .* TB of each device"):
        memory.check_fits(run, mesh)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # in kilobytes


# Seconds.


def fake(run, mesh):
    """A machine of 1 MFLOP/s after an overhead of a millisecond a step."""
    flops = accounting.step_flops(run.model, run.batch)
    return Sample(flops, 1e-3 + flops / 1e6, 5.0, 0.25)


def test_seconds_are_exact_where_timed_and_between_elsewhere(tiny, monkeypatch):
    monkeypatch.setattr(calibration, "time_programs", fake)
    widths = (8, 16, 32, 64)
    changes = {"eval__every": 4, "horizon__amount": 12.0}
    runs = [made(tiny, model__width=w, model__hidden=2 * w, **changes)[0] for w in widths]
    assert [price.seconds for price in calibration.predict(runs)] == [None] * 4
    calibration.calibrate(runs)
    seconds = [price.seconds for price in calibration.predict(runs)]
    assert seconds == sorted(seconds)
    for run, predicted in ((runs[0], seconds[0]), (runs[3], seconds[3])):
        step = fake(run, None).step
        assert predicted == pytest.approx(12 * step + 3 * 16 * 0.25)  # evaluated at 4, 8 and 12
    assert [price.compiling for price in calibration.predict(runs)] == pytest.approx([5.0] * 4)
    far = made(tiny, model__width=512, model__hidden=1024, **changes)[0]
    assert calibration.predict([far])[0].seconds is None


def test_what_decides_a_step_is_calibrated_for_itself(tiny, monkeypatch):
    monkeypatch.setattr(calibration, "time_programs", fake)
    run, _ = made(tiny)
    calibration.calibrate([run])
    for same in ({"seed": 3}, {"optim__lr": 0.5}, {"horizon__amount": 40.0}, {"batch__size": 16}):
        assert calibration.predict([made(tiny, **same)[0]])[0].seconds is not None, same
    for other in (
        {"model__norm": "layer"},
        {"optim__clip": None},
        {"loop__steps_per_dispatch": 4},
        {"mesh__data": 2},
        {"data__context": 16},
    ):
        assert calibration.predict([made(tiny, **other)[0]])[0].seconds is None, other


def test_a_calibration_is_kept_and_a_damaged_one_is_none(tiny, monkeypatch, cache):
    monkeypatch.setattr(calibration, "time_programs", fake)
    run, _ = made(tiny)
    calibration.calibrate([run])
    (path,) = cache.glob("*.json")
    assert len(json.loads(path.read_text())["samples"]) == 1
    large, _ = made(tiny, model__width=32)
    calibration.calibrate([large])
    assert len(json.loads(path.read_text())["samples"]) == 2
    assert calibration.predict([run])[0].seconds is not None
    for text in ("{", '{"samples": [{}]}', '{"samples": 3}', '{"samples": [{"flops": "x"}]}'):
        path.write_text(text)
        assert calibration.predict([run])[0].seconds is None
    calibration.calibrate([run])
    assert calibration.predict([run])[0].seconds is not None


def test_runs_of_one_program_compile_once(tiny):
    same, other, wide = made(tiny), made(tiny, seed=1, optim__lr=0.5), made(tiny, model__hidden=48)
    assert (
        calibration.program_key(*same)
        == calibration.program_key(*other)
        != calibration.program_key(*wide)
    )


def test_a_real_program_is_timed_and_leaves_no_run(tiny, tmp_path):
    run, mesh = made(tiny)
    sample = calibration.time_programs(dataclasses.replace(run, steps=10**6), mesh)
    assert sample.flops == accounting.step_flops(run.model, run.batch)
    assert 0 < sample.step < 60
    assert 0 < sample.example < 60
    assert sample.compiling >= 0
    assert not list(tmp_path.iterdir())


def test_a_run_that_these_devices_cannot_take_costs_nobody_knows_what(tiny):
    run = make_run(tiny({"mesh.data": 3}))
    (price,) = calibration.predict([run])
    assert (price.seconds, price.memory) == (None, None)


def test_needed_seconds_are_measured_if_nothing_is_known(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "time_programs", fake)
    points = resolve_points([({}, tiny())], tmp_path)
    assert plan.price_points(points, calibrate=False, needs_seconds=False)[0].seconds is None
    assert plan.price_points(points, calibrate=False, needs_seconds=True)[0].seconds is not None


# The time that planning takes.


def test_a_plan_traces_every_model_once(tiny, tmp_path, monkeypatch):
    """200 points are planned in no time because nothing is done twice."""
    traced = []
    original = models._everything

    def everything(module, inputs):
        traced.append(module)
        return original(module, inputs)

    monkeypatch.setattr(models, "_everything", everything)
    shapes = grid.values("model.hidden", [41, 43])  # of no other test: counts are remembered
    points = grid.product(shapes, grid.values("optim.lr", grid.log_grid(0.1, 1, 10)), grid.seeds(5))
    planned = resolve_points([(p, tiny(p)) for p in points], tmp_path)
    plan.price_points(planned, calibrate=False, needs_seconds=False)
    assert len(planned) == 100
    assert len(traced) == 2
    assert not (tmp_path / "runs").exists()
