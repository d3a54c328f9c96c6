"""The scores of a workdir: measured once, written into the runs, read as columns of its table."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from research.errors import BadInput, Preempted
from research.inference import chosen_runs, scored_runs
from research.inference.suite import Suite
from research.runs import scores
from research.runs.directory import RunDirectory
from research.runs.table import read_row, read_table
from research.training.loop import train_run
from research.training.make_run import make_run

pytestmark = pytest.mark.usefixtures("barely_optimized")

FEW = Suite(items=8, seed=0)
ABSENT = pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A workdir of two runs."""
    workdir = tmp_path_factory.mktemp("trained")
    for steps in (3.0, 12.0):
        run = make_run(tiny({"horizon.amount": steps}))
        with RunDirectory(workdir, run.id) as directory:
            train_run(run, directory)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "work")


def score(workdir, tasks, source=FEW, stop=lambda: False, rows=None):
    """What is told while the runs are scored, and what is missing."""
    told = []
    rows = read_table(workdir) if rows is None else rows
    missing = scored_runs.score_runs(workdir, rows, dict.fromkeys(tasks, source), stop, told.append)
    return told, missing


def test_a_score_may_be_bits_per_byte_alone():
    """As that of a task of lm-eval that reads whole texts."""
    assert scored_runs.words({"bits_per_byte": 1.5, "items": 3}) == "1.500 bits per byte"
    whole = {"accuracy": 0.5, "standard_error": 0.1, "chance": 0.25, "bits_per_byte": 1.5}
    assert scored_runs.words(whole) == "0.500 ± 0.100 (chance 0.250), 1.500 bits per byte"


def test_scores_are_columns_of_the_table(workdir):
    assert not [name for row in read_table(workdir) for name in row if name.startswith("score")]
    told, missing = score(workdir, ["copy", "cloze"])
    assert len(told) == 4
    assert not missing
    for row in read_table(workdir):
        assert {name for name in row if name.startswith("score")} == {
            f"{column}/{task}"
            for column in (*scores.COLUMNS, scores.RECIPE)
            for task in ("copy", "cloze")
        }
        assert 0 <= row["score/copy"] <= 1
        assert row["score_chance/copy"] == 0.25
        assert row["score_bits/cloze"] > 1
        assert row["status"] == "done"


def test_bits_per_byte_of_the_cloze_are_near_those_of_the_loss(workdir):
    """The same text read by the same model: the mean over the ends of some windows is not far from
    that over all of them, and that of a model that was trained for less time is above it."""
    score(workdir, ["cloze"], Suite(items=64))
    short, long = sorted(read_table(workdir), key=lambda row: row["steps"])
    for row in (short, long):
        assert row["score_bits/cloze"] == pytest.approx(row["loss"] / np.log(2), rel=0.1)
    assert long["score_bits/cloze"] < short["score_bits/cloze"] * 0.97


def test_what_is_there_is_not_measured_again_and_what_differs_is(workdir):
    first, _ = score(workdir, ["copy", "brackets"])
    files = [path.read_bytes() for path in sorted(workdir.glob("runs/*/scores.json"))]
    again, _ = score(workdir, ["copy", "brackets"])
    assert len(first) == 4
    assert [line.rpartition(": ")[2] for line in again] == ["scored already"] * 2
    assert files == [path.read_bytes() for path in sorted(workdir.glob("runs/*/scores.json"))]
    other, _ = score(workdir, ["copy", "brackets"], Suite(items=8, seed=1))
    assert len(other) == 4
    before = {row["run"]: row["score_recipe/copy"] for row in read_table(workdir)}
    score(workdir, ["copy"], FEW)
    after = {row["run"]: row["score_recipe/copy"] for row in read_table(workdir)}
    assert all(before[run] != after[run] for run in before)


def test_scores_of_other_parameters_are_measured_again(workdir):
    score(workdir, ["copy"])
    path = sorted(workdir.glob("runs/*/scores.json"))[0]
    stored = json.loads(path.read_text())
    stored["copy"] |= {"of": "another", "accuracy": 0.125}
    path.write_text(json.dumps(stored))
    told, _ = score(workdir, ["copy"])
    assert sum("scored already" in line for line in told) == 1
    assert json.loads(path.read_text())["copy"]["of"] != "another"


def test_what_was_scored_before_a_stop_is_kept(workdir):
    answers = iter([False, True])
    with pytest.raises(Preempted, match="stopped before brackets"):
        score(workdir, ["copy", "brackets"], stop=lambda: next(answers))
    (one,) = workdir.glob("runs/*/scores.json")
    assert [*json.loads(one.read_text())] == ["copy"]
    told, _ = score(workdir, ["copy", "brackets"])
    assert [line.split()[5] for line in told] == ["brackets", "copy", "brackets"]


def test_a_run_that_another_process_holds_is_left_alone(workdir):
    one, other = sorted(path.name for path in (workdir / "runs").iterdir())
    with RunDirectory(workdir, one):
        _, missing = score(workdir, ["copy"])
    assert [(entry.run, entry.task) for entry in missing] == [(one, "copy")]
    assert not (workdir / "runs" / one / "scores.json").exists()
    assert (workdir / "runs" / other / "scores.json").exists()
    assert score(workdir, ["copy"])[1] == []


def test_damaged_scores_are_none_and_measured_again(workdir, caplog):
    score(workdir, ["copy"])
    path = sorted(workdir.glob("runs/*/scores.json"))[0]
    for content in (
        "{",
        '{"copy": {"accuracy": "high", "recipe": {}}}',
        '{"copy": 3}',
        '{"<b>": {"accuracy": 0.5, "recipe": {}}}',
    ):
        path.write_text(content)
        caplog.clear()
        row = read_row(path.parent)
        assert row["status"] == "done"
        assert "score/copy" not in row
        assert str(path) in caplog.text
        score(workdir, ["copy"])
        assert 0 <= read_row(path.parent)["score/copy"] <= 1


def test_a_cloze_of_other_text_than_that_of_training_is_refused(workdir, tmp_path):
    rows = [row | {"data_digest": "0" * 64} for row in read_table(workdir)]
    told, missing = score(workdir, ["cloze", "copy"], rows=rows)
    assert [entry.task for entry in missing] == ["cloze"] * 2
    assert all("holds something else than it did" in entry.reason for entry in missing)
    assert len([line for line in told if "copy 0." in line]) == 2


def test_the_cloze_is_of_what_the_run_is_measured_by(tmp_path, tiny, corpus):
    text = corpus.read_text()
    (tmp_path / "train.txt").write_text(text[:200_000])
    (tmp_path / "val.txt").write_text(text[-40_000:])
    sets = {"eval.sets": [{"name": "val", "path": str(tmp_path / "val.txt")}]}
    run = make_run(
        tiny(sets | {"data.path": str(tmp_path / "train.txt"), "data.heldout": None,
                     "eval.headline": "val", "horizon.amount": 2.0})
    )  # fmt: skip
    with RunDirectory(tmp_path, run.id) as directory:
        train_run(run, directory)
    _, missing = score(tmp_path, ["cloze"], Suite(items=64))
    assert not missing
    (row,) = read_table(tmp_path)
    assert row["score_bits/cloze"] == pytest.approx(row["loss"] / np.log(2), rel=0.1)
    one, other = (FEW.recipe("cloze", row | change) for change in ({}, {"eval.headline": None}))
    assert one["set"] == run.config["eval"]["sets"][0]["digest"]
    assert "set" not in other
    assert "set" not in FEW.recipe("copy", row)
    (tmp_path / "val.txt").write_text(text[-50_000:-10_000])
    _, missing = score(tmp_path, ["cloze"], Suite(items=65))
    assert "val.txt holds something else than it did" in missing[0].reason


def test_of_ids_the_cloze_alone_can_be_asked(tmp_path, tiny):
    path = tmp_path / "ids.bin"
    (np.random.default_rng(0).integers(0, 97, 9000)).astype(np.uint16).tofile(path)
    run = make_run(tiny({"data.path": str(path), "data.vocab": 97, "horizon.amount": 2.0}))
    with RunDirectory(tmp_path, run.id) as directory:
        train_run(run, directory)
    _, missing = score(tmp_path, ["cloze", "copy"])
    (row,) = read_table(tmp_path)
    assert 0 <= row["score/cloze"] <= 1
    assert "score_bits/cloze" not in row
    assert [(entry.task, "whose words are unknown" in entry.reason) for entry in missing] == [
        ("copy", True)
    ]


def test_only_finished_language_models_are_chosen():
    rows = [
        {"run": "a", "status": "done", "task": "language_modeling"},
        {"run": "b", "status": "failed", "task": "language_modeling"},
        {"run": "c", "status": "done", "task": "regression"},
    ]
    assert [row["run"] for row in chosen_runs.language_models(rows)] == ["a"]
    for run, words in (("b", "failed"), ("c", "its task is regression"), ("d", "no such run")):
        with pytest.raises(BadInput, match=words):
            chosen_runs.language_models(rows, run)
    with pytest.raises(BadInput, match="no finished language model among 2 runs"):
        chosen_runs.language_models(rows[1:])


# The command


def call(*args, **env):
    command = [sys.executable, "-m", "experiments.evaluate", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | env, timeout=120
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--tasks=copi"],
            "--tasks: copi: no task of the suite (cloze, copy, repetition",
        ),
        (["--tasks=copy,copy"], "--tasks: copy is given twice"),
        (["--tasks=,"], "--tasks: expected some of cloze"),
        (["--tasks=copy", "--items=1"], "--items=1: expected a whole number from 2"),
        (["--tasks=copy", "--seed=-1"], "--seed=-1: expected a whole number from 0"),
        (["--tasks=copy", "--include_path=/nowhere"], "--include_path=/nowhere: no such folder"),
        (["--tasks=copy", "--include_path=."], "--include_path=.: of no use: the suite has all of"),
        (["--tasks=copy", "--run=nothere"], "--run=nothere: no such run; there are"),
        (["--tasks=copy", "--runs=/no/such/folder"], "/no/such/folder"),
        ([], "--tasks"),
    ],
)
def test_bad_flags_are_reported_without_jax(args, words, trained, tmp_path):
    (tmp_path / "jax.py").write_text("raise RuntimeError('jax was imported')")
    done = call(f"--runs={trained}", *args, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_command_scores_a_workdir_or_one_run_of_it(workdir):
    one, other = sorted(path.name for path in (workdir / "runs").iterdir())
    done = call(f"--runs={workdir / 'runs' / one}", "--tasks=brackets", "--items=8")
    assert done.returncode == 0, done.stderr
    assert f"run {one}" in done.stdout
    assert other not in done.stdout
    done = call(f"--runs={workdir}", "--tasks=all", "--items=8")
    assert done.returncode == 0, done.stderr
    assert "brackets (chance 0.333)" in done.stdout
    assert {row["run"] for row in read_table(workdir) if "score/cloze" in row} == {one, other}
