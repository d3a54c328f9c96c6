"""One run over several processes: two of four devices each compute what one of eight does, write
what it writes, and end together."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from launching import clean_environment, runs_with_checkpoint, sweep_file, wait_for, wait_for_output

from research import launch
from research.config import process_flags
from research.errors import (
    DIVERGED,
    DONE,
    HUNG,
    IO_ERROR,
    PREEMPTED,
    BadInput,
    Damaged,
    StorageError,
)
from research.launch import process_group, slots
from research.launch.process_group import divide_slot, exit_code_of_group, member_flags
from research.parallel import device_mesh, joining
from research.params import leaves_by_path
from research.runs import checkpoint, metrics_log, restoring, stored_state
from research.runs.directory import RunDirectory
from research.runs.manifest import array_digests
from research.runs.manifest_check import read_manifest
from research.runs.table import read_row, read_table
from research.sweep import work_units
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer, host_batches, run_mesh

HERE = Path(__file__).parent
# Parameters and batches lie in both processes; then each axis alone across them.
BOTH = {"data": 1, "fsdp": 4, "tensor": 2}
MESHES = {
    "fsdp x tensor": BOTH,
    "data": {"data": 8, "fsdp": 1, "tensor": 1},
    "fsdp": {"data": 1, "fsdp": 8, "tensor": 1},
    "tensor": {"data": 1, "fsdp": 1, "tensor": 2},
}
SLOW = [pytest.param(m, id=name, marks=pytest.mark.slow) for name, m in MESHES.items()]
STEPS, HALF = 12, 6  # steps of a run, and of a dispatch


def joined(task, tmp_path, count=2, each=4):
    """Run process_member.py as `count` processes of `each` devices, which all end well."""
    code, _, output = ended(task, tmp_path, count, each)
    assert code == 0, output


def ended(task, tmp_path, count=2, each=4):
    """The exit code of such a group, those of its processes, and what they printed."""
    file, log = tmp_path / "task.json", tmp_path / "members.log"
    file.write_text(json.dumps(task))
    command = [sys.executable, str(HERE / "process_member.py"), f"--task={file}"]
    slot = slots.Slot(tuple(slots.available_cores()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", str(each))
        patch.setenv("PYTHONPATH", os.getcwd())
        made = process_group.ProcessGroup(
            command, [slot] * count, [log] * count, ["JAX_NUM_CPU_DEVICES"]
        )
        try:
            deadline = time.monotonic() + 300
            while (code := made.poll()) is None and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            made.kill()
            made.wait()
    return code, made.codes, log.read_text()


@pytest.fixture(scope="module", params=SLOW)
def both(request, tiny, tmp_path_factory):
    """A run on a mesh trained by this process alone and by two; and what the two saw when they went
    on from this one's checkpoint half-way."""
    root = tmp_path_factory.mktemp("both")
    changes = {f"mesh.{axis}": n for axis, n in request.param.items()}
    changes |= {"horizon.amount": STEPS, "save.every": HALF, "save.keep": 9, "log.every": 1}
    changes |= {"loop.steps_per_dispatch": HALF}
    config, longer = tiny(changes), tiny({**changes, "horizon.amount": 1000 * STEPS})
    run = make_run(config)
    with RunDirectory(root / "one", run.id) as directory:
        train_run(run, directory)
    here, two = directory.path, RunDirectory(root / "two", run.id).path
    stopped = RunDirectory(root / "two", make_run(longer).id).path
    task = {"config": config, "longer": longer, "workdir": str(root / "two")}
    task |= {"from": str(here / "checkpoints" / str(HALF)), "out": str(root / "seen.npz")}
    joined(task, root)
    seen = dict(np.load(root / "seen.npz"))
    trainer = Trainer(run, run_mesh(run))
    places = {"one": here, "two": two, "stopped": stopped}
    return SimpleNamespace(run=run, trainer=trainer, seen=seen, **places)


def losses(path, key="train_loss"):
    return [r[key] for r in metrics_log.read_records(path) if key in r]


def state(both, path, step):
    return restoring.restore(path / "checkpoints" / str(step), both.trainer.abstract)


def flat(tree):
    return leaves_by_path(jax.device_get(tree))


def test_two_processes_get_the_losses_and_the_state_of_one(both):
    """Not to the bit: gloo adds in another order than XLA does within a process."""
    one, two = losses(both.one), losses(both.two)
    assert len(one) == len(two) == STEPS
    np.testing.assert_allclose(two, one, rtol=1e-6)
    np.testing.assert_allclose(*(losses(p, "loss") for p in (both.one, both.two)), rtol=1e-6)
    ends = [flat(state(both, path, STEPS)) for path in (both.one, both.two)]
    for name, leaf in ends[0].items():  # Adam divides by small numbers
        np.testing.assert_allclose(ends[1][name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)
    before = flat(state(both, both.one, HALF))  # of another step they are not the same
    moved = [name for name in before if name.startswith("params/")]
    assert all(np.abs(before[name] - ends[1][name]).max() > 1e-3 for name in moved)


def test_the_order_of_the_data_does_not_depend_on_the_processes(both):
    for name, rows in host_batches(both.run, 3, HALF, HALF).items():
        np.testing.assert_array_equal(both.seen[name], rows)
        assert (both.seen[name][0] != rows[1]).any()


@pytest.mark.fault(
    "R7",
    "a run of one process continues as two",
    "the same losses and state",
    "two real processes of jax.distributed",
)
def test_two_processes_resume_from_one(both):
    for name, leaf in flat(state(both, both.one, HALF)).items():
        np.testing.assert_array_equal(both.seen[f"state/{name}"], leaf, err_msg=name)
    np.testing.assert_allclose(both.seen["losses"], losses(both.one)[HALF:], rtol=1e-5)
    assert not np.allclose(both.seen["losses"], losses(both.one)[:HALF], rtol=1e-5)


@pytest.mark.fault(
    "R7",
    "a run of two processes continues as one",
    "the same losses and state",
    "two real processes of jax.distributed",
)
def test_one_process_resumes_from_two(both):
    assert stored_state.latest_intact(both.two, HALF)[0] == HALF, "a digest is not that of its file"
    here, batches = state(both, both.two, HALF), both.trainer.batches(HALF, HALF, HALF)
    _, metrics = both.trainer.steps(here, batches, HALF)
    np.testing.assert_allclose(metrics["train_loss"], losses(both.two)[HALF:], rtol=1e-5)
    assert not np.allclose(metrics["train_loss"], losses(both.two)[:HALF], rtol=1e-5)


def test_process_0_alone_writes(both):
    lines = (both.two / "metrics.jsonl").read_text().splitlines()
    assert sum('"resume"' in line for line in lines) == 1
    steps = [json.loads(line)["step"] for line in lines if "train_loss" in line]
    assert steps == list(range(STEPS))
    (held,) = (both.two / "lease").glob("*.json")
    assert json.loads(held.read_text())["pid"] == both.seen["pid"]
    assert json.loads((both.two / "launch.json").read_text())["processes"] == 2
    assert json.loads((both.two / "result.json").read_text())["status"] == "done"
    assert {p.name for p in both.two.iterdir()} == {p.name for p in both.one.iterdir()}
    assert not list((both.two / "checkpoints").glob(".saving-*"))


def test_a_stop_that_one_process_saw_saves_all_at_one_step(both):
    step = metrics_log.read_tail(both.stopped)[-1]["step"] + 1
    assert STEPS < step < 1000 * STEPS
    assert max(checkpoint.saved_steps(both.stopped)) == step, "not saved where it was stopped"
    assert read_row(both.stopped)["status"] == "unfinished"
    assert flat(state(both, both.stopped, step))["step"] == step


# Commands.


def trained(config, workdir, *flags):
    """experiments.train of the sweep file's own config, as two processes of two devices."""
    argv = [sys.executable, "-m", "experiments.train", f"--config={config}"]
    argv += [f"--workdir={workdir}", *(flags or ("--num_processes=2",))]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        argv, env={**clean_environment(), "JAX_NUM_CPU_DEVICES": "2"}, **streams
    )


def member(process, index):
    """The pid of process `index` of a launcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in children:
        with contextlib.suppress(OSError):
            if f"--process_id={index}" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return int(pid)
    raise AssertionError(f"no process {index} among {children}")


@pytest.mark.slow
def test_a_signal_to_one_process_saves_all_and_one_process_continues(corpus, tmp_path):
    config, workdir = sweep_file(tmp_path / "s.py", corpus, steps=1e6), tmp_path / "w"
    process = trained(config, workdir)
    wait_for(lambda: runs_with_checkpoint(workdir, 10), process)
    os.kill(member(process, 1), signal.SIGTERM)
    code, out = wait_for_output(process)
    assert code == PREEMPTED, out
    (run,) = workdir.glob("runs/*")
    step = metrics_log.read_tail(run)[-1]["step"] + 1
    assert max(checkpoint.saved_steps(run)) == step, "not saved where it was stopped"
    assert f"stopped and saved at step {step}" in out
    assert out.count("error: ") == 1, out
    assert "Gloo" not in out


@pytest.mark.slow
def test_two_processes_save_by_minutes_and_keep_the_best_across_a_stop(corpus, tmp_path):
    config, workdir = sweep_file(tmp_path / "s.py", corpus, steps=160.0), tmp_path / "w"
    flags = ["--num_processes=2", "--config.optim.lr=2.0", "--config.eval.every=8"]
    flags += ["--config.save.every=0", "--config.save.every_minutes=0.02", "--config.save.keep=1"]
    flags += ["--config.save.best=loss"]
    process = trained(config, workdir, *flags)
    wait_for(lambda: runs_with_checkpoint(workdir, 30), process)
    (run,) = workdir.glob("runs/*")
    os.kill(member(process, 1), signal.SIGTERM)
    assert wait_for_output(process)[0] == PREEMPTED
    code, out = wait_for_output(trained(config, workdir, *flags))
    assert code == DONE, out
    evaluated = {r["step"]: r["loss"] for r in metrics_log.read_records(run) if "loss" in r}
    best = min(evaluated, key=lambda step: evaluated[step])
    (row,) = read_table(workdir)
    assert (row["best_step"], row["best_score"]) == (best, evaluated[best])
    assert best in checkpoint.saved_steps(run)
    assert len(checkpoint.saved_steps(run)) <= 2
    assert len(set(evaluated.values())) > 10  # or any step were the best


@pytest.mark.fault(
    "R12",
    "one of the processes of a run is killed",
    "the others end, and the run can be launched again",
    "SIGKILL of process 0 or 1",
)
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_when_one_process_is_killed_the_launcher_ends_the_other(index, corpus, tmp_path):
    config, workdir = sweep_file(tmp_path / "s.py", corpus, steps=1e6), tmp_path / "w"
    process = trained(config, workdir)
    wait_for(lambda: runs_with_checkpoint(workdir, 10), process)
    other = member(process, 1 - index)
    begun = time.monotonic()
    os.kill(member(process, index), signal.SIGKILL)
    code, out = wait_for_output(process)
    assert time.monotonic() - begun < 60
    assert code == HUNG
    assert "a process of 2 was ended by SIGKILL" in out
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_without_a_launcher_the_death_of_one_process_ends_the_other(index, corpus, tmp_path):
    config, workdir = sweep_file(tmp_path / "s.py", corpus, steps=1e6), tmp_path / "w"
    address = f"127.0.0.1:{process_group.free_port()}"
    two = [trained(config, workdir, *member_flags(address, 2, i)) for i in range(2)]
    wait_for(lambda: runs_with_checkpoint(workdir, 10), two[0])
    begun = time.monotonic()
    two[index].kill()
    code, out = wait_for_output(two[1 - index])
    assert time.monotonic() - begun < 60
    assert code not in (DONE, PREEMPTED)
    assert "another task died" in out or "error: process" in out, out
    wait_for_output(two[index])


@pytest.mark.fault(
    "R12",
    "one of the processes of a run dies while a checkpoint is written or read",
    "the others end with code 77, and the run can be launched again: no disk has failed",
    "SIGKILL of process 1 as it writes, digests or restores one",
)
@pytest.mark.slow
@pytest.mark.parametrize("where", ["write", "digest", "restore"])
def test_a_process_that_dies_in_a_checkpoint_is_no_fault_of_the_disk(where, tiny, tmp_path):
    """A disk that refuses ends a whole sweep; another process that died does not."""
    changes = {f"mesh.{axis}": n for axis, n in BOTH.items()}
    config = tiny({**changes, "horizon.amount": STEPS, "save.every": HALF})
    run = make_run(config)
    with RunDirectory(tmp_path / "one", run.id) as directory:
        train_run(run, directory)
    task = {"config": config, "workdir": str(tmp_path / "two"), "dies_in": where}
    task |= {"from": str(directory.path / "checkpoints" / str(STEPS))}
    code, codes, output = ended(task, tmp_path)
    assert code == -signal.SIGKILL, output
    assert codes.get(0, HUNG) == HUNG, output
    # Process 0 may be ended with its group before it has said a word.
    assert "cannot be written" not in "".join(output.splitlines()[-1:])


@pytest.mark.slow
def test_two_processes_that_diverge_say_so_once(corpus, tmp_path):
    config, workdir = sweep_file(tmp_path / "s.py", corpus), tmp_path / "w"
    flags = ("--num_processes=2", "--config.optim.lr=1e30", "--config.optim.clip=none")
    code, out = wait_for_output(trained(config, workdir, *flags))
    assert code == DIVERGED, out
    assert out.count("error: ") == 1
    (row,) = read_table(workdir)
    assert row["status"] == "diverged"


@pytest.mark.slow
def test_an_error_common_to_all_processes_is_reported_once(corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus)
    flags = ("--num_processes=2", "--config.mesh.data=1")
    code, out = wait_for_output(trained(config, tmp_path / "w", *flags))
    assert code == 2, out
    assert out.count("error: mesh: data 1 x fsdp 1 x tensor 1 needs 1 devices") == 1, out


# What needs no second process.


def flags_of(*argv):
    parser = argparse.ArgumentParser()
    process_flags.add_flags(parser)
    return parser.parse_args(argv)


def test_flags_become_what_jax_is_told():
    assert process_flags.distributed_options(flags_of()) is None
    assert process_flags.distributed_options(flags_of("--num_processes=4")) is None  # starts them
    assert process_flags.distributed_options(flags_of("--coordinator_address=auto")) == {}
    told = member_flags("10.0.0.1:1234", 4, 3)
    given = process_flags.distributed_options(flags_of(*told))
    assert given["coordinator_address"] == "10.0.0.1:1234"
    assert (given["num_processes"], given["process_id"]) == (4, 3)
    assert "coordinator_bind_address" not in given
    on_loopback = process_flags.distributed_options(flags_of(*member_flags("127.0.0.1:1234", 4, 0)))
    assert on_loopback["coordinator_bind_address"] == "127.0.0.1:1234"
    assert member_flags("", 1, 0) == []


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--num_processes=0"], "--num_processes: 0; expected at least 1"),
        (["--process_id=0"], "--process_id: needs --coordinator_address"),
        (["--coordinator_address=a:1", "--process_id=0"], "needs --num_processes"),
        (
            ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id: 2; expected 0 to 1",
        ),
        (["--coordinator_address=a:1", "--num_processes=2"], "--process_id: None; expected 0 to 1"),
        (
            ["--coordinator_address=host", "--num_processes=2", "--process_id=1"],
            "'host'; expected HOST:PORT, or auto",
        ),
        (["--coordinator_address=auto", "--num_processes=2"], "the cluster says how many"),
    ],
)
def test_flags_that_do_not_fit_are_rejected(argv, problem):
    with pytest.raises(BadInput, match=problem):
        process_flags.distributed_options(flags_of(*argv))


def chained(error, cause):
    try:
        raise error from cause
    except Exception as caught:
        return caught


GLOO = "UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:35217"
DEAD = "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)"


@pytest.mark.parametrize(
    ("error", "of_another"),
    [
        (ValueError(GLOO), True),
        (jax.errors.JaxRuntimeError(DEAD), True),
        (chained(StorageError("cannot be written"), ValueError(GLOO)), True),
        (chained(Damaged("orbax cannot read it"), jax.errors.JaxRuntimeError(DEAD)), True),
        (chained(RuntimeError("twice"), chained(KeyError(), ValueError(GLOO))), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Disallowed transfer"), False),
        (ValueError("UNKNOWN: Error writing [tensorstore_spec='{…}']"), False),
        (chained(StorageError("x"), ValueError("DATA_LOSS: os_error_code='28'")), False),
        (chained(StorageError("x"), OSError(28, "No space left on device")), False),
        (ValueError("a size of 0"), False),
    ],
)
def test_what_a_collective_says_of_another_process_is_told_from_what_the_disk_says(
    error, of_another
):
    assert bool(joining.collective_failure(error)) == of_another


def test_the_exit_code_of_several_is_what_one_of_them_said_went_wrong():
    assert exit_code_of_group([0, 0]) == DONE
    assert exit_code_of_group([HUNG, -9]) == exit_code_of_group([-9, HUNG]) == -9
    assert exit_code_of_group([PREEMPTED, PREEMPTED]) == PREEMPTED
    assert exit_code_of_group([-6, IO_ERROR]) == IO_ERROR  # one died because the other left
    assert exit_code_of_group([HUNG, -9]) in (HUNG, -9)
    assert exit_code_of_group([0, -9]) == -9
    assert exit_code_of_group([PREEMPTED, HUNG]) == HUNG


def test_the_processes_of_a_worker_share_what_it_has():
    slot = slots.Slot((0, 1, 2, 3), ("4", "5"))
    assert divide_slot(slot, 1) == [slot]
    assert [part.gpus for part in divide_slot(slot, 2)] == [("4",), ("5",)]
    assert [part.cores for part in divide_slot(slots.Slot((0, 1)), 2)] == [(0,), (1,)]
    with pytest.raises(BadInput, match="--num_processes: 3, but there are 2 GPUs"):
        divide_slot(slot, 3)


def devices(*of):
    return [SimpleNamespace(process_index=p, platform="cpu", id=i) for i, p in enumerate(of)]


def test_each_process_gives_equally_many_devices():
    assert [d.id for d in device_mesh._take_equally(devices(0, 0, 0, 1, 1, 1), 4)] == [0, 1, 3, 4]
    assert [d.id for d in device_mesh._take_equally(devices(0, 0, 0, 0), 3)] == [0, 1, 2]
    for sizes, batch in [({"data": 3}, 6), ({"data": -1}, 1), ({"data": 1}, 4)]:
        with pytest.raises(BadInput, match="which 2 processes"):
            device_mesh.make_mesh({"fsdp": 1, "tensor": 1, **sizes}, batch, devices(0, 0, 1, 1))


def test_vmapped_runs_are_for_workers_of_one_process(tiny, tmp_path):
    points = [SimpleNamespace(run=make_run(tiny({"seed": s})), pending=True) for s in (0, 1)]
    assert len(work_units.make_units(points, tmp_path, "force")) == 1
    assert len(work_units.make_units(points, tmp_path, "auto", 2)) == 2
    with pytest.raises(BadInput, match="--grouping=force: vmapped runs need"):
        work_units.make_units(points, tmp_path, "force", 2)
    assert "in 2 processes, none vmapped" in work_units.describe_units([], "auto", 2)[0]


def test_inline_starts_the_processes_of_its_one_worker(tmp_path):
    said = "import sys; sys.stdout.write(f'{sys.argv[1:]}\\n')"  # in one piece: they share a log
    command = [sys.executable, "-c", said]
    job = launch.Job(
        command, None, tmp_path, lambda: 0, lambda: None, lambda: False, lambda: 1, num_processes=2
    )
    assert launch.EXECUTORS["inline"](job) == [0]
    lines = (tmp_path / "worker-0.log").read_text().splitlines()
    assert len(lines) == 2
    assert {"'--process_id=0'" in line for line in lines} == {True, False}
    assert all("--num_processes=2" in line for line in lines)


def test_two_processes_digest_the_arrays_as_one_does(both):
    path = both.two / "checkpoints" / str(STEPS)
    expected = array_digests(flat(state(both, both.two, STEPS)))
    assert read_manifest(path)["content"] == expected
    assert array_digests(flat(state(both, both.two, HALF))) != expected
    split = [
        x
        for x in leaves_by_path(both.trainer.abstract).values()
        if not x.sharding.is_fully_replicated
    ]
    assert bool(split) == (both.run.mesh["data"] == 1), "no array is split between the processes"
