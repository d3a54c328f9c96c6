"""Leases: one holder at a time, whoever dies, wherever it ran, whatever the clocks say."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from research.errors import Held
from research.runs import checkpoint, lease
from research.runs.directory import RunDirectory

ROUNDS = 12

RACER = """
import sys, time
from pathlib import Path
from research.runs import lease
from research.errors import Held
root, me, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(root / f"ready-{me}").touch()
held = []
for i in range(rounds):
    while not (root / f"go-{i}").exists():
        time.sleep(0.0005)
    try:
        held.append(lease.acquire(root / f"run-{i}" / "lease"))
        word = "won"
    except Held:
        word = "held"
    (root / f"{word}-{i}-{me}").touch()
while not (root / "end").exists():
    time.sleep(0.01)
"""

HOLDER = """
import sys, time
from research.runs.directory import RunDirectory
with RunDirectory(sys.argv[1], "r0") as run:
    run.append(step=0)
    print("held", flush=True)
    time.sleep(600)
"""


def plant(place, number=1, **changes):
    """A lease as another process would have written it; by default of another host."""
    place.mkdir(parents=True, exist_ok=True)
    content = {"token": "t", "host": "elsewhere", "boot": "b", "pid": 1, "born": "1", "beat": 0}
    content |= {"deaths": 0, "released": False, **changes}
    (place / f"{number}.json").write_text(json.dumps(content))


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; waiting moves it too."""
    now = [1000.0]
    monkeypatch.setattr(lease, "clock", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(lease.time, "sleep", move)
    return move


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.fault(
    "R9",
    "eight takers of one run at the same instant",
    "exactly one wins, of a free run and of that of a dead process",
    "eight processes released by one file, many rounds",
)
def test_of_eight_that_start_at_once_exactly_one_wins(tmp_path):
    """Half of the rounds are over a run that nobody held, half over that of a dead process."""
    pid = dead_pid()
    for i in range(1, ROUNDS, 2):
        plant(tmp_path / f"run-{i}" / "lease", **lease._host_identity(), pid=pid, born="1")
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), str(k), str(ROUNDS)])
        for k in range(8)
    ]
    try:
        until(lambda: len(list(tmp_path.glob("ready-*"))) == 8)
        for i in range(ROUNDS):
            (tmp_path / f"go-{i}").touch()
            until(lambda i=i: len(list(tmp_path.glob(f"*-{i}-*"))) == 8)
            assert len(list(tmp_path.glob(f"won-{i}-*"))) == 1
    finally:
        (tmp_path / "end").touch()
        for racer in racers:
            racer.wait()


def unlocked(path):
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.fault(
    "R9",
    "the holder of a run is killed",
    "the next taker has the run at once",
    "SIGKILL, reaped or a zombie",
)
@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "a zombie"])
def test_a_killed_holder_is_followed_at_once(tmp_path, reaped):
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(Held, match=f"process {process.pid} on"):
                RunDirectory(tmp_path, "r0").__enter__()
        finally:
            process.send_signal(signal.SIGKILL)
        if reaped:
            process.wait()
        until(lambda: unlocked(tmp_path / "runs" / "r0" / ".lock"))  # its last thread is gone
        with RunDirectory(tmp_path, "r0") as run:
            holder = lease.read_holder(run.path / "lease")
            assert (holder.number, holder.content["deaths"]) == (2, 1)
    with RunDirectory(tmp_path, "r0") as run:
        assert lease.read_holder(run.path / "lease").content["deaths"] == 0


def test_a_process_that_has_got_the_number_of_a_dead_one_is_not_the_holder(tmp_path):
    plant(tmp_path / "a", **lease._host_identity(), pid=os.getpid(), born="1")
    lease.acquire(tmp_path / "a").release()
    plant(
        tmp_path / "b",
        **lease._host_identity(),
        pid=os.getpid(),
        born=lease._start_time(os.getpid()),
    )
    with pytest.raises(Held):
        lease.acquire(tmp_path / "b")


def test_a_holder_elsewhere_is_respected_while_it_beats_and_followed_when_silent(tmp_path, clock):
    for beat in range(5):
        plant(tmp_path, beat=beat)
        with pytest.raises(Held, match="process 1 on elsewhere"):
            lease.acquire(tmp_path)
        clock(lease.TIMEOUT - 1)
    with pytest.raises(Held, match="59 s"):
        lease.acquire(tmp_path)
    clock(2)
    lease.acquire(tmp_path).release()


def test_patience_watches_a_holder_elsewhere_until_it_proves_dead(tmp_path, clock):
    plant(tmp_path)
    with pytest.raises(Held):
        lease.acquire(tmp_path, patience=lease.TIMEOUT - 5)
    lease.acquire(tmp_path, patience=10).release()
    lease.acquire(tmp_path, patience=0).release()


def test_a_file_that_is_no_lease_is_respected_for_a_while(tmp_path, clock):
    (tmp_path / "1.json").write_text("")
    with pytest.raises(Held, match="unknown host"):
        lease.acquire(tmp_path)
    clock(lease.TIMEOUT + 1)
    lease.acquire(tmp_path).release()


@pytest.mark.fault(
    "R22",
    "the clock jumps while a lease is watched",
    "a lease ends by the observer's own steady clock alone",
    "time.time and dates of files moved by 1e6 s",
)
def test_no_jump_of_the_wall_clock_ends_or_keeps_a_lease(tmp_path, clock, monkeypatch):
    plant(tmp_path)
    for jump in (-1e6, 1e6):
        monkeypatch.setattr(lease.time, "time", lambda jump=jump: 1.7e9 + jump)
        os.utime(tmp_path / "1.json", (1.7e9 - jump, 1.7e9 - jump))
        with pytest.raises(Held):
            lease.acquire(tmp_path)
    clock(lease.TIMEOUT + 1)
    lease.acquire(tmp_path).release()


def test_a_heartbeat_is_written_while_the_lease_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    held = lease.acquire(tmp_path)
    until(lambda: lease.read_holder(tmp_path).content["beat"] > 2)
    held.release()
    last = lease.read_holder(tmp_path)
    assert not last.alive
    assert last.deaths == 0


def taken_over(run):
    """What a taker on another host leaves, whose observer's clock has run out."""
    plant(run.path / "lease", number=run._lease.number + 1)


def lost(run):
    """The seconds have passed in which a look at the files is believed."""
    run._lease._seen_at -= 2 * lease.RECHECK


WRITES = {
    "append": lambda run: run.append(step=1),
    "finish": lambda run: run.write_result({"status": "done"}),
    "fail": lambda run: run.record_failure("reason"),
    "once": lambda run: run.write_once("config.json", {}),
    "text": lambda run: run.write_text_once("tokenizer.json", "{}"),
    "save": lambda run: checkpoint.save(run.path, 1, {"x": np.ones(3)}, 1, run.check_lease),
}


def everything(path):
    kept = [p for p in path.rglob("*") if p.is_file() and p.parent.name != "lease"]
    return {p: p.read_bytes() for p in kept}


@pytest.mark.fault(
    "R9",
    "a holder thought dead comes back",
    "it writes nothing: every write asks for the lease first",
    "a higher lease planted beside its own, then each kind of write",
)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_holder_that_was_taken_over_writes_nothing_more(tmp_path, write):
    with RunDirectory(tmp_path, "r0") as run:
        run.append(step=0)
        taken_over(run)
        lost(run)
        before = everything(run.path)
        with pytest.raises(Held, match="taken over by process 1 on elsewhere"):
            write(run)
        assert everything(run.path) == before
        new = run.path / "lease" / "2.json"
        content = new.read_text()
    assert new.read_text() == content, "the one that was taken over released its successor's lease"


def test_a_holder_that_comes_back_after_its_successor_has_ended_writes_nothing(tmp_path):
    with RunDirectory(tmp_path, "r0") as run:
        taken_over(run)
        (run.path / "lease" / "1.json").unlink()
        plant(run.path / "lease", number=2, released=True)
        with pytest.raises(Held):
            run.check_lease()


def test_a_run_whose_directory_was_removed_is_not_made_again(tmp_path):
    with RunDirectory(tmp_path, "r0") as run:
        for path in sorted((tmp_path / "runs").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        with pytest.raises(Held, match="gone"):
            run.write_result({"status": "done"})
    assert not list((tmp_path / "runs").rglob("*"))


def test_without_links_numbers_are_exclusive_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    held = lease.acquire(tmp_path)
    assert not lease.Lease(tmp_path, 1, 0).claim()
    held.check_now()
    held.release()
    lease.acquire(tmp_path).release()


def test_a_number_that_was_surpassed_meanwhile_is_not_won(tmp_path):
    plant(tmp_path, number=3)
    assert not lease.Lease(tmp_path, 2, 0).claim()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.json"]


@pytest.mark.fault(
    "R27",
    "a workdir is copied while it is trained",
    "the copy is nobody's and can be resumed at once; the original stays held, also when moved",
    "a held folder copied, then moved; one whose numbers changed under the same name",
)
def test_a_copy_of_a_held_folder_is_nobodys(tmp_path, seen):
    held = lease.acquire(tmp_path / "run" / "lease")
    with pytest.raises(Held):
        lease.acquire(tmp_path / "run" / "lease")
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy")) / "lease"
    holder = lease.read_holder(copy)
    assert holder.copied
    assert not holder.alive
    assert holder.deaths == 0, "nobody died"
    lease.acquire(copy).release()
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(Held):
        lease.acquire(tmp_path / "moved" / "lease")
    (tmp_path / "moved").rename(tmp_path / "run")
    held.check_now()
    held.release()
    born = lease._start_time(os.getpid())
    again = tmp_path / "numbered anew"
    mine = {**lease._host_identity(), "pid": os.getpid(), "born": born}
    plant(again, **mine, folder=[os.path.realpath(again), 1])
    with pytest.raises(Held):  # by its name, on a file system that numbers anew
        lease.acquire(again)
    for odd in (None, "x", [1], [1, 2, 3]):
        plant(again, 2, **mine, folder=odd)
        with pytest.raises(Held):
            lease.acquire(again)
    seen(2, "the copy taken at once, the others respected")
