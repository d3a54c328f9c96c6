"""The step and the loop: traced numbers, dispatches, what is recorded, divergence, stopping."""

import json
import math

import jax
import numpy as np
import pytest

from research.errors import Diverged, Preempted, StorageError
from research.parallel import device_mesh
from research.runs import metrics_log
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.training.loop import DispatchSizer, train_run
from research.training.make_run import MOST_STEPS, make_run
from research.training.trainer import Trainer, time

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
REAL = {  # a width at which XLA's choices are those of real runs
    "model.width": 64,
    "model.heads": 4,
    "model.kv_heads": 4,
    "model.hidden": 168,
    "data.context": 64,
}


@pytest.fixture
def compiles():
    """Counts backend compilations."""
    seen = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def trained(config, dispatches, sizes=ONE, room=10):
    run = make_run(config)
    made = Trainer(run, device_mesh.make_mesh(sizes, run.batch))
    state, step, losses = made.init(), 0, []
    for n in dispatches:
        state, metrics = made.steps(state, made.batches(step, n, room), n)
        losses += list(np.asarray(metrics["train_loss"])[:n])
        step += n
    return jax.device_get(state), losses


@pytest.mark.parametrize("sizes", [ONE, pytest.param(ONE | {"data": 2}, marks=pytest.mark.slow)])
def test_any_split_into_dispatches_gives_the_same_bits(tiny, sizes):
    config = tiny(REAL)
    single, losses = trained(config, [1] * 20, sizes)
    for split in ([10, 10], [7, 3, 9, 1]):
        other, same = trained(config, split, sizes)
        jax.tree.map(np.testing.assert_array_equal, single, other)
        assert losses == same
    shifted, _ = trained(tiny(REAL | {"data.seed": 1}), [10, 10], sizes)
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (single, shifted)), strict=True)
    )


def test_logging_internals_changes_no_bit_of_the_state(tiny):
    """Some are measured in the first dispatch, and none in the second."""
    plain, losses = trained(tiny(REAL | {"log.every": 15}), [10, 4])
    other, same = trained(tiny(REAL | {"log.every": 15, "log.internals": True}), [10, 4])
    jax.tree.map(np.testing.assert_array_equal, plain, other)
    assert losses == same
    assert losses != trained(tiny(REAL | {"data.seed": 1}), [10, 4])[1]


@pytest.mark.slow
def test_a_dispatch_of_one_step_programs_agrees_with_a_room_of_ten(tiny):
    """The room is another program, so equality is only to rounding."""
    _, ten = trained(tiny(REAL), [10], room=10)
    _, one = trained(tiny(REAL), [1] * 10, room=1)
    np.testing.assert_allclose(ten, one, rtol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "most", "chosen"), [(0.04, 50, 25), (1e-4, 50, 50), (3.0, 50, 1), (0.1, 1, 1)]
)
def test_a_dispatch_takes_a_second_or_all_that_fits(seconds, most, chosen, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    pace = DispatchSizer(most, True)
    for dispatch in range(6):
        if dispatch == 2:  # an evaluation, which is no step
            pace.reset_timer()
            now[0] += 1000
        n = pace.steps
        pace.record(n)
        now[0] += n * seconds
    assert pace.steps == chosen
    assert DispatchSizer(most, False).steps == most


@pytest.mark.slow
def test_a_chosen_number_of_steps_is_recorded_and_changes_nothing(tiny, tmp_path):
    def ended(name, steps):
        config = tiny(
            {"loop.steps_per_dispatch": steps, "log.every": 3, "eval.every": 7, "save.every": 8}
        )
        result, directory = fit(config, tmp_path / name)
        lines = [
            {k: v for k, v in line.items() if k != "seconds"}
            for line in metrics_log.read_records(directory.path)
        ]
        return result["steps_per_dispatch"], lines

    chosen, lines = ended("auto", "auto")
    assert 1 <= chosen <= MOST_STEPS
    most, same = ended("most", MOST_STEPS)
    assert most == MOST_STEPS
    assert lines == same
    assert [line["step"] for line in lines if "loss" in line] == [7, 12]
    assert [line["step"] for line in lines if "train_loss" in line] == [0, 3, 6, 9]


def test_rates_boundaries_decay_and_length_recompile_nothing(tiny, compiles):
    shape = {"model.hidden": 36}  # which no other test has compiled in this process
    trained(tiny(shape), [4])
    assert len(compiles)
    before = len(compiles)
    for change in (
        {"optim.lr": 0.7},
        {"optim.warmup.amount": 0.4},
        {"horizon.amount": 9.0},
        {"optim.optimizer.weight_decay": 0.3, "optim.optimizer.b2": 0.9},
        {"optim.schedule.final": 0.5, "optim.clip": 0.1},
        {"seed": 5, "data.seed": 3},
    ):
        trained(tiny(shape | change), [4])
    assert len(compiles) == before
    trained(tiny({"model.hidden": 44}), [4])  # the twin: a shape does recompile
    assert len(compiles) > before
    moved = {"optim.transfer.rule": "complete_p", "optim.transfer.width": 8}
    moved |= {"optim.transfer.depth": 1, "optim.transfer.head_size": 4, **shape}
    before = len(compiles)
    trained(tiny(moved), [4])
    assert len(compiles) > before  # a rule of transfer is another program
    before = len(compiles)
    trained(tiny(moved | {"optim.lr": 0.7, "optim.optimizer.eps": 1e-6}), [4])
    assert len(compiles) == before


def test_the_state_is_donated(tiny):
    run = make_run(tiny())
    made = Trainer(run, device_mesh.make_mesh(ONE, run.batch))
    state = made.init()
    made.steps(state, made.batches(0, 2, 2), 2)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def fit(config, workdir, **kwargs):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory, **kwargs), directory


def test_a_run_records_each_step_and_its_result(tiny, tmp_path):
    seen = []
    config = tiny({"log.every": 1, "eval.every": 5, "save.every": 4})
    result, directory = fit(config, tmp_path, on_steps=lambda *a: seen.append(a))
    metrics = metrics_log.read_records(directory.path)
    steps = [r["step"] for r in metrics if "train_loss" in r]
    assert steps == list(range(12))
    assert [r["step"] for r in metrics if "loss" in r] == [5, 10, 12]
    assert seen[-1][0] == 12
    row = read_table(tmp_path)[0]
    assert row["status"] == "done"
    assert row["loss"] == metrics[-1]["loss"] == result["loss"]
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2))
    assert row["tokens"] == 12 * 8 * 32
    assert row["flops"] == row["flops_exact_full"]
    assert json.loads((directory.path / "config.json").read_text())["model"]["width"] == 16
    assert row["versions"]["jax"] == jax.__version__
    assert [p.name for p in sorted((directory.path / "checkpoints").iterdir())] == ["12", "8"]


def test_the_loss_is_that_of_the_whole_heldout_set_whatever_the_batches(tiny):
    def evaluate(batch, sizes):
        run = make_run(tiny({"eval.batch": batch, "eval.examples": 21}))
        made = Trainer(run, device_mesh.make_mesh(sizes, run.batch))
        return made.evaluate(made.init().params)["loss"]

    reference = evaluate(21, ONE)
    for batch, data in ((1, 1), (4, 1), (8, 8), (16, 4)):
        assert evaluate(batch, ONE | {"data": data}) == pytest.approx(reference, rel=1e-6)
    run = make_run(tiny({"eval.examples": 20}))
    made = Trainer(run, device_mesh.make_mesh(ONE, run.batch))
    assert made.evaluate(made.init().params)["loss"] != pytest.approx(reference, rel=1e-6)


def test_divergence_is_recorded_and_no_checkpoint_of_it_is_kept(tiny, tmp_path):
    config = tiny({"optim.lr": 1e30, "optim.clip": None, "save.every": 4, "horizon.amount": 40.0})
    with pytest.raises(Diverged, match="the last finite loss was"):
        fit(config, tmp_path)
    row = read_table(tmp_path)[0]
    assert row["status"] == "diverged"
    assert "step" in row["reason"]
    assert not list(tmp_path.glob("runs/*/checkpoints/[4-9]*"))


def test_a_stopped_run_is_saved_and_continues_to_the_same_result(tiny, tmp_path):
    config = tiny({"horizon.amount": 30.0})
    whole, _ = fit(config, tmp_path / "whole")
    with pytest.raises(Preempted, match="saved at step 10 of 30"):
        fit(config, tmp_path / "stopped", stop=lambda: True)
    assert read_table(tmp_path / "stopped")[0]["status"] == "unfinished"
    again, _ = fit(config, tmp_path / "stopped")
    assert again["loss"] == whole["loss"]


def test_a_run_that_another_process_holds_is_rejected(tiny, tmp_path):
    config = tiny()
    run = make_run(config)
    with (
        RunDirectory(tmp_path, run.id),
        pytest.raises(StorageError, match="another process"),
    ):
        fit(config, tmp_path)
