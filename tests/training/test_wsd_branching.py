"""A run that begins from another's checkpoint ends bit for bit as one trained from its start."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from research.errors import Preempted
from research.parallel import device_mesh
from research.runs import checkpoint, metrics_log, restoring
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.training import schedules, shared_prefix, wsd_branching
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer

TWO = {"data": 2, "fsdp": 1, "tensor": 1}
WSD = {
    "optim.schedule.name": "wsd",
    "optim.schedule.decay": 0.35,
    "optim.schedule.final": 0.05,
    "optim.warmup.unit": "steps",
    "optim.warmup.amount": 3.0,
    "mesh.data": 2,
    "log.every": 1,
    "eval.every": 3,
    "save.keep": 1,
}


def fit(run, workdir, **more):
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory, **more), directory.path


def final_state(run, path):
    step, state = checkpoint.restore_latest(
        path, Trainer(run, device_mesh.make_mesh(TWO, run.batch)).abstract
    )
    assert step == run.steps
    return jax.device_get(state)


def without_clock(path):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in metrics_log.read_records(path)]


def of_meaning(result):
    spent = {
        "seconds",
        "device_seconds",
        "shared_prefix",
        "shared_tokens",
        "shared_flops",
        "flops_spent",
    }
    return {k: v for k, v in result.items() if k not in spent}


@pytest.fixture(scope="module")
def runs(tiny):
    """A short and a long run of the same numbers."""
    return [make_run(tiny({**WSD, "horizon.amount": steps})) for steps in (14.0, 23.0)]


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory):
    return fit(runs[1], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def short(runs, tmp_path_factory):
    """The short run's directory, with the checkpoint before its decay and the one after that."""
    steps = wsd_branching.steps_before_decay(runs[0])
    assert steps == 9  # which is evaluated, too
    return fit(runs[0], tmp_path_factory.mktemp("short"), kept_steps=(steps, steps + 1))[1]


@pytest.fixture
def workdir(short, tmp_path):
    shutil.copytree(short, tmp_path / "runs" / short.name)
    return tmp_path


def test_a_run_from_a_shared_prefix_equals_the_run_trained_from_scratch(
    runs, alone, short, workdir
):
    steps = wsd_branching.steps_before_decay(runs[0])
    seen = []
    branched, path = fit(
        runs[1],
        workdir,
        prefixes=[shared_prefix.SharedPrefix(workdir / "runs" / short.name, steps)],
        on_steps=lambda step, loss: seen.append(step),
    )
    assert min(seen) > steps  # it did not take the steps before
    whole, whole_path = alone
    jax.tree.map(
        np.testing.assert_array_equal, *(final_state(runs[1], p) for p in (path, whole_path))
    )
    assert of_meaning(branched) == of_meaning(whole)
    assert without_clock(path) == without_clock(whole_path)
    assert branched["shared_prefix"] == runs[0].id
    assert branched["shared_tokens"] == steps * runs[1].tokens_per_step
    assert branched["shared_flops"] == pytest.approx(whole["flops"] * steps / 23)
    assert branched["flops_spent"] + branched["shared_flops"] == pytest.approx(branched["flops"])
    assert whole["flops_spent"] == whole["flops"] == branched["flops"]
    row = next(r for r in read_table(workdir) if r["run"] == runs[1].id)
    assert (row["flops"], row["flops_spent"]) == (branched["flops"], branched["flops_spent"])
    assert (path / "config.json").read_bytes() == (whole_path / "config.json").read_bytes()
    # The seconds are its own: none of those that its prefix took.
    shared = [r["seconds"] for r in metrics_log.read_records(path) if r["step"] < steps]
    assert set(shared) == {0.0}


def test_a_prefix_one_step_too_long_is_detected(runs, alone, short, workdir):
    late = wsd_branching.steps_before_decay(runs[0]) + 1
    _, path = fit(
        runs[1], workdir, prefixes=[shared_prefix.SharedPrefix(workdir / "runs" / short.name, late)]
    )
    here, whole = (final_state(runs[1], p) for p in (path, alone[1]))
    pairs = zip(*map(jax.tree.leaves, (here.params, whole.params)), strict=True)
    assert any((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("harm", ["missing", "damaged", "meanwhile", "other devices", "other code"])
def test_without_a_usable_prefix_a_run_is_trained_from_scratch(
    harm, runs, alone, short, workdir, monkeypatch
):
    steps = wsd_branching.steps_before_decay(runs[0])
    place = workdir / "runs" / short.name
    if harm == "missing":
        shutil.rmtree(place / "checkpoints" / str(steps))
    elif harm == "meanwhile":  # after it was looked at
        looked = restoring.checked_tree

        def harmed(path, leaves):
            looked(path, leaves)
            shutil.rmtree(path / "state")

        monkeypatch.setattr(restoring, "checked_tree", harmed)
    elif harm == "damaged":
        files = (place / "checkpoints" / str(steps)).rglob("d/*")
        victim = max(files, key=lambda p: p.stat().st_size)
        raw = victim.read_bytes()
        victim.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        key, other = ('"code": "', "0") if harm == "other code" else ('"cores": ', "1")
        described = (place / "launch.json").read_text()
        assert key in described
        (place / "launch.json").write_text(described.replace(key, key + other))
    seen = []
    result, path = fit(
        runs[1],
        workdir,
        prefixes=[shared_prefix.SharedPrefix(place, steps)],
        on_steps=lambda step, loss: seen.append(step),
    )
    assert min(seen) <= 10
    assert of_meaning(result) == of_meaning(alone[0])
    assert result["flops_spent"] == result["flops"]
    assert "shared_prefix" not in result
    assert without_clock(path) == without_clock(alone[1])


def test_a_stopped_run_from_a_shared_prefix_resumes_and_records_its_prefix(
    runs, alone, short, workdir
):
    prefixes = [
        shared_prefix.SharedPrefix(
            workdir / "runs" / short.name, wsd_branching.steps_before_decay(runs[0])
        )
    ]
    with pytest.raises(Preempted, match="saved at step 1"):
        fit(runs[1], workdir, prefixes=prefixes, stop=lambda: True)
    shutil.rmtree(prefixes[0].path)  # it has what it needs
    result, path = fit(runs[1], workdir, prefixes=prefixes)
    assert of_meaning(result) == of_meaning(alone[0])
    assert result["shared_prefix"] == runs[0].id
    assert without_clock(path) == without_clock(alone[1])


def test_a_run_from_a_prefix_killed_before_its_first_checkpoint_shows_every_step_once(
    runs, alone, short, workdir, monkeypatch
):
    prefixes = [
        shared_prefix.SharedPrefix(
            workdir / "runs" / short.name, wsd_branching.steps_before_decay(runs[0])
        )
    ]
    monkeypatch.setattr(Trainer, "steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(runs[1], workdir, prefixes=prefixes)
    monkeypatch.undo()
    result, path = fit(runs[1], workdir, prefixes=prefixes)
    assert without_clock(path) == without_clock(alone[1])
    assert result["shared_tokens"] > 0
    # The same, when what it began from is gone the second time.
    shutil.rmtree(path)
    monkeypatch.setattr(Trainer, "steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(runs[1], workdir, prefixes=prefixes)
    monkeypatch.undo()
    result, path = fit(runs[1], workdir)
    assert without_clock(path) == without_clock(alone[1])
    assert "shared_prefix" not in result


def test_checkpoints_that_are_prefixes_are_kept_until_they_are_pruned(runs, short, workdir):
    steps = wsd_branching.steps_before_decay(runs[0])
    place = workdir / "runs" / short.name
    assert checkpoint.saved_steps(place) == [14, steps + 1, steps]
    checkpoint.prune(place, 1)
    assert checkpoint.saved_steps(place) == [14]


@pytest.mark.parametrize("decay", [0.1, 0.2, 0.35, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("total", [5, 23, 100, 997, 12345])
def test_the_rates_before_the_decay_are_those_of_every_longer_run(runs, decay, total):
    def numbers(total):
        schedule = {"decay": np.float32(decay), "final": np.float32(0.05)}
        return runs[0].hyper._replace(total=np.float32(total), schedule=schedule)

    def rates(steps, total):
        hyper = numbers(total)
        peak = hyper.lr, hyper.warmup, hyper.total, hyper.schedule
        return np.asarray(schedules.learning_rate(runs[0].schedule, np.asarray(steps), *peak))

    run = dataclasses.replace(runs[0], steps=total, hyper=numbers(total))
    steps = wsd_branching.steps_before_decay(run)
    assert 0 <= steps < total
    for longer in (total + 1, 2 * total, 8 * total):
        both = rates(range(total), total) == rates(range(total), longer)
        assert both[:steps].all()
        assert not both[steps + 1 :].any()  # a tie may cost one step, no more
        assert (
            wsd_branching.steps_before_decay(
                dataclasses.replace(run, steps=longer, hyper=numbers(longer))
            )
            >= steps
        )


def test_other_schedules_have_no_shared_prefix(tiny):
    assert wsd_branching.steps_before_decay(make_run(tiny())) == 0
