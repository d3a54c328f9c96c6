"""A sweep trains what is missing, survives what fails, and tells."""

import argparse
import json
import shutil
import subprocess
import sys
import time

import pytest

from experiments import train as train_command
from research.config import cli, process_flags
from research.config.stop_signal import StopSignal
from research.errors import BadInput, Preempted
from research.runs import metrics_log
from research.runs.directory import RunDirectory, read_run_file
from research.runs.table import read_row, read_table, split_by_sweep
from research.sweep import work_units, worker
from research.sweep.launcher import launch_sweep
from research.sweep.points import (
    describe_status,
    launched_with,
    read_points,
    resolve_points,
    retry_failed,
    write_points,
)
from research.tables.replicates import settings
from research.tables.where import match_where
from research.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("barely_optimized")


def points(tiny, *changes):
    return [(dict(c), tiny(c)) for c in changes]


SEEDS = ({"seed": 0}, {"seed": 1}, {"seed": 2})


def launch(made, workdir):
    return launch_sweep(made, workdir, stop=lambda: False)


def test_a_launch_that_trains_nothing_still_says_what_the_sweep_is_now(tiny, tmp_path):
    configs = points(tiny, *SEEDS)
    launch(resolve_points(configs, tmp_path), tmp_path)
    for some in (configs[:1], configs, configs[1:]):
        assert launch(resolve_points(some, tmp_path), tmp_path).trained == 0
        own, others = split_by_sweep(tmp_path, read_table(tmp_path))
        assert (len(own), len(others)) == (len(some), len(configs) - len(some))


def test_a_sweep_whose_time_is_over_is_stopped_and_resumable(tiny, tmp_path):
    ended = StopSignal(end=time.monotonic() - 1)
    with pytest.raises(Preempted, match="3 units left"), ended:
        launch_sweep(resolve_points(points(tiny, *SEEDS), tmp_path), tmp_path, ended)
    later = StopSignal(end=time.monotonic() + 3600)
    made = resolve_points(points(tiny, *SEEDS), tmp_path)
    assert launch_sweep(made, tmp_path, later).trained == 3


def test_a_second_launch_trains_nothing(tiny, tmp_path):
    configs = points(tiny, *SEEDS)
    first = launch(resolve_points(configs, tmp_path), tmp_path)
    assert (first.trained, first.skipped, first.missing) == (3, 0, {})
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    second = launch(resolve_points(configs, tmp_path), tmp_path)
    assert (second.trained, second.skipped) == (0, 3)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    more = launch(resolve_points(points(tiny, *SEEDS, {"seed": 3}), tmp_path), tmp_path)
    assert (more.trained, more.skipped) == (1, 3)


def test_equal_points_are_one_run(tiny, tmp_path):
    assert (
        len(resolve_points(points(tiny, {"seed": 0}, {"seed": 0}, {"name": "other"}), tmp_path))
        == 1
    )


@pytest.mark.fault(
    "R12",
    "a run of a sweep fails",
    "a row with its reason, the others continue, the exit code says so",
    "an error raised in one of them",
)
def test_a_failed_run_becomes_a_row_and_the_others_continue(tiny, tmp_path, monkeypatch):
    configs = points(tiny, *SEEDS)
    broken = resolve_points(configs, tmp_path)[1].run.id
    original = Trainer.init

    def init(self):
        if self.run.id == broken:
            raise RuntimeError("the device caught fire")
        return original(self)

    monkeypatch.setattr(Trainer, "init", init)
    outcome = launch(resolve_points(configs, tmp_path), tmp_path)
    assert outcome.trained == 2
    assert list(outcome.missing) == [broken]
    assert "fire" in outcome.missing[broken]
    rows = {r["run"]: r for r in read_table(tmp_path)}
    assert rows[broken]["status"] == "failed"
    assert "fire" in rows[broken]["reason"]


def test_failed_runs_are_left_until_they_are_to_be_tried_again_once(tiny, tmp_path, monkeypatch):
    def init(self):
        raise RuntimeError("the device caught fire")

    original = Trainer.init
    monkeypatch.setattr(Trainer, "init", init)
    configs = points(tiny, {"seed": 0})
    launch(resolve_points(configs, tmp_path), tmp_path)
    (again,) = made = resolve_points(configs, tmp_path)
    assert not again.pending
    assert "0 to train; 1 failed and are left as they are (--retry_failed" in describe_status(made)
    assert launch(made, tmp_path).skipped == 1
    assert RunDirectory(tmp_path, again.run.id).failures == 1
    launch(retry_failed(made), tmp_path)
    assert RunDirectory(tmp_path, again.run.id).failures == 2
    monkeypatch.setattr(Trainer, "init", original)
    made = resolve_points(configs, tmp_path)
    assert not made[0].pending
    assert launch(retry_failed(made), tmp_path).trained == 1


def test_a_run_that_another_process_holds_is_waited_for(tiny, tmp_path, monkeypatch):
    """The others are trained first; then the one whose holder is gone."""
    made = resolve_points(points(tiny, *SEEDS), tmp_path)
    trained, original = [], work_units.train_unit
    holding = RunDirectory(tmp_path, made[0].run.id)

    def train_unit(unit, *rest):
        trained.append(unit.points[0].run.id)
        if len(trained) == 2:
            holding.__exit__()
        return original(unit, *rest)

    monkeypatch.setattr(work_units, "train_unit", train_unit)
    monkeypatch.setattr(worker, "POLL", 0.01)
    with holding:
        assert launch(made, tmp_path).trained == 3
    assert sorted(trained[:2]) == sorted(p.run.id for p in made[1:])
    assert trained[2] == made[0].run.id


def test_waiting_for_others_ends_when_asked_to_stop(tiny, tmp_path):
    made = resolve_points(points(tiny, {"seed": 0}), tmp_path)
    asked = iter([False] * 3)
    with RunDirectory(tmp_path, made[0].run.id), pytest.raises(Preempted):
        launch_sweep(made, tmp_path, stop=lambda: next(asked, True))


def test_a_diverged_run_is_a_row_and_is_not_tried_again(tiny, tmp_path):
    configs = points(tiny, {"optim.lr": 1e30, "optim.clip": None, "horizon.amount": 40.0}, {})
    outcome = launch(resolve_points(configs, tmp_path), tmp_path)
    assert outcome.trained == 1
    assert [reason.partition(":")[0] for reason in outcome.missing.values()] == ["diverged"]
    again = resolve_points(configs, tmp_path)
    assert sorted(p.status for p in again) == ["diverged", "done"]
    assert len(launch(again, tmp_path).missing) == 1


def test_every_point_that_cannot_run_is_reported_together(tiny, tmp_path):
    configs = points(tiny, {"eval.examples": 10**9}, {"data.context": 10**6}, {})
    with pytest.raises(BadInput) as error:
        resolve_points(configs, tmp_path)
    assert "eval.examples: 1000000000" in str(error.value)
    assert "data.context" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_plan_of_the_command_writes_and_trains_nothing(corpus, tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.sweep", "--plan", f"--workdir={tmp_path / 'w'}"),
        *("--config=configs/sweeps/lm_params.py", f"--config.data.path={corpus}"),
        *("--config.eval.examples=8", "--config.horizon.amount=1e4"),
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "attention" in out
    assert out.count(" new") == 9
    assert not (tmp_path / "w").exists()


def killed(directory, times):
    """The leases that processes leave which die in it."""
    for _ in range(times):
        directory.__enter__()
        path = directory._lease.path
        directory._lease._released.set()
        directory._lease = None
        directory.__exit__()
        path.write_text(path.read_text().replace('"born": "', '"born": "0'))


@pytest.mark.fault(
    "R12",
    "a run kills its process (out of memory)",
    "it is tried after all others",
    "a lease of dead holders",
)
def test_a_run_that_kills_its_process_comes_after_all_others(tiny, tmp_path, monkeypatch):
    order, original = [], work_units.train_unit

    def train_unit(unit, *rest):
        order.append(unit.points[0].run.id)
        return original(unit, *rest)

    monkeypatch.setattr(work_units, "train_unit", train_unit)
    configs = points(tiny, *SEEDS)
    first = resolve_points(configs, tmp_path)[0].run.id
    killed(RunDirectory(tmp_path, first), 2)
    made = resolve_points(configs, tmp_path)
    assert made[0].deaths == 2
    assert read_row(tmp_path / "runs" / first)["reason"] == "its process died, 2 times in a row"
    assert launch(made, tmp_path).trained == 3
    assert order[-1] == first


@pytest.mark.slow
def test_units_of_a_shape_that_is_compiled_come_first(tiny, tmp_path, monkeypatch):
    order, original = [], work_units.train_unit

    def train_unit(unit, *rest):
        order.append(unit.points[0].run.model.spec.width)
        return original(unit, *rest)

    monkeypatch.setattr(work_units, "train_unit", train_unit)
    wide = {"model.width": 24}
    changes = [{"horizon.amount": 6.0}, wide, wide | {"seed": 1}, {"horizon.amount": 60.0}]
    made = resolve_points(points(tiny, *changes), tmp_path)
    assert [p.run.model.spec.width for p in made] == [16, 24, 24, 16], "smallest FLOPs first"
    launch(made, tmp_path)
    assert order == [16, 16, 24, 24]


def test_a_sweep_file_is_data_that_gives_back_its_points(tiny, tmp_path):
    made = retry_failed(resolve_points(points(tiny, *SEEDS), tmp_path))
    path = write_points(made, tmp_path)
    assert write_points(made, tmp_path) == path
    again, _ = read_points(path, tmp_path)
    assert [p.run.id for p in again] == [p.run.id for p in made]
    assert [p.run.facts for p in again] == [p.run.facts for p in made]
    path.write_text('{"points": [{}]}')
    with pytest.raises(BadInput, match="not a sweep of this version"):
        read_points(path, tmp_path)


def damaged(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", ["launch.json", "shared_prefix.json", "checkpoints"])
def test_a_run_whose_own_files_are_damaged_is_a_row_and_the_others_continue(file, tiny, tmp_path):
    configs = points(tiny, *SEEDS)
    made = resolve_points(configs, tmp_path)
    launch(made[1:2], tmp_path)
    path = tmp_path / "runs" / made[1].run.id
    (path / "result.json").unlink()
    if file == "checkpoints":
        for manifest in path.glob("checkpoints/*/manifest.json"):
            damaged(manifest)
    else:
        (path / file).touch()  # a run that began from no prefix has no shared_prefix.json
        damaged(path / file)
    outcome = launch(resolve_points(configs, tmp_path), tmp_path)
    assert outcome.trained == 2
    assert list(outcome.missing) == [path.name]
    assert str(path) in outcome.missing[path.name], "which file is not told"
    assert "remove" in outcome.missing[path.name].lower(), "what to do is not told"
    rows = {r["run"]: r["status"] for r in read_table(tmp_path)}
    assert rows.pop(path.name) == "failed"
    assert set(rows.values()) == {"done"}


HOSTILE = {
    "a link as its lease": lambda run, out: (run / "lease" / "7.json").symlink_to(out),
    "a link in it": lambda run, out: (run / "foo").symlink_to(out),
    "a file in its place": lambda run, out: (shutil.rmtree(run), run.write_text("x")),
    "a file as its lease": lambda run, out: (
        shutil.rmtree(run / "lease"),
        (run / "lease").write_text("x"),
    ),
    "its launch.json is empty": lambda run, out: (run / "launch.json").write_text("{}"),
    "its launch.json is a link": lambda run, out: (
        (run / "launch.json").unlink(),
        (run / "launch.json").symlink_to(out),
    ),
    "its quarantine is a file": lambda run, out: (
        (run / "quarantine").write_text("x"),
        *map(damaged, run.glob("checkpoints/*/manifest.json")),
    ),
}


@pytest.mark.parametrize("harm", HOSTILE)
def test_a_run_that_somebody_tampered_with_is_a_row_and_the_others_continue(harm, tiny, tmp_path):
    configs, workdir = points(tiny, *SEEDS), tmp_path / "work"
    made = resolve_points(configs, workdir)
    launch(made[1:2], workdir)
    path, outside = workdir / "runs" / made[1].run.id, tmp_path / "outside"
    outside.write_text("{}")
    (path / "result.json").unlink()
    HOSTILE[harm](path, outside)
    outcome = launch(resolve_points(configs, workdir), workdir)
    assert outcome.trained == 2
    assert list(outcome.missing) == [path.name]
    assert ": " in outcome.missing[path.name]
    assert str(path) in outcome.missing[path.name], "which file is not told"
    assert outside.read_text() == "{}"


@pytest.mark.parametrize(
    "content", ['{"status": "do', '{"status": 5}', '{"status": "failed"}', "[]"]
)
def test_train_makes_a_damaged_result_anew(content, tiny, tmp_path, capsys):
    flags = {
        "resume": False,
        "force": False,
        "profile": 0,
        "accept_changes": False,
        "tag": None,
        "note": None,
    }
    args = argparse.Namespace(workdir=tmp_path, **flags)
    assert train_command.train_one(tiny(), args, lambda: False) == 0
    (path,) = tmp_path.glob("runs/*/result.json")
    loss = read_run_file(path)["loss"]
    path.write_text(content)
    assert train_command.train_one(tiny(), args, lambda: False) == 0
    assert read_run_file(path)["loss"] == loss
    capsys.readouterr()
    assert train_command.train_one(tiny(), args, lambda: False) == 0
    assert "is done already" in capsys.readouterr().out, "the twin: a whole one is believed"


def test_a_damaged_result_is_recomputed_from_the_last_checkpoint(tiny, tmp_path):
    configs = points(tiny, *SEEDS[:1])
    launch(resolve_points(configs, tmp_path), tmp_path)
    (path,) = tmp_path.glob("runs/*/result.json")
    before = read_row(path.parent)
    damaged(path)
    assert read_row(path.parent)["status"] == "failed"
    assert launch(resolve_points(configs, tmp_path), tmp_path).trained == 1
    after = read_row(path.parent)
    assert after["loss"] == before["loss"]
    lines = metrics_log.read_records(path.parent)
    assert [r["step"] for r in lines] == sorted({r["step"] for r in lines}), "steps were redone"


def test_a_tag_and_a_note_reach_the_table(tiny, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny()))
    flags = [f"--config={path}", f"--workdir={tmp_path}", "--tag=base-1", "--note=a first try"]
    assert train_command.main(flags) == 0
    labels = {"tag": "second"}
    made = launched_with(resolve_points(points(tiny, {"seed": 1}), tmp_path), False, labels)
    assert read_points(write_points(made, tmp_path), tmp_path)[0][0].labels == labels
    launch(made, tmp_path)
    launch(resolve_points(points(tiny, {"seed": 2}), tmp_path), tmp_path)
    rows = {row["seed"]: row for row in read_table(tmp_path)}
    assert [rows[seed].get("tag") for seed in range(3)] == ["base-1", "second", None]
    assert rows[0]["note"] == "a first try"
    launched = read_run_file(tmp_path / "runs" / rows[0]["run"] / "launch.json")
    assert (launched["tag"], launched["note"]) == ("base-1", "a first try")
    keep = match_where(list(rows.values()), "tag in (base-1, second)")
    assert keep.tolist() == [True, True, False]
    assert not ({"tag", "note"} & set(settings(list(rows.values())))), "no settings of a run"


@pytest.mark.parametrize("tag", ["two words", "", "-x", "a,b", "x" * 41, "a=b"])
def test_a_tag_that_is_no_word_is_rejected(tag):
    parser = cli.parser("")
    process_flags.add_run_flags(parser)
    with pytest.raises(BadInput, match="--tag"):
        parser.parse_args([f"--tag={tag}"])
    assert process_flags.labels(parser.parse_args(["--tag=v1.2+b"])) == {"tag": "v1.2+b"}
