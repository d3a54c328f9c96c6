"""A disk that is full, or whose power is cut, costs at most what was not saved yet."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from research.errors import StorageError
from research.io import files
from research.runs import checkpoint, metrics_log, stored_state
from research.runs.directory import RunDirectory
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.vmapped_runs import train_vmapped
from tests.faulting import Child, Zygote

SIZE = 8  # MB of the small disk
MOUNT = 'mkdir -p "$0" && mount -t tmpfs -o size={size}m none "$0" && exec "$@"'


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A tmpfs of SIZE MB, mounted where only a zygote sees it, and that zygote: (its path for the
    zygote's children, its path for the test, zygote)."""
    there = tmp_path_factory.mktemp("disk") / "mounted"
    allowed = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT.format(size=SIZE), str(there), "true"],
        capture_output=True,
    )
    if allowed.returncode:
        pytest.skip("a tmpfs may not be mounted here")
    before = ["unshare", "-rm", "sh", "-c", MOUNT.format(size=SIZE), str(there)]
    made = Zygote(before=before)
    yield there, Path(f"/proc/{made.process.pid}/root{there}"), made
    made.close()


FILL = """
import os
from research.runs import checkpoint
real, ballast = checkpoint.save, {there!r} + "/ballast"
def save(directory, step, *rest):
    if step == 40:
        with open(ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(65536)): pass
            except OSError: pass
        print("full", flush=True)
    if step == {free} and os.path.exists(ballast):
        os.unlink(ballast)
    return real(directory, step, *rest)
checkpoint.save = save
"""


@pytest.mark.fault(
    "R6",
    "the disk is full, `save.on_error` is stop",
    "that step's save raises, exit code 74; nothing half-made, older steps whole; resumes later",
    "a tmpfs of 8 MB, filled before the save of step 40",
)
def test_a_full_disk_ends_a_run_at_the_save_that_it_refuses(victim, small_disk, seen):
    there, outside, zygote = small_disk
    folder, before = outside / "stop", FILL.format(there=str(there), free=-1)
    folder.mkdir()
    child = start(zygote, victim, there / "stop", folder, before)
    assert child.wait() == 74, child.said
    assert "checkpoints/40: the checkpoint cannot be written" in child.said
    assert victim.assert_sound(folder) == 30
    victim.assert_clean(folder)
    assert (outside / "ballast").stat().st_size > 4e6
    child = start(zygote, victim, there / "stop", folder)  # still full
    assert child.wait() == 74, child.said
    assert victim.assert_sound(folder) == 30
    (outside / "ballast").unlink()
    child = start(zygote, victim, there / "stop", folder)
    assert child.wait() == 0, child.said
    assert victim.assert_sound(folder) == victim.run.steps
    shutil.rmtree(folder)
    seen(2, "step 40 said so with code 74, 30 stayed whole, nothing was left; then to the same end")


@pytest.mark.fault(
    "R6",
    "the disk is full for a while, `save.on_error` is continue",
    "the run is told and continues; it ends with the same bits",
    "the same, with room again before the save of step 60; the records lie elsewhere",
)
@pytest.mark.slow
def test_a_run_may_continue_without_a_checkpoint(victim, small_disk, tmp_path, seen):
    there, outside, zygote = small_disk
    folder = outside / "continue"
    config = {**victim.config, "save": {**victim.config["save"], "on_error": "continue"}}
    files.write_json(tmp_path / "config.json", config)
    before = FILL.format(there=str(there), free=60) + ELSEWHERE.format(place=str(tmp_path / "m"))
    folder.mkdir()
    child = start(zygote, victim, there / "continue", folder, before, tmp_path / "config.json")
    assert child.wait() == 0, child.said
    assert "continues without it" in child.said
    shutil.copyfile(tmp_path / "m", victim.path(folder) / "metrics.jsonl")
    assert victim.assert_sound(folder) == victim.run.steps
    victim.assert_clean(folder)
    shutil.rmtree(folder)
    seen(1, "two saves refused and told, the end as undisturbed")


ELSEWHERE = """
from research.runs import metrics_log as journal
journal.open_for_append = lambda path, real=journal.open_for_append: real(type(path)({place!r}))
"""


def start(zygote, victim, place, folder, before="", config=None):
    """A launch below `place`, which is `folder` for us; its log lies beside it."""
    log = victim.file.parent / f"{folder.name}.log"
    log.touch()
    argv = [f"--config={config or victim.file}", f"--workdir={place}"]
    asked = {"module": "experiments.train", "argv": argv, "log": str(log), "before": before}
    return Child(zygote, zygote.ask(**asked), log)


@pytest.mark.fault(
    "R6",
    "a write is refused",
    "as on a full disk, for checkpoints, documents and records",
    "RLIMIT_FSIZE lowered below what is to be written",
)
def test_a_write_that_is_rejected_leaves_nothing_half_written(tmp_path, seen):
    code = LIMITED.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["checkpoint", "document", "record"]
    assert checkpoint.saved_steps(tmp_path / "runs" / "r0") == [1]
    assert not list((tmp_path / "runs" / "r0").rglob("*.tmp"))
    assert not list((tmp_path / "runs" / "r0" / "checkpoints").glob(".*"))
    assert (tmp_path / "runs/r0/metrics.jsonl").read_bytes().endswith(b"}\n")
    seen(3, "each raised by the write itself; nothing half-written")


LIMITED = """
import resource, signal
import numpy as np
from research.io import files
from research.runs import checkpoint
from research.runs import directory as records
from research.errors import StorageError
from research.training.make_run import make_run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {{"step": np.int32(1), "params": {{"w": np.random.default_rng(0).normal(size=(500, 500))}}}}
with records.RunDirectory({folder!r}, "r0") as run:
    checkpoint.save(run.path, 1, state, 2, run.check_lease)
    run.append(step=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for name, write in (
        ("checkpoint", lambda: checkpoint.save(run.path, 2, state, 2, run.check_lease)),
        ("document", lambda: files.write_json(run.path / "d.json", {{"a": "x" * 200_000}})),
        ("record", lambda: run.append(step=1, text="x" * 200_000)),
    ):
        try:
            write()
        except StorageError:
            print(name)
    run.append(step=2)
"""


@pytest.mark.fault(
    "R6",
    "a disk with less room than a checkpoint needs",
    "refused before anything is compiled, with the bytes that are needed and there",
    "the figure of free bytes replaced by a smaller one",
)
def test_a_disk_without_room_is_rejected_beforehand(tmp_path, monkeypatch, seen):
    state = {"w": np.zeros((1000, 1000), np.float32)}
    checkpoint.check_disk_space(tmp_path, state)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7_000_000))
    with pytest.raises(StorageError, match="takes 4,000,000 bytes and needs 8,000,000"):
        checkpoint.check_disk_space(tmp_path, state)
    (tmp_path / "checkpoints" / "1").mkdir()
    checkpoint.check_disk_space(tmp_path, state)  # there is one already, so one more is enough
    seen(1, "refused")


def test_what_is_still_written_is_removed_too(tmp_path, monkeypatch):
    """As orbax's threads write on for a moment after the save that the disk refused."""
    folder, real, tries = tmp_path / ".saving-1-ab", checkpoint._remove, []

    def removed(path):
        real(path)
        tries.append(path)
        if len(tries) < 3:
            path.mkdir()
            (path / "late").touch()

    folder.mkdir()
    monkeypatch.setattr(checkpoint, "_remove", removed)
    checkpoint.remove_unfinished(folder)
    assert not folder.exists()
    assert len(tries) == 3


def test_vmapped_runs_need_room_for_all_of_them(tmp_path, monkeypatch):
    state = {"w": np.zeros((1000, 1000), np.float32)}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000_000))
    checkpoint.check_disk_space(tmp_path, state, members=2)
    with pytest.raises(StorageError, match="takes 12,000,000 bytes and needs 24,000,000"):
        checkpoint.check_disk_space(tmp_path, state, members=3)


def test_names_of_new_directories_and_records_survive_a_power_loss(tmp_path, monkeypatch):
    synced, real = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(Path(path)), real(path)))
    files.make_directory(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    files.make_directory(tmp_path / "a" / "b")
    assert len(synced) == 2, "what is there is synced already"
    metrics_log.open_for_append(tmp_path / "a" / "b" / "metrics.jsonl").close()
    metrics_log.open_for_append(tmp_path / "a" / "b" / "metrics.jsonl").close()
    assert synced[2:] == [tmp_path / "a" / "b"]


class Journal:
    """Records what makes a change survive a power loss, in order: ("sync", path, content or None)
    of a file or a directory, ("rename", from, to), ("remove", path); paths relative to `root`."""

    CHANGES = ("rename", "replace", "unlink", "rmdir")

    def __init__(self, root, monkeypatch):
        self.root, self.entries = root.resolve(), []
        real = {name: getattr(os, name) for name in ("fsync", *self.CHANGES)}

        def fsync(descriptor):
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.note("sync", path, path.read_bytes() if path.is_file() else None)
            return real["fsync"](descriptor)

        def rename(old, new, **_):
            self.note("rename", Path(old), self.relative(Path(new)))
            return real["replace"](old, new)

        def remove(name):
            def call(path, *, dir_fd=None):
                folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
                self.note("remove", Path(folder) / path)
                return real[name](path, dir_fd=dir_fd)

            return call

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(os, "replace", rename)
        for name in ("unlink", "rmdir"):
            monkeypatch.setattr(os, name, remove(name))

    def relative(self, path):
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None

    def note(self, kind, path, more=None):
        if self.relative(path) is not None:
            self.entries.append((kind, self.relative(path), more))


def under(path, folder):
    return path == folder or path.startswith(f"{folder}/")


def survivors(begun, entries, kept):
    """The files, by path, after a power loss: what was never synced is empty; names that were
    changed since their directory was synced are changed only if `kept`."""
    disk, waiting = dict(begun), []

    def apply(kind, path, more):
        for name in [name for name in disk if under(name, path)]:
            content = disk.pop(name)
            if kind == "rename":
                disk[more + name.removeprefix(path)] = content

    for kind, path, more in entries:
        if kind == "sync" and more is not None:
            disk[path] = more
        elif kind == "sync":
            for entry in [e for e in waiting if (os.path.dirname(e[1]) or ".") == path]:
                waiting.remove(entry)
                apply(*entry)
        else:
            waiting.append((kind, path, more))
    for entry in waiting if kept else ():
        apply(*entry)
    return disk


@pytest.mark.fault(
    "R2",
    "power loss during a save",
    "a whole step at every moment: files synced, renamed, directory synced, then old ones removed",
    "fsync, rename and remove recorded; each prefix replayed with the least and most that lasts",
)
@pytest.mark.parametrize("keep", [1, 2])
def test_power_may_be_cut_at_any_moment_of_a_save(keep, tmp_path, monkeypatch, seen):
    def state(step):
        kernel = np.full((40, 40), step, np.float32)
        return {"step": np.int32(step), "params": {"w": {"kernel": kernel}}}

    run = tmp_path / "run"
    for step in range(1, keep + 1):
        checkpoint.save(run, step, state(step), keep)
    root = run / "checkpoints"
    begun = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    operations = Journal(root, monkeypatch)
    checkpoint.save(run, keep + 1, state(keep + 1), keep)
    monkeypatch.undo()
    entries = operations.entries
    renamed = next(i for i, e in enumerate(entries) if e[::2] == ("rename", str(keep + 1)))
    synced = {path for kind, path, _ in entries[:renamed] if kind == "sync"}
    written = {
        f"{entries[renamed][1]}/{p.relative_to(root / str(keep + 1)).as_posix()}"
        for p in (root / str(keep + 1)).rglob("*")
    }
    assert written <= synced
    assert entries[renamed + 1][:2] == ("sync", ".")
    assert "remove" not in [kind for kind, *_ in entries[:renamed]]
    newest = []
    for end in range(len(entries) + 1):
        for kept in (False, True):
            disk = survivors(begun, entries[:end], kept)
            newest.append(replayed(disk, tmp_path / f"{end}-{kept}", keep))
    assert {keep, keep + 1} == set(newest)
    # The twin: without the syncs of the files the rename may come first.
    unsynced = [e for e in entries if e[0] != "sync" or e[1] == "."]
    assert replayed(survivors(begun, unsynced, True), tmp_path / "twin", keep) != keep + 1
    seen(len(newest), f"a whole step at each of {len(newest)}, keeping {keep}")


def replayed(disk, folder, keep):
    """The newest step of a directory with these files, which is what it should be."""
    for name, content in disk.items():
        path = folder / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        step = checkpoint.latest_common_step([folder])
    except checkpoint.Damaged:
        return None
    if step is not None:
        kernel = stored_state.read_arrays(folder / "checkpoints" / str(step), "params")["w"][
            "kernel"
        ]
        assert (kernel == step).all()
    return step


@pytest.mark.fault(
    "R2",
    "power loss after a save",
    "the records of all steps before a checkpoint are on the disk before it is written",
    "what of metrics.jsonl was synced, at every save of one run and of vmapped runs",
)
@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_records_are_on_the_disk_before_the_checkpoint_after_them(
    grouped, tiny, tmp_path, monkeypatch, seen
):
    def saves(workdir):
        """(step, the newest step whose record would outlast a power cut) of every save."""
        run = make_run(tiny({"log.every": 1, "save.every": 10, "horizon.amount": 30.0}))
        with RunDirectory(workdir, run.id) as directory:
            found.clear()
            train_vmapped([(run, directory)], [run.id]) if grouped else train_run(run, directory)
        return list(found)

    found, synced = [], {}
    fsync, save, opened = os.fsync, checkpoint.save, metrics_log.open_for_append

    def opening(path):
        file = opened(path)
        synced.pop(os.fstat(file.fileno()).st_ino, None)  # that of a file that was deleted
        return file

    def syncing(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def saving(folder, step, *rest):
        path = folder / "metrics.jsonl"
        lasting = path.read_bytes()[: synced.get(path.stat().st_ino, 0)].splitlines()
        found.append(
            (step, max((json.loads(line).get("step", -1) for line in lasting), default=-1))
        )
        save(folder, step, *rest)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(metrics_log, "open_for_append", opening)
    assert [(step, newest >= step - 1) for step, newest in saves(tmp_path / "w")] == [
        (10, True),
        (20, True),
        (30, True),
    ]
    seen(3, "every record of a step before was synced")
    monkeypatch.setattr(RunDirectory, "sync", lambda self: None)  # the twin
    assert any(newest < step - 1 for step, newest in saves(tmp_path / "twin"))
