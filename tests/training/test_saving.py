"""When states are saved and which are kept: by steps, by minutes, the best by a metric; and a run
that may only take so long."""

import json
import logging
import random
import time

import pytest

from research.config import stop_signal
from research.errors import BadInput, StorageError
from research.runs import best, checkpoint, metrics_log
from research.runs.directory import RunDirectory
from research.runs.manifest_check import read_manifest
from research.training import checkpoint_policy
from research.training.checkpoint_policy import DueSaves
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.run import Saving
from research.training.tasks import TASKS, task_class

SAVING = Saving(every=0, every_minutes=None, keep=1, best=None, asynchronous=False, on_error="stop")
EVERY_STEP = {"eval.every": 2, "save.keep": 1, "save.best": "loss"}
WORSE = {"optim.lr": 30.0, "optim.schedule.name": "constant", "optim.clip": None}


@pytest.mark.parametrize("name", TASKS)
def test_every_metric_of_a_task_says_what_is_better(name):
    for column in task_class(name).METRICS:
        assert best.direction(column.name, task_class(name).METRICS) in ("low", "high")


def test_direction_is_of_the_metric():
    metrics = task_class("classification").METRICS
    assert best.direction("loss", metrics) == "low"
    assert best.direction("accuracy", metrics) == "high"
    with pytest.raises(BadInput, match=r"save\.best: 'r2'; expected one of loss, accuracy"):
        best.direction("r2", metrics)


def test_a_metric_that_the_task_lacks_is_rejected_by_name(tiny):
    with pytest.raises(BadInput, match=r"save\.best: 'accuracy'; expected one of loss, perplexity"):
        make_run(tiny({"save.best": "accuracy", "eval.every": 2}))


def test_the_best_of_no_evaluations_is_rejected(tiny):
    with pytest.raises(BadInput, match=r"save\.best: 'loss', but eval\.every = 0"):
        tiny({"save.best": "loss", "eval.every": 0})


def test_saves_are_due_by_steps_and_by_minutes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint_policy.time, "monotonic", lambda: now[0])
    policy = DueSaves(SAVING._replace(every=4, every_minutes=2.0))
    assert [step for step in range(1, 9) if policy.due(step)] == [4, 8]
    now[0] = 119.0
    assert not policy.due(9)
    now[0] = 121.0
    assert policy.due(10)
    assert not policy.due(11), "once for each time"
    now[0] = 242.0
    assert policy.due(13)
    never = DueSaves(SAVING)
    assert not any(never.due(step) for step in range(1, 20))


@pytest.fixture
def held(tmp_path):
    with RunDirectory(tmp_path, "run") as directory:
        yield directory


def saved(directory, *steps):
    for step in steps:
        (directory.path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(("metric", "values", "step"), [
    ("loss", [3.0, 1.0, 2.0], 2),
    ("loss", [3.0, 3.0, float("nan")], 1),  # the first of equals
    ("accuracy", [0.3, 0.1, 0.2], 1),
    ("accuracy", [0.1, 0.2, 0.3], 3),
])  # fmt: skip
def test_the_best_is_the_extreme_of_its_direction(metric, values, step, held):
    kept = best.Best(held, metric, task_class("classification").METRICS)
    for at, value in enumerate(values, 1):
        kept.evaluated(at, {"loss": 0.0, "accuracy": 0.0, metric: value})
        saved(held, at)
        kept.saved(at)
    assert kept.summary() == {"best_step": step, "best_score": values[step - 1]}
    again = best.Best(held, metric, task_class("classification").METRICS)
    again.resume(3)
    assert again.summary() == kept.summary()
    again = best.Best(held, metric, task_class("classification").METRICS)
    again.resume(step - 1)
    assert not again.summary(), "found again by the steps that are repeated"


def test_a_best_whose_checkpoint_is_gone_is_none(held, caplog):
    kept = best.Best(held, "loss", ())
    kept.evaluated(1, {"loss": 1.0})
    kept.saved(1)  # killed before it was
    again = best.Best(held, "loss", ())
    again.resume(5)
    assert not again.summary()
    assert "the best checkpoint is gone" in caplog.text
    again.evaluated(5, {"loss": 2.0})
    saved(held, 5)
    again.saved(5)
    assert again.step == 5


def test_a_damaged_note_of_the_best_is_found_anew(held, caplog):
    (held.path / "best.json").write_text('{"step": "x"')
    with caplog.at_level(logging.WARNING):
        assert checkpoint.read_best(held.path) is None
    assert "not as it was written" in caplog.text


def test_pruning_spares_the_best(held):
    saved(held, 1, 2, 3, 4)
    held.write("best.json", {"step": 2, "metric": "loss", "value": 1.0})
    checkpoint.prune(held.path, 1)
    assert checkpoint.saved_steps(held.path) == [4, 2]
    (held.path / "best.json").unlink()
    checkpoint.prune(held.path, 1)
    assert checkpoint.saved_steps(held.path) == [4]


def test_a_run_keeps_its_best_state(tiny, tmp_path):
    run = make_run(tiny(EVERY_STEP | WORSE))
    with RunDirectory(tmp_path, run.id) as directory:
        result = train_run(run, directory)
    records = metrics_log.read_records(directory.path)
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    least = min(losses, key=losses.__getitem__)
    assert least < run.steps, "the twin: the best is not the last"
    assert result["best_step"] == least
    assert result["best_score"] == losses[least]
    assert checkpoint.saved_steps(directory.path) == [run.steps, least]


@pytest.mark.fault(
    "R24",
    "the time of `--max_minutes` is over",
    "the dispatch finished and saved, exit code 75; the run continues to the same bits",
    "less time than a start takes, three launches, then one without a limit",
)
def test_a_run_whose_time_is_over_saves_and_continues(victim, tmp_path, seen):
    steps = []
    for _ in range(3):
        child = victim.start(tmp_path, flags=["--max_minutes=0.0001"])
        assert child.wait() == 75, child.said
        assert "stopped and saved" in child.said
        steps.append(checkpoint.saved_steps(victim.path(tmp_path))[0])
    assert steps == sorted(set(steps)), "each launch takes a dispatch at least"
    victim.assert_ends_whole(tmp_path)
    seen(3, f"saved at steps {', '.join(map(str, steps))}, then to the same end")


@pytest.mark.fault(
    "R25",
    "SIGKILL of a run that keeps its best state and saves by time",
    "the best state that was found is there, with what undisturbed runs know; the same bits",
    "killed after a save, then launched to its end",
)
def test_a_run_that_keeps_its_best_ends_as_undisturbed(victim, tmp_path, seen):
    config = {**victim.config, "save": {**victim.config["save"], "best": "loss", "keep": 1}}
    config["save"]["every_minutes"] = 0.002
    (file := tmp_path / "config.json").write_text(json.dumps(config))
    child, run = victim.start(tmp_path / "w", config=file), victim.path(tmp_path / "w")
    child.until(lambda: (run / "best.json").exists())
    child.signal(9)
    child.wait()
    victim.assert_ends_whole(tmp_path / "w", config=file)
    losses = {m["step"]: m["loss"] for m in victim.metrics if "loss" in m}
    step = min(losses, key=losses.__getitem__)
    assert json.loads((run / "result.json").read_text())["best_step"] == step
    assert step in checkpoint.saved_steps(run)
    seen(1, f"step {step} of {', '.join(map(str, losses))} kept")


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_a_limit_that_is_none_is_rejected(minutes):
    with pytest.raises(BadInput, match=f"--max_minutes={minutes}: expected a number above 0"):
        stop_signal._from_now(minutes)


def test_a_limit_stops_like_a_signal(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(stop_signal.time, "monotonic", lambda: now[0])
    stop = stop_signal.StopSignal.__new__(stop_signal.StopSignal)
    stop.number, stop.end = 0, stop_signal._from_now("1.5")
    assert not stop()
    now[0] = 101.0
    assert stop()


# While training goes on.

AHEAD = {"save.every": 2, "save.keep": 9, "save.asynchronous": True, "loop.steps_per_dispatch": 2}


def trained(config, workdir):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        train_run(run, directory)
    return directory.path


def test_states_written_while_training_goes_on_are_the_same(tiny, tmp_path):
    ahead = trained(tiny(AHEAD), tmp_path / "a")
    whole = trained(tiny(AHEAD | {"save.asynchronous": False}), tmp_path / "b")
    assert checkpoint.saved_steps(ahead) == checkpoint.saved_steps(whole) == [12, 10, 8, 6, 4, 2]
    for step in checkpoint.saved_steps(ahead):
        digests = (read_manifest(p / "checkpoints" / str(step))["content"] for p in (ahead, whole))
        assert next(digests) == next(digests), step
    assert not list(ahead.rglob(".saving-*"))


@pytest.fixture
def refusing(monkeypatch):
    """A function: the steps whose commit, on whatever thread, the disk refuses."""
    real, refused = checkpoint.commit, set()

    def commit(temporary, step, *rest):
        if step in refused:
            raise OSError(28, "No space left on device")
        real(temporary, step, *rest)

    monkeypatch.setattr(checkpoint, "commit", commit)
    return refused.update


@pytest.mark.fault(
    "R26",
    "the disk refuses a checkpoint that is written while training goes on",
    "told at the next save: the run ends with code 74, or goes on where `save.on_error` says so",
    "ENOSPC at the commit, beside the training",
)
def test_a_refusal_on_the_other_thread_is_told(tiny, tmp_path, refusing, caplog, seen):
    refusing([4])
    with pytest.raises(StorageError, match=r"4: the checkpoint cannot be written: .*No space left"):
        trained(tiny(AHEAD), tmp_path / "a")
    (run,) = (tmp_path / "a" / "runs").iterdir()
    assert checkpoint.saved_steps(run) == [2]
    assert not list(run.rglob(".saving-*"))
    run = trained(tiny(AHEAD | {"save.on_error": "continue"}), tmp_path / "b")
    assert checkpoint.saved_steps(run) == [12, 10, 8, 6, 2]
    assert "continues without it" in caplog.text
    refusing([12])
    with pytest.raises(StorageError, match="12: the checkpoint cannot be written"):
        trained(tiny(AHEAD | {"save.on_error": "continue"}), tmp_path / "c")  # the last one must
    seen(3, "told three times, nothing half-written")


@pytest.mark.fault(
    "R26",
    "SIGKILL while a checkpoint is written beside the training",
    "as without: every listed step whole, each record once, the same bits at the end",
    "SIGKILL at random moments of a run with `save.asynchronous`",
)
@pytest.mark.parametrize("trials", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_run_that_saves_ahead_may_be_killed(trials, victim, tmp_path, seen):
    rng, saved, flags = random.Random(trials), 0, ["--config.save.asynchronous=true"]
    for trial in range(trials):
        workdir = tmp_path / str(trial // 4)
        child, run = victim.start(workdir, flags=flags), victim.path(workdir)
        child.until(lambda run=run: (run / "metrics.jsonl").exists())
        end = time.monotonic() + rng.uniform(0, 1.5)
        child.until(lambda end=end: time.monotonic() > end)
        child.signal(9)
        child.wait()
        saved += victim.assert_sound(workdir) > 0
    victim.assert_ends_whole(workdir, flags=flags)
    seen(trials, f"{trials} of {trials} sound, {saved} with steps saved")
