"""Damage to what a run has written is seen before it is used, and never a reason to begin anew."""

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research.errors import Damaged, StorageError
from research.io import files
from research.runs import checkpoint, metrics_log, orbax_io, restoring
from research.runs.directory import CONTINUED, RunDirectory, read_launch
from research.runs.table import read_table
from research.training import shared_prefix
from research.training.execution import Execution
from research.training.loop import train_run
from research.training.other_execution import with_execution, with_stored_execution
from tests.faulting import bits, metrics_of


@pytest.fixture(scope="module")
def whole(victim, tmp_path_factory):
    """A directory with the steps 10 and 20 of a real run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for step in ("10", "20"):
        source = victim.whole / "checkpoints" / step
        shutil.copytree(source, folder / "checkpoints" / step)
    return folder


def every_file(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def assert_next_older(victim, run, restore=False):
    """Step 20 is in quarantine and step 10 is used."""
    if restore:
        step, state = checkpoint.restore_latest(run, victim.abstract)
        assert bits(state) == victim.bits[step]
    else:
        step = checkpoint.latest_common_step([run])
    assert step == 10
    assert (run / "quarantine" / "20").is_dir()


@pytest.mark.fault(
    "R5",
    "one bit of a checkpoint flips",
    "seen before use, the step put in quarantine, the next older one used",
    "a seeded bit of a real run's step: half of them by file, half by byte",
)
def test_every_flipped_bit_is_seen_and_the_step_before_is_used(victim, whole, tmp_path, seen):
    rng, trials = random.Random(0), 240
    names = [p.relative_to(whole) for p in every_file(whole / "checkpoints" / "20")]
    names = [name for name in names if (whole / name).stat().st_size]
    sizes = [(whole / name).stat().st_size for name in names]
    run = shutil.copytree(whole, tmp_path / "run")
    hit = set()
    for trial in range(trials):
        # Half of the trials by file, half by byte.
        name = rng.choice(names) if trial % 2 else rng.choices(names, sizes)[0]
        raw = bytearray((whole / name).read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (run / name).write_bytes(raw)
        assert_next_older(victim, run, restore=trial % 60 == 0)
        hit.add(name)
        shutil.rmtree(run / "checkpoints" / "20", ignore_errors=True)
        os.rename(run / "quarantine" / "20", run / "checkpoints" / "20")
        shutil.copyfile(whole / name, run / name)
    assert checkpoint.latest_common_step([run]) == 20, "the twin: undamaged it is used"
    assert len(hit) > len(names) * 2 // 3
    seen(trials, f"{trials} of {trials} seen before use, in {len(hit)} of {len(names)} files")


@pytest.mark.fault(
    "R4",
    "a file of a checkpoint is cut, emptied or deleted",
    "as with a flipped bit",
    "every file of a real run's step x {half, empty, deleted}; the step's directory emptied",
)
def test_every_file_that_is_cut_emptied_or_deleted_is_missed(victim, whole, tmp_path, seen):
    run, count = shutil.copytree(whole, tmp_path / "run"), 0
    damages = {
        "half": lambda p: os.truncate(p, p.stat().st_size // 2),
        "empty": lambda p: os.truncate(p, 0),
        "deleted": lambda p: p.unlink(),
    }
    for name in [p.relative_to(whole) for p in every_file(whole / "checkpoints" / "20")]:
        for what, damage in damages.items():
            if what == "deleted" or (whole / name).stat().st_size:
                damage(run / name)
                assert_next_older(victim, run)
                count += 1
                shutil.rmtree(run / "quarantine")
                shutil.copytree(whole / "checkpoints" / "20", run / "checkpoints" / "20")
    shutil.rmtree(run / "checkpoints" / "20")
    (run / "checkpoints" / "20").mkdir()
    assert_next_older(victim, run, restore=True)
    seen(count + 1, f"{count + 1} of {count + 1} seen before use")


@pytest.mark.fault(
    "R4",
    "a checkpoint is damaged after it was looked at, before it is read",
    "as with a flipped bit, also for vmapped runs",
    "its files cut, deleted, or changed to others that can be read, between the two",
)
@pytest.mark.parametrize("harm", ["cut", "deleted", "changed"])
def test_what_is_damaged_while_it_is_opened_is_seen(
    harm, victim, whole, tmp_path, seen, monkeypatch
):
    runs = [shutil.copytree(whole, tmp_path / name) for name in ("one", "other")]
    looked = restoring.checked_tree

    def harmed(path, leaves):
        looked(path, leaves)
        if path != runs[1] / "checkpoints" / "20":
            return
        if harm == "changed":  # as by a flipped bit of an array
            shutil.rmtree(path / "state")
            shutil.copytree(path.with_name("10") / "state", path / "state")
        else:
            for file in every_file(path / "state"):
                os.truncate(file, file.stat().st_size // 2) if harm == "cut" else file.unlink()

    monkeypatch.setattr(restoring, "checked_tree", harmed)
    step, states = checkpoint.restore_latest_common([(run, victim.abstract) for run in runs])
    assert step == 10
    assert all(bits(state) == victim.bits[10] for state in states)
    assert (runs[1] / "quarantine" / "20").is_dir()
    assert not (runs[0] / "quarantine").exists()
    seen(1, "the step before was used")


@pytest.mark.fault(
    "R4",
    "the disk does not let a checkpoint be read for a while",
    "exit code 74, and nothing is moved: what is whole is not given up for it",
    "errors of the reading of a file: I/O, stale handle, no descriptors, no permission, no memory",
)
@pytest.mark.parametrize("what", ["a file", "the manifest"])
def test_what_cannot_be_read_now_is_no_damage(what, victim, whole, tmp_path, seen, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "run")
    name = "digest_file" if what == "a file" else "read"
    numbers = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ENOMEM)
    for number in numbers:

        def refused(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(files, name, refused)
            with pytest.raises(StorageError, match=r"cannot be read now: .*nothing was moved"):
                checkpoint.restore_latest(run, victim.abstract)
        assert checkpoint.saved_steps(run) == [20, 10]
        assert not (run / "quarantine").exists()
    assert checkpoint.restore_latest(run, victim.abstract)[0] == 20
    seen(len(numbers), "nothing moved, and later the newest step was used")
    with monkeypatch.context() as patch:  # the twin: a file that is gone
        patch.setattr(files, name, lambda *_, **__: (run / "none").read_bytes())
        with pytest.raises(Damaged):
            checkpoint.restore_latest(run, victim.abstract)


def test_what_cannot_be_read_though_it_is_whole_ends_the_run(victim, whole, tmp_path, monkeypatch):
    run = shutil.copytree(whole, tmp_path / "run")

    class Broken:
        def restore(self, *args, **kwargs):
            raise Exception("no such driver")

    monkeypatch.setattr(orbax_io, "checkpointer", lambda: contextlib.nullcontext(Broken()))
    with pytest.raises(Damaged, match="orbax cannot read it: no such driver"):
        checkpoint.restore_latest(run, victim.abstract)
    assert checkpoint.saved_steps(run) == [20, 10], "and moves nothing"


@pytest.mark.fault(
    "R4",
    "all checkpoints of a run are damaged",
    "exit code 74 and what to do, at every launch; never trained from the start",
    "a byte of each of them changed, then two launches",
)
def test_with_all_damaged_a_run_is_never_begun_anew(victim, tmp_path, seen):
    run = victim.killed_after(tmp_path, 30)
    before = metrics_of(run)
    for step in checkpoint.saved_steps(run):
        path = max(every_file(run / "checkpoints" / str(step)), key=lambda p: p.stat().st_size)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for _ in range(2):
        child = victim.start(tmp_path)
        assert child.wait() == 74, child.said
        assert "none of them is intact" in child.said
        assert "to train this run from the start" in child.said
        assert metrics_of(run) == before
    with pytest.raises(Damaged):
        checkpoint.latest_common_step([run])
    seen(2, "both launches ended with 74 and changed nothing")


@pytest.mark.fault(
    "R4",
    "all checkpoints of a run are deleted",
    "exit code 74 and what to do, at every launch; never trained from the start",
    "checkpoints/ removed, or emptied, then a launch",
)
@pytest.mark.parametrize("harm", ["removed", "emptied"])
def test_with_all_deleted_a_run_is_never_begun_anew(harm, victim, tmp_path, seen):
    run = victim.killed_after(tmp_path, 20)
    before = metrics_of(run)
    shutil.rmtree(run / "checkpoints")
    if harm == "emptied":
        (run / "checkpoints").mkdir()
    child = victim.start(tmp_path)
    assert child.wait() == 74, child.said
    assert "none of them is there any more" in child.said
    assert metrics_of(run) == before
    (run / "saved").unlink()
    assert checkpoint.latest_common_step([run]) is None, "the twin: it never had any"
    seen(1, "the launch ended with 74 and changed nothing")


def flipped(raw, rng):
    out = bytearray(raw)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


@pytest.mark.fault(
    "R13",
    "a line of the records is torn or altered",
    "that line alone is left out, with a warning; no step appears twice",
    "one flipped bit in every line in turn, of a run that was resumed",
)
def test_a_damaged_line_is_reported_and_costs_no_other(tmp_path, caplog, seen):
    with RunDirectory(tmp_path, "r0") as run:
        for begin, end in ((0, 20), (10, 30)):
            run.append(resume=begin)
            for step in range(begin, end):
                if step % 5 == 0:
                    run.append(step=step, loss=step + begin / 100)
                run.append(step=step, train_loss=step + begin / 100)
    path, rng, trials = run.path / "metrics.jsonl", random.Random(0), 0
    raw, expected = path.read_bytes(), metrics_log.read_records(run.path)
    lines = raw.splitlines(keepends=True)
    for index, line in enumerate(lines):
        for _ in range(4):
            damaged = flipped(line[:-1], rng) + line[-1:]
            if b"\n" in damaged[:-1]:
                continue  # two lines, both damaged
            path.write_bytes(b"".join([*lines[:index], damaged, *lines[index + 1 :]]))
            caplog.clear()
            found, trials = metrics_log.read_records(run.path), trials + 1
            if json.loads(line) == metrics_log._record(damaged):
                continue
            assert f"line {index + 1} is torn or damaged" in caplog.text
            assert all(record in expected or record["step"] < 20 for record in found)
            steps = [(r["step"], "loss" not in r) for r in found]
            assert steps == sorted(set(steps)), "a step twice"
            assert len(expected) - len(found) <= 1
    seen(trials, f"{trials} flips told, no step twice, at most that record lost")


WRITER = """
import sys, time
from research.runs.directory import RunDirectory
with RunDirectory(sys.argv[1], sys.argv[2]) as run:
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(200):
        run.append(step=step, text="x" * 500)
        print(step, flush=True)
        time.sleep(0.001)
"""


@pytest.mark.fault(
    "R13",
    "writers are killed while they append",
    "no acknowledged record is lost, none is damaged, the table is made meanwhile",
    "eight writers of 200 records below one workdir, four of them killed",
)
def test_no_record_that_was_acknowledged_is_lost_when_writers_are_killed(tmp_path, seen):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    argv = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*argv, f"r{k}"], **pipes) for k in range(8)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    told = [[] for _ in writers]
    for k, writer in enumerate(writers[:4]):
        told[k] = [int(writer.stdout.readline()) for _ in range(20 + 30 * k)]
        writer.kill()
    read_table(tmp_path)
    for k, writer in enumerate(writers):
        told[k] += [int(line) for line in writer.stdout]
        writer.wait()
        writer.stdin.close()
        writer.stdout.close()
    for k in range(8):
        raw = (tmp_path / "runs" / f"r{k}" / "metrics.jsonl").read_bytes()
        found = [r["step"] for r in metrics_log.read_records(tmp_path / "runs" / f"r{k}")]
        assert found[: len(told[k])] == told[k]
        assert len(found) - len(told[k]) <= 1
        assert raw.count(b"\n") == len(found), "a torn line"
    assert [len(t) for t in told[4:]] == [200] * 4
    assert all(len(t) < 200 for t in told[:4])
    seen(8, f"{sum(map(len, told))} acknowledged, all there; 4 of 8 killed")


@pytest.mark.fault(
    "R13",
    "a launch.json, config.json, shared_prefix.json or continued.json is torn",
    "the run says which file and what to do; nothing is guessed",
    "each cut to its half, then a launch",
)
@pytest.mark.parametrize("name", ["launch.json", "config.json", shared_prefix.FILE, CONTINUED])
@pytest.mark.slow
def test_a_torn_document_of_a_run_is_named(name, victim, tmp_path, seen):
    run = victim.killed_after(tmp_path, 30)
    if name == shared_prefix.FILE:
        (run / name).write_text('{"run": "r", "step": 10}')
    elif name == CONTINUED:
        (run / name).write_text('{"launches": []}')
    os.truncate(run / name, (run / name).stat().st_size // 2)
    child = victim.start(tmp_path)
    assert child.wait() == 74, child.said
    assert name in child.said
    assert "remove this file" in child.said
    (run / name).unlink()
    victim.assert_ends_whole(tmp_path)
    seen(1, f"{name}: refused by name; removed, the run ended as it should")


@pytest.mark.slow
@pytest.mark.fault(
    "R13",
    "a launch.json holds something else than it should",
    "an error that names it and says what to do; no traceback",
    "its parts of wrong types, missing, or with values that no run could have",
)
def test_a_launch_that_says_what_cannot_be_is_named(victim, tmp_path, seen):
    with RunDirectory(tmp_path, "r0") as run:
        train_run(victim.run, run)
    good = json.loads((run.path / "launch.json").read_text())
    assert read_launch(run.path) == good
    bad = [
        *({**good, "mesh": mesh} for mesh in (None, 5, {}, {"data": "x"}, {"data": 1})),
        *({**good, "mesh": {"data": n, "fsdp": 1, "tensor": 1}} for n in (0, -1, 1.5, True)),
        *({**good, "execution": how} for how in (7, [], "x")),
        *({**good, "versions": what} for what in (7, [])),
        *({**good, "jax_config": what} for what in ("x", None)),
        *({**good, "members": names} for names in (5, [5], {"a": 1})),
        *({**good, "members_mesh": mesh} for mesh in (5, {}, {"runs": 0})),
        {},
    ]
    for found in bad:
        (run.path / "launch.json").write_text(json.dumps(found))
        with pytest.raises(Damaged, match=r"launch.json: \w+ is .*remove this file"):
            read_launch(run.path)
    how = good["execution"]
    odd = [{"grad_accumulation": 3}, {"grad_accumulation": "2"}, {"chunk": "x"}, {"chunk": -1}]
    odd += [{"remat": "some"}, {"remat": None}, {"unroll": -1}, {"unroll": True}, {"else": 1}]
    for execution in ({}, *(how | changes for changes in odd)):
        with pytest.raises(Damaged, match=r"launch.json: execution: .*remove this file"):
            with_stored_execution(victim.run, {**good, "execution": execution}, run.path)
    assert with_stored_execution(victim.run, good, run.path) == victim.run
    missing = {key: value for key, value in good.items() if key != "execution"}
    with pytest.raises(Damaged, match=r"launch.json: has no key execution.*remove this file"):
        with_stored_execution(victim.run, missing, run.path)
    with pytest.raises(ValueError, match="3 does not divide a batch of"):
        with_execution(victim.run, Execution(**how | {"grad_accumulation": 3}))
    seen(len(bad) + 11, "each refused by name")


COMPUTE = """
import sys
import jax, jax.numpy as jnp
from research.parallel import compile_cache
compile_cache.enable_compile_cache()
x = jnp.arange(64.0).reshape(8, 8)
print([float(jax.jit(lambda x, k=k: jnp.tanh(x @ x / 10**k).sum())(x)) for k in range(4, 7)])
"""


@pytest.mark.slow
@pytest.mark.fault(
    "R20",
    "the cache of compiled programs is damaged",
    "a warning and a new compilation, the same values",
    "all entries cut, emptied, random, or with one flipped bit",
)
def test_a_damaged_compile_cache_changes_no_value(tmp_path, seen):
    ours = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    ours |= {"ISOFLOP_CACHE": str(tmp_path)}

    def compute():
        argv = [sys.executable, "-c", COMPUTE]
        out = subprocess.run(argv, env=ours, capture_output=True, text=True, check=True)
        return out.stdout, out.stderr

    expected, _ = compute()
    assert compute() == (expected, ""), "the twin: undamaged it says nothing"
    rng = random.Random(0)
    damages = {
        "cut": lambda raw: raw[: len(raw) // 2],
        "emptied": lambda raw: b"",
        "random": lambda raw: rng.randbytes(len(raw)),
        **{f"flipped {k}": lambda raw: flipped(raw, rng) for k in range(12)},
    }
    warned = 0
    for damage in damages.values():
        entries = [p for p in Path(tmp_path).rglob("*") if p.is_file() and "atime" not in p.name]
        assert entries
        kept = {path: path.read_bytes() for path in entries}
        for path, raw in kept.items():
            path.write_bytes(damage(raw))
        found, said = compute()
        assert found == expected
        warned += "cache" in said
        for path, raw in kept.items():
            path.write_bytes(raw)
    seen(len(damages), f"the same values in {len(damages)} of {len(damages)}, told in {warned}")
