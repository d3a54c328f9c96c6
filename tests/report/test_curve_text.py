"""The curves of a workdir: those of a run whose first steps another one trained are whole."""

from contextlib import ExitStack

import numpy as np
import pytest

from research.config import grid
from research.report import curve_text
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.sweep import work_units
from research.sweep.points import resolve_points
from research.training.progress import Progress
from tests.sweep.test_units import WSD

pytestmark = pytest.mark.usefixtures("barely_optimized")

OFTEN = WSD | {"eval.every": 2}


def trained(tiny, workdir, amounts, grouping="auto"):
    points = grid.values("horizon.amount", [float(a) for a in amounts])
    located = resolve_points([(p, tiny({**OFTEN, **p})) for p in points], workdir)
    for unit in work_units.make_units(located, workdir, grouping):
        with ExitStack() as held, Progress(p.run.facts for p in unit.points) as progress:
            names = [p.run.id for p in unit.points]
            directories = [held.enter_context(RunDirectory(workdir, n)) for n in names]
            work_units.train_unit(unit, directories, progress, lambda: False)
    return read_table(workdir)


@pytest.mark.slow
def test_a_run_with_a_shared_prefix_has_its_whole_curve(tiny, tmp_path):
    shared = trained(tiny, tmp_path / "shared", (30, 40))
    assert [row for row in shared if row.get("shared_prefix")]
    alone = trained(tiny, tmp_path / "alone", (30, 40), "off")
    assert not [row for row in alone if row.get("shared_prefix")]
    rows, curves = curve_text.runs_and_curves(shared, str(tmp_path / "shared"))
    _, whole = curve_text.runs_and_curves(alone, str(tmp_path / "alone"))
    assert len(rows) == 2
    for ours, theirs in zip(curves, whole, strict=True):
        assert ours.run == theirs.run
        np.testing.assert_array_equal(ours.rate_step, theirs.rate_step)
        np.testing.assert_array_equal(ours.rate, theirs.rate)
        np.testing.assert_array_equal(ours.loss, theirs.loss)
    assert len(curves[0].rate) != len(curves[1].rate)
