"""Which points are trained together, that it is the same for everybody, and that it changes no
result."""

import dataclasses
import json
from contextlib import ExitStack

import jax
import numpy as np
import pytest

from research.config import grid, validation
from research.config.loading import load_config
from research.config.sweeps import sweep_points
from research.errors import BadInput, Preempted
from research.parallel import device_mesh
from research.runs import checkpoint, metrics_log
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.sweep import work_units
from research.sweep.launcher import LaunchOptions, choose_executor
from research.sweep.points import resolve_points
from research.sweep.sweep_file import GROUPING
from research.sweep.work_units import describe_units, make_units, prefers_workers
from research.training.progress import Progress
from research.training.trainer import Trainer
from research.training.vmapped_runs import ALONE, VmappedTrainer

pytestmark = pytest.mark.usefixtures("barely_optimized")

WSD = {
    "optim.schedule.name": "wsd",
    "optim.schedule.decay": 0.2,
    "optim.schedule.final": 0.0,
    "optim.warmup.unit": "steps",
    "optim.warmup.amount": 2.0,
    "save.keep": 1,
    "log.every": 1,
}


def steps(*amounts):
    return grid.values("horizon.amount", [float(a) for a in amounts])


def located(tiny, points, workdir, **fixed):
    return resolve_points([(p, tiny({**fixed, **p})) for p in points], workdir)


def shape(made):
    """The ids of every unit, and what it is."""
    kinds = [("vmapped" if u.members else "prefix" if u.prefixes else "run") for u in made]
    return [(k, [p.run.id for p in u.points]) for k, u in zip(kinds, made, strict=True)]


def kinds(made):
    return sorted((kind, len(ids)) for kind, ids in shape(made))


def run_unit(unit, workdir, stop=lambda: False):
    with ExitStack() as held, Progress(p.run.facts for p in unit.points) as progress:
        names = [p.run.id for p in unit.points]
        directories = [held.enter_context(RunDirectory(workdir, n)) for n in names]
        return work_units.train_unit(unit, directories, progress, stop)


def final_state(run, workdir, sizes):
    abstract = Trainer(run, device_mesh.make_mesh(sizes, run.batch)).abstract
    step, state = checkpoint.restore_latest(RunDirectory(workdir, run.id).path, abstract)
    assert step == run.steps
    return jax.device_get(state)


def without_clock(run, workdir):
    read = metrics_log.read_records(RunDirectory(workdir, run.id).path)
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read]


RATES = grid.product(grid.values("optim.lr", [0.1, 0.2, 0.4]), grid.seeds(2))


def test_points_that_differ_in_traced_numbers_and_seeds_can_be_vmapped(tiny, tmp_path):
    points = located(tiny, RATES, tmp_path)
    made = make_units(points, tmp_path, "force")
    assert shape(made) == [("vmapped", [p.run.id for p in points])]
    assert made[0].members == tuple(p.run.id for p in points)
    assert made[0].saved_flops == 0


@pytest.mark.parametrize(
    "other",
    [
        {"horizon.amount": 13.0},
        {"model.width": 32},
        {"data.context": 16},
        {"batch.size": 4},
        {"eval.examples": 8},
        {"optim.clip": None},
        {"optim.optimizer.name": "lion"},
        {"optim.schedule.name": "linear"},
        {"loop.steps_per_dispatch": 5},
        {"mesh.data": 2},
        {"mesh.fsdp": 2},
        {"save.every": 5},
    ],
    ids=str,
)
def test_what_is_no_traced_number_is_another_program(other, tiny, tmp_path):
    points = located(tiny, [{}, {"seed": 1}, {"seed": 2, **other}], tmp_path)
    assert kinds(make_units(points, tmp_path, "force")) == [("run", 1), ("vmapped", 2)]


def test_runs_are_vmapped_by_force_alone(tiny, tmp_path, monkeypatch):
    points = located(tiny, RATES, tmp_path)
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert kinds(make_units(points, tmp_path, "auto")) == [("run", 1)] * 6
        assert kinds(make_units(points, tmp_path, "off")) == [("run", 1)] * 6
        assert kinds(make_units(points, tmp_path, "force")) == [("vmapped", 6)]
    force = make_units(points, tmp_path, "force")
    assert describe_units(force, "force") == [
        "grouping=force",
        "1 vmapped programs, of 6 runs",
    ]
    with pytest.raises(BadInput, match=r"--grouping=yes: expected one of auto, off, force"):
        make_units(points, tmp_path, "yes")


def test_many_vmapped_runs_are_several_programs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(work_units, "MAX_VMAPPED", 4)
    points = located(tiny, RATES, tmp_path)
    assert kinds(make_units(points, tmp_path, "force")) == [
        ("vmapped", 2),
        ("vmapped", 4),
    ]


def test_budgets_of_one_size_cost_9_4_D_instead_of_15_D(tiny, tmp_path):
    points = located(tiny, steps(10_000, 20_000, 40_000, 80_000), tmp_path, **WSD)
    (shared,) = make_units(points, tmp_path, "auto")
    whole = sum(p.run.facts["flops"] for p in points)
    unit = points[0].run.facts["flops"]
    assert whole == pytest.approx(15 * unit)
    assert shared.flops == pytest.approx(9.4 * unit, rel=1e-4)
    assert shared.saved_flops == pytest.approx(5.6 * unit, rel=1e-3)
    assert "4 runs save" in describe_units([shared], "auto")[1]
    assert "(37%)" in describe_units([shared], "auto")[1]
    off = make_units(points, tmp_path, "off")
    assert kinds(off) == [("run", 1)] * 4
    assert sum(u.flops for u in off) == pytest.approx(15 * unit)
    assert describe_units(off, "off") == ["grouping=off"]


def test_the_shipped_budgets_share_one_prefix_per_size(corpus, tmp_path):
    config, module = load_config("configs/sweeps/lm_budgets.py")
    config, _ = validation.override(config, {"data.path": str(corpus), "eval.examples": 8})
    points = resolve_points(sweep_points(config, module, "sweep"), tmp_path)
    made = make_units(points, tmp_path, "auto")
    assert kinds(made) == [("prefix", 4)] * 4
    assert sum(u.saved_flops for u in made) / sum(p.run.facts["flops"] for p in points) > 0.36


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"data.seed": 1},
        {"optim.lr": 0.1},
        {"optim.schedule.final": 0.1},
        {"optim.warmup.amount": 3.0},
        {"optim.warmup.unit": "fraction", "optim.warmup.amount": 0.1},
        {"eval.every": 7},
        {"save.at": [3]},  # a state that has to lie in its own directory
    ],
    ids=str,
)
def test_a_run_of_other_numbers_is_shares_no_prefix(other, tiny, tmp_path):
    points = located(tiny, [*steps(10, 20), {"horizon.amount": 40.0, **other}], tmp_path, **WSD)
    assert kinds(make_units(points, tmp_path, "auto")) == [("prefix", 2), ("run", 1)]


def test_forced_vmapping_comes_before_prefixes(tiny, tmp_path):
    points = located(tiny, grid.product(steps(10, 20), grid.seeds(2)), tmp_path, **WSD)
    assert kinds(make_units(points, tmp_path, "force")) == [
        ("vmapped", 2),
        ("vmapped", 2),
    ]
    assert kinds(make_units(points, tmp_path, "auto")) == [("prefix", 2), ("prefix", 2)]
    alone = located(tiny, steps(10, 20), tmp_path, **WSD)
    assert kinds(make_units(alone, tmp_path, "force")) == [("prefix", 2)]
    keeping = located(tiny, steps(10, 20), tmp_path, **WSD, **{"save.at": [3]})
    assert kinds(make_units(keeping, tmp_path, "auto")) == [("run", 1)] * 2


def launched(workdir, run_id, **content):
    place = RunDirectory(workdir, run_id).path
    place.mkdir(parents=True)
    (place / "launch.json").write_text(json.dumps({"mesh": ALONE, "facts": {}, **content}))


@pytest.mark.parametrize("grouping", GROUPING)
def test_runs_that_were_launched_vmapped_stay_so(grouping, tiny, tmp_path):
    points = located(tiny, RATES, tmp_path)
    ids = [p.run.id for p in points]
    launched(tmp_path, ids[0], members=[ids[0], ids[2], "gone", ids[3]])  # then it was killed
    launched(tmp_path, ids[3])  # alone, by whatever happened since
    made = shape(make_units(points, tmp_path, grouping))
    assert ("vmapped", [ids[0], ids[2]]) in made
    assert ("run", [ids[3]]) in made
    rest = [ids[1], ids[4], ids[5]]
    assert (("vmapped", rest) in made) == (grouping == "force")
    assert next(u for u in make_units(points, tmp_path, grouping) if u.members).members == (
        *(ids[0], ids[2], "gone", ids[3]),
    )


def test_what_is_done_by_now_changes_no_others_unit(tiny, tmp_path):
    points = located(tiny, RATES, tmp_path)
    first = make_units(points, tmp_path, "force")[0]
    for name in first.members:
        launched(tmp_path, name, members=list(first.members))
    now = [dataclasses.replace(p, status="done") if i < 2 else p for i, p in enumerate(points)]
    (left,) = make_units(now, tmp_path, "force")
    assert left.members == first.members
    assert len(left.points) == 4


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """Three horizons, each run trained by itself."""
    workdir = tmp_path_factory.mktemp("alone")
    points = located(tiny, steps(9, 18, 30), workdir, **WSD)
    for unit in make_units(points, workdir, "off"):
        run_unit(unit, workdir)
    return points, workdir


def assert_same(points, workdir, other):
    for point in points:
        sizes = {"data": 8, "fsdp": 1, "tensor": 1}
        states = [final_state(point.run, place, sizes) for place in (workdir, other)]
        jax.tree.map(np.testing.assert_array_equal, *states)
        assert without_clock(point.run, workdir) == without_clock(point.run, other)


def test_a_shared_prefix_gives_every_run_what_it_has_alone_for_less(alone, tmp_path):
    points, alone_workdir = alone
    (shared,) = make_units(points, tmp_path, "auto")
    assert shared.saved_flops > 0
    results = run_unit(shared, tmp_path)
    assert [r["status"] for r in results.values()] == ["done"] * 3
    assert_same(points, tmp_path, alone_workdir)
    rows, whole = read_table(tmp_path), read_table(alone_workdir)
    assert [r["flops"] for r in rows] == [r["flops"] for r in whole]
    assert sum(r["flops_spent"] for r in rows) == pytest.approx(shared.flops)
    assert sum(r["flops_spent"] for r in whole) == pytest.approx(shared.flops + shared.saved_flops)
    assert [r.get("shared_prefix") for r in rows] == [None, points[0].run.id, points[1].run.id]
    for point in points:  # what was kept for others is gone
        path = RunDirectory(tmp_path, point.run.id).path
        assert checkpoint.saved_steps(path) == [point.run.steps]


def test_a_unit_that_is_stopped_anywhere_ends_the_same(alone, tiny, tmp_path):
    points, alone_workdir = alone
    count = 0
    for _ in range(20):
        points = located(tiny, steps(9, 18, 30), tmp_path, **WSD)
        left = make_units(points, tmp_path, "auto")
        if not left:
            break
        try:
            run_unit(left[0], tmp_path, stop=lambda: True)
        except Preempted:
            count += 1
    assert not left
    assert count == 3
    assert_same(points, tmp_path, alone_workdir)
    rows = read_table(tmp_path)
    assert sum(r["flops_spent"] for r in rows) < sum(r["flops"] for r in rows)


def test_a_longer_run_that_is_added_later_begins_from_what_is_there(alone, tiny, tmp_path):
    """Of a run that was trained alone there is no checkpoint before its decay, so nothing is shared
    and nothing is promised; of one that saves now and then there may be."""
    points = located(tiny, steps(9), tmp_path, **WSD)
    run_unit(make_units(points, tmp_path, "auto")[0], tmp_path)
    points = located(tiny, steps(9, 18), tmp_path, **WSD)
    (later,) = make_units(points, tmp_path, "auto")
    assert later.saved_flops == 0
    assert len(describe_units([later], "auto")) == 1
    assert "shared_prefix" not in run_unit(later, tmp_path)[later.points[0].run.id]
    saves = {**WSD, "save.every": 3, "save.keep": 3}
    points = located(tiny, steps(9), tmp_path, **saves)
    assert points[0].status == "done"  # how often is saved is no part of what a run is


def test_a_run_of_a_unit_that_fails_is_recorded_and_the_others_continue(
    alone, tmp_path, monkeypatch
):
    points, alone_workdir = alone
    (shared,) = make_units(points, tmp_path, "auto")
    broken, original = points[1].run.id, Trainer.evaluate

    def evaluate(self, params, *stop):
        if self.run.id == broken:
            raise RuntimeError("the device caught fire")
        return original(self, params, *stop)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    results = run_unit(shared, tmp_path)
    assert [r["status"] for r in results.values()] == ["done", "failed", "done"]
    assert "fire" in results[broken]["reason"]
    monkeypatch.undo()
    again = [dataclasses.replace(p, status="new" if p.run.id == broken else "done") for p in points]
    (left,) = make_units(again, tmp_path, "auto")
    assert run_unit(left, tmp_path)[broken]["status"] == "done"
    assert_same(points, tmp_path, alone_workdir)


@pytest.mark.slow
def test_vmapped_runs_are_trained_and_their_rows_are_there(tiny, tmp_path):
    points = located(tiny, [{"seed": 0}, {"seed": 1}, {"optim.lr": 1e30}], tmp_path)
    (unit,) = make_units(points, tmp_path, "force")
    results = run_unit(unit, tmp_path)
    assert sorted(r["status"] for r in results.values()) == ["diverged", "done", "done"]
    assert sorted(r["status"] for r in read_table(tmp_path)) == ["diverged", "done", "done"]
    assert make_units(located(tiny, [{"seed": 0}, {"seed": 1}], tmp_path), tmp_path, "force") == []


def test_vmapped_runs_that_fail_are_trained_run_by_run(tiny, tmp_path, monkeypatch, caplog):
    points = located(tiny, [{"seed": 0}, {"seed": 1}], tmp_path)
    (unit,) = make_units(points, tmp_path, "force")
    monkeypatch.setattr(VmappedTrainer, "steps", lambda *_: 1 / 0)
    results = run_unit(unit, tmp_path)
    assert [r["status"] for r in results.values()] == ["done", "done"]
    assert "vmapped runs failed (ZeroDivisionError" in caplog.text
    assert all("members" not in r for r in read_table(tmp_path))


# One process with all cores, or a worker for each.


def test_workers_of_a_core_each_where_there_is_enough_and_nothing_is_in_the_way(
    tiny, tmp_path, monkeypatch
):
    points = located(tiny, [{"seed": seed} for seed in range(8)], tmp_path)

    def several(points=points, **where):
        made = make_units(points, tmp_path, "off")
        return prefers_workers(made, points, tmp_path, **{"platform": "cpu", "cores": 2, **where})

    assert not several()  # too little to do
    monkeypatch.setattr(work_units, "WORTH", sum(p.run.facts["flops"] for p in points))
    assert several()
    assert not several(cores=1)
    assert not several(platform="gpu")
    assert not several(cores=5)  # 2 of them would have two runs, and 3 one
    assert not several(located(tiny, [{"seed": k, "mesh.fsdp": 2} for k in range(8)], tmp_path))
    name = points[3].run.id
    with RunDirectory(tmp_path, name) as directory:
        directory.write_once("launch.json", {"mesh": {"data": 1, "fsdp": 1, "tensor": 1}})
        assert several()
    (tmp_path / "runs" / name / "launch.json").unlink()
    with RunDirectory(tmp_path, name) as directory:
        directory.write_once("launch.json", {"mesh": {"data": 2, "fsdp": 1, "tensor": 1}})
    assert not several()  # its last bits would be others


def test_auto_stands_for_an_executor(tiny, tmp_path):
    points = located(tiny, [{"seed": 0}], tmp_path)
    assert choose_executor(LaunchOptions("auto"), points, tmp_path).executor == "inline"
    assert choose_executor(LaunchOptions("auto", 2), points, tmp_path).executor == "local"
    two = LaunchOptions("auto", num_processes=2)
    assert choose_executor(two, points, tmp_path).executor == "inline"
    assert choose_executor(LaunchOptions("slurm"), points, tmp_path) == LaunchOptions("slurm")
