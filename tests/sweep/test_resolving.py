"""A point of a sweep is resolved once by the planner and at most once by each worker."""

import argparse
import sys

import pytest

from experiments import worker as worker_command
from research.config import grid
from research.sweep.launcher import launch_sweep
from research.sweep.limits import Limits
from research.sweep.plan import plan_sweep
from research.sweep.points import write_points
from research.training import make_run as make_run_

pytestmark = pytest.mark.usefixtures("barely_optimized")

SIZED = {f"model.{key}": None for key in ("width", "depth", "heads", "kv_heads", "hidden")}
SIZES = (16e3, 3e4)


@pytest.fixture
def resolved(monkeypatch):
    """The names of the configs that were made into runs, wherever that was done."""
    names, original = [], make_run_.make_run

    def make_run(config, *rest):
        names.append(config["name"])
        return original(config, *rest)

    for module in list(sys.modules.values()):
        if getattr(module, "make_run", None) is original:
            monkeypatch.setattr(module, "make_run", make_run)
    return names


@pytest.fixture
def cells(tiny):
    """IsoFLOP cells of which the last makes no sense and the first is there twice."""
    points = [{**SIZED, **p} for p in grid.isoflop([3e9], [*SIZES, 10.0])]
    named = [(p, tiny({**p, "name": f"cell-{i}"})) for i, p in enumerate(points)]
    return [named[0], *named]


@pytest.mark.slow
def test_the_planner_makes_one_run_of_every_config_and_inline_none(cells, tmp_path, resolved):
    points = plan_sweep(cells, tmp_path, Limits()).points
    assert sorted(resolved) == ["cell-0", "cell-1", "cell-2"]
    assert len(points) == 2, "the twin: configs that differ are runs of their own"
    resolved.clear()
    assert launch_sweep(points, tmp_path, stop=lambda: False).trained == 2
    assert resolved == []


@pytest.mark.slow
def test_a_worker_makes_each_run_once(cells, tmp_path, resolved):
    points = plan_sweep(cells, tmp_path, Limits()).points
    file = write_points(points, tmp_path)
    resolved.clear()
    worker_command.work(argparse.Namespace(sweep=file, workdir=tmp_path), lambda: False)
    assert sorted(resolved) == ["cell-0", "cell-1"]
