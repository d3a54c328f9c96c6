"""A run that diverges is found at once and costs nothing but itself; a spike may be skipped."""

import contextlib
import json
import math

import jax
import numpy as np
import pytest

from research.config import validation
from research.config.loading import load_config, validated
from research.errors import Diverged, Preempted
from research.parallel import device_mesh
from research.runs import checkpoint, metrics_log, stored_state
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.training import checkpoint_policy, vmapped_runs
from research.training import trainer as train
from research.training.checkpoint_policy import check_finite
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer, host_batches
from research.training.vmapped_runs import train_vmapped

STEPS = 50  # in a dispatch, the most that there are


def exploding(changes=None):
    """A linear regression whose rate is so high that its loss grows in every step, until it is no
    number any more; after how many steps depends on the rate."""
    config, _ = load_config("configs/linear.py")
    every = {"horizon.unit": "steps", "horizon.amount": 400.0, "optim.clip": None, "save.every": 10}
    every |= {"optim.optimizer.name": "sgd", "optim.optimizer.momentum": 0.0, "eval.every": 0}
    every |= {"optim.optimizer.nesterov": False, "optim.optimizer.weight_decay": 0.0}
    every |= {"optim.schedule.name": "constant", "optim.lr": 3.0, "log.every": 1, "save.keep": 2}
    every |= {"loop.steps_per_dispatch": STEPS, "optim.warmup.amount": 0.0} | (changes or {})
    config, problems = validation.override(config, every)
    assert not problems, problems
    return validated(config)


@pytest.mark.fault(
    "R10",
    "a run diverges",
    "its dispatch ends on the device at the first step that is not finite; no sync of each step",
    "a rate at which a linear model explodes, 50 steps in a dispatch",
)
def test_the_device_stops_at_the_first_step_that_is_not_finite(seen):
    run = make_run(exploding())
    trainer = Trainer(run, device_mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, run.batch))
    state, step, losses = trainer.init(), 0, []
    while np.isfinite(losses).all():
        state, metrics = trainer.steps(state, trainer.batches(step, STEPS, STEPS), STEPS)
        metrics = jax.device_get(metrics)
        taken = int(state.step) - step
        losses += list(metrics["train_loss"][:taken])
        assert not metrics["train_loss"][taken:].any()
        step += taken
    assert step > 20
    assert np.isfinite(losses[:-1]).all()
    again, _ = trainer.steps(state, trainer.batches(step, STEPS, STEPS), STEPS)
    assert int(again.step) == step + 1, "a dispatch that was on its way takes one step more"
    seen(1, f"stopped at step {step - 1}, the first that was not finite; one step more at most")


@pytest.mark.fault(
    "R10",
    "a run diverges: what is kept",
    "exit code 76; step and last finite loss recorded; the newest finite checkpoint kept",
    "the same by the command, saved every 10 steps",
)
def test_a_diverged_run_keeps_its_last_finite_checkpoint(zygote, tmp_path, seen):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(exploding()))
    child = zygote.start(file, tmp_path / "w")
    assert child.wait() == 76, child.said
    row = read_table(tmp_path / "w")[0]
    assert row["status"] == "diverged"
    assert "the last finite loss was" in row["reason"] or "is not finite" in row["reason"]
    path = tmp_path / "w" / "runs" / row["run"]
    losses = [r["train_loss"] for r in metrics_log.read_records(path) if "train_loss" in r]
    newest = checkpoint.saved_steps(path)[0]
    assert len(losses) - 20 <= newest <= len(losses)
    params = stored_state.read_arrays(path / "checkpoints" / str(newest), "params")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    child = zygote.start(file, tmp_path / "w")
    assert child.wait() == 76
    assert "is diverged already" in child.said
    seen(1, f"diverged after {len(losses)} finite losses, step {newest} kept")


@pytest.mark.fault(
    "R10",
    "an update is not finite though its loss was",
    "it is not saved; the step before it stays the newest",
    "a parameter made infinite in the state that is to be saved",
)
@pytest.mark.parametrize("grouped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_state_that_is_not_finite_is_never_saved(grouped, tiny, tmp_path, monkeypatch, seen):
    real = check_finite
    poisoned = []

    def poison(step, state):
        if step == 20:
            poisoned.append(step)
            state = state._replace(params=jax.tree.map(lambda x: x + math.inf, state.params))
        real(step, state)

    monkeypatch.setattr(checkpoint_policy, "check_finite", poison)
    run = make_run(tiny({"horizon.amount": 40.0, "save.every": 10, "save.keep": 1}))
    with RunDirectory(tmp_path, run.id) as directory:
        if grouped:
            monkeypatch.setattr(vmapped_runs, "check_finite", poison)
            train_vmapped([(run, directory)], [run.id])
        else:
            with pytest.raises(Diverged, match="state after step 19 is not finite"):
                train_run(run, directory)
    assert poisoned == [20]
    assert directory.result["status"] == "diverged"
    assert checkpoint.saved_steps(directory.path) == [10]
    seen(1, "diverged at the save of step 20; step 10 kept")


SPIKES = (45, 60, 61)


def skipping(**changes):
    calm = {"optim.lr": 0.05, "horizon.amount": 120.0, "loop.steps_per_dispatch": 10}
    return exploding(
        calm | {"optim.skip": 6.0} | {k.replace("__", "."): v for k, v in changes.items()}
    )


@pytest.fixture
def spiked(monkeypatch):
    """Batches of which some, once, have targets that are far off, or no number."""

    def at(bad):
        real = host_batches

        def batches(run, step, n, *rest):
            rows = real(run, step, n, *rest)
            for k, value in bad.items():
                if step <= k < step + n:
                    rows["targets"][k - step] = value
            return rows

        for user in (train, vmapped_runs):
            monkeypatch.setattr(user, "host_batches", batches)

    return at


def fit(config, workdir, **more):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory, **more), directory.path


@pytest.mark.fault(
    "R10",
    "spikes of the loss, `optim.skip` set",
    "steps far above the mean, or not finite, change nothing and are counted; off by default",
    "targets of three steps made huge or infinite; stopped and resumed between",
)
def test_spikes_are_skipped_and_counted(tmp_path, spiked, seen):
    calm = skipping()
    plain, _ = fit(calm, tmp_path / "plain")
    assert plain["skipped_steps"] == 0
    spiked({45: 1e6, 60: np.inf, 61: -1e4})
    result, path = fit(calm, tmp_path / "whole")
    assert result["skipped_steps"] == len(SPIKES)
    assert result["loss"] == pytest.approx(plain["loss"], rel=0.05)
    steps = {r["step"]: r for r in metrics_log.read_records(path) if "lr" in r}
    assert [k for k, r in steps.items() if r["skipped"]] == list(SPIKES)
    assert "train_loss" not in steps[60], "infinity is no JSON"
    calls = iter(range(1000))
    with pytest.raises(Preempted):
        fit(calm, tmp_path / "twice", stop=lambda: next(calls) > 5)
    again, _ = fit(calm, tmp_path / "twice")
    assert (again["loss"], again["skipped_steps"]) == (result["loss"], result["skipped_steps"])
    with pytest.raises(Diverged):  # the twin: without it
        fit(skipping(optim__skip=None), tmp_path / "without")
    seen(len(SPIKES), "three of three skipped and counted, the same after a resume")


def told(path):
    """The steps that were skipped, and the losses of the others."""
    steps = {r["step"]: r for r in metrics_log.read_records(path) if "lr" in r}
    skipped = [step for step, r in steps.items() if r["skipped"]]
    return skipped, [r["train_loss"] for step, r in steps.items() if step not in skipped]


@pytest.mark.slow
def test_vmapped_runs_skip_spikes_independently(tmp_path, spiked):
    """Two spikes for both, and targets of 0: one for the member that has learned others."""
    spiked({45: 1e6, 60: np.inf, 90: 0.0})
    ways = ({"optim__lr": 0.05}, {"optim__lr": 1e-4})  # the second has hardly learned anything
    runs = [make_run(skipping(mesh__data=1, **way)) for way in ways]
    with contextlib.ExitStack() as held:
        workdir = tmp_path / "group"
        members = [(r, held.enter_context(RunDirectory(workdir, r.id))) for r in runs]
        results = train_vmapped(members, [run.id for run in runs])
    seen = []
    for run in runs:
        with RunDirectory(tmp_path / "alone", run.id) as directory:
            alone = train_run(run, directory)
        (skipped, losses), (expected, wanted) = (
            told(w / "runs" / run.id) for w in (workdir, tmp_path / "alone")
        )
        assert skipped == expected
        assert results[run.id]["skipped_steps"] == alone["skipped_steps"] == len(skipped)
        np.testing.assert_allclose(losses, wanted, rtol=1e-5)
        seen.append(skipped)
    assert seen[0] != seen[1], "or it does not matter whose mean it is"


@pytest.mark.parametrize("mesh", [{"mesh__data": 8}, {"mesh__data": 2, "mesh__fsdp": 4}])
def test_a_mesh_skips_as_one_device(mesh, tmp_path, spiked):
    spiked({45: 1e6, 60: np.inf, 61: -1e4})
    shape = {"mesh__indivisible": "replicate"}
    (one, there), (many, here) = (
        fit(skipping(**shape, **sizes), tmp_path / name)
        for name, sizes in (("one", {"mesh__data": 1}), ("many", mesh))
    )
    assert told(here)[0] == told(there)[0] == list(SPIKES)
    np.testing.assert_allclose(told(here)[1], told(there)[1], rtol=1e-4)
    assert many["skipped_steps"] == one["skipped_steps"] == len(SPIKES)


def test_what_would_be_skipped_for_ever_has_diverged(tmp_path, spiked):
    spiked(dict.fromkeys(range(50, 120), 1000000.0))
    with pytest.raises(Diverged, match="the last 21 steps were skipped"):
        fit(skipping(), tmp_path)


def test_without_it_nothing_of_it_is_in_a_run():
    run = make_run(exploding())
    assert run.hyper.skip is None
    assert make_run(exploding({"optim.skip": None})).id == run.id
    assert make_run(exploding({"optim.skip": 6.0})).id != run.id
