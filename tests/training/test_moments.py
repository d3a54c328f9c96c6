"""A run is evaluated and saved at moments that its config names, beside its regular ones."""

import pytest

from research.errors import BadInput
from research.planning.calibration import _evaluation_count
from research.runs import metrics_log
from research.runs.checkpoint import saved_steps
from research.runs.directory import RunDirectory
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.moments import steps_at

pytestmark = pytest.mark.usefixtures("barely_optimized")


@pytest.mark.parametrize(
    ("moments", "steps"),
    [
        (["powers of 2"], {1, 2, 4, 8, 16, 32, 64}),
        (["powers of 10", "50%"], {1, 10, 50}),
        (["powers of 1.5"], {1, 2, 3, 5, 8, 11, 17, 26, 38, 58, 86}),
        (["0.1%", "1%", "100%"], {1}),
        ([3, 99, 100, 500], {3, 99}),
    ],
)
def test_moments_are_steps_before_the_last(moments, steps):
    assert steps_at("save.at", moments, 100) == steps


def test_a_moment_that_is_no_step_of_the_run_is_told(caplog):
    moments = ["powers of 2", "0.1%", "100%", 97, 500]
    assert steps_at("eval.at", moments, 97) == {1, 2, 4, 8, 16, 32, 64}
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"eval.at: {x} is no step of a run of 97" for x in ("0.1%", "500")]


def test_it_is_evaluated_and_saved_there(tiny, tmp_path):
    changes = {"eval.at": ["powers of 2", 9], "save.at": ["25%", "75%"], "save.keep": 1}
    config = tiny({**changes, "eval.every": 6})
    run = make_run(config)
    with RunDirectory(tmp_path, run.id) as directory:
        result = train_run(run, directory)
    records = metrics_log.read_records(directory.path)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 4, 6, 8, 9, 12]
    assert sorted(saved_steps(directory.path)) == [3, 9, 12]
    assert _evaluation_count(run) == 7
    plain = make_run(tiny())
    assert plain.id == run.id  # when it is looked at does not say what it is
    with RunDirectory(tmp_path / "plain", plain.id) as directory:
        assert train_run(plain, directory)["loss"] == result["loss"]
    assert [r["step"] for r in metrics_log.read_records(directory.path) if "loss" in r] == [12]
    assert sorted(saved_steps(directory.path)) == [12]


def test_vmapped_members_are_saved_there_too(tiny, tmp_path):
    from research.training.vmapped_runs import train_vmapped

    runs = [make_run(tiny({"save.at": [3, 5], "save.keep": 1, "seed": s})) for s in (0, 1)]
    directories = [RunDirectory(tmp_path, run.id) for run in runs]
    with directories[0], directories[1]:
        train_vmapped(list(zip(runs, directories)), [run.id for run in runs])
    assert [sorted(saved_steps(d.path)) for d in directories] == [[3, 5, 12]] * 2


def test_the_best_may_be_of_such_evaluations(tiny):
    assert make_run(tiny({"save.best": "loss", "eval.at": ["powers of 2"]})).cadence.at == {
        1,
        2,
        4,
        8,
    }
    with pytest.raises(BadInput, match=r"save.best: 'loss', but eval.every = 0"):
        tiny({"save.best": "loss"})


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        (["often"], "'often' is no moment of a run; expected a list like"),
        ([0], "0 is no moment"),
        ([True], "True is no moment"),
        (["powers of 1"], "powers of 1; expected those of a number from 1.1 on"),
        ("powers of 2", "'powers of 2' is no list of moments; expected a list like"),
        (500, "500 is no list of moments"),
        (["0%"], "0%; expected more than 0% and at most 100%"),
        (["101%"], "101%; expected"),
        ([], r"\[\] is no list of moments"),
    ],
)
def test_what_is_no_moment_is_refused(tiny, moments, words):
    for key in ("eval.at", "save.at"):
        with pytest.raises(BadInput, match=f"{key}: {words}"):
            tiny({key: moments})
