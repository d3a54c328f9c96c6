"""Kill workers and launchers of a sweep of chains and vmapped runs at random, launch it again until
it is done, and compare every run with an undisturbed sweep's: each trained once, bitwise equal.

  python -m tools.kill_drill --repeats=20
  python -m tools.kill_drill --hours=2         sweep after sweep, with all that FAULTS can do

With --hours a disk of its own is filled now and then, where `unshare` may mount one (Linux), is
launched on as one without locks or without syncs of directories, and the text and the code are
edited: a copy of the library trains.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from research.runs import checkpoint, lease, metrics_log, stored_state
from research.runs.manifest_check import find_damage
from research.runs.table import read_row, read_table

POINTS = 12
DISK = 384  # MB of the disk that is filled
ROOT = Path(__file__).parents[1]
EDITED = "research/models/layers.py"  # which every run imports
REFUSED = "--accept_changes"  # what the reason of a run says that other code began
# Python loads it in every process of a launch: what the disk at hand cannot be made to do.
POOR_DISK = """
import errno, fcntl, os, stat

def flock(*_):
    raise OSError(errno.ENOLCK, "no locks available")

def fsync(descriptor, whole=os.fsync):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "invalid argument")
    whole(descriptor)

lacks = os.environ.get("DRILL_DISK_LACKS", "").split()
if "locks" in lacks:
    fcntl.flock = flock
if "syncs" in lacks:
    os.fsync = fsync
"""
DISKS = ("", "locks", "syncs", "locks syncs")  # what they lack
SWEEP = """
from configs import lm_transformer
from research.config import grid

def get_config():
    config = lm_transformer.get_config()
    config.size = None
    config.model.update(width=16, depth=2, heads=2, kv_heads=2, hidden=32)
    config.data.path = {text!r}
    config.data.context = 32
    config.batch.size = 8
    config.horizon.update(unit="steps", amount={steps})
    config.eval.update(examples=16, batch=8, every=0)
    config.save.every = 25
    config.log.every = 1
    return config

def sweep(config):
    wsd = {{"name": "wsd", "decay": 0.2, "final": 0.0}}
    wsd_chain = {{f"optim.schedule.{{k}}": v for k, v in wsd.items()}}
    wsd_chain |= {{"optim.warmup.unit": "steps", "optim.warmup.amount": 5.0}}
    lengths = [{{**wsd_chain, "horizon.amount": part * {steps}}} for part in (0.5, 0.75, 1.0)]
    seeds = [{{"seed": k, "mesh.data": 1}} for k in range(3)]
    return grid.product(grid.values("model.width", [16, 24]), [*lengths, *seeds])
"""


def start(
    config: Path, workdir: Path, workers: int, lacks: str = "", accept: bool = False
) -> subprocess.Popen:
    """A launch of the sweep by the copy of the code beside `config`, on a disk that `lacks` what it
    says; with `accept` also of runs that other code began."""
    argv = [sys.executable, "-m", "experiments.sweep", f"--config={config}"]
    argv += [f"--workdir={workdir}", "--executor=local", f"--workers={workers}"]
    argv += ["--grouping=force", *(["--accept_changes"] if accept else [])]
    code = config.parent / "code"
    env = {**os.environ, "PYTHONPATH": str(code), "DRILL_DISK_LACKS": lacks}
    with open(config.parent / f"{workdir.name}.log", "ab") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log, cwd=code, env=env)


def write_drill(folder: Path, steps: int) -> Path:
    """The config of the drill, with its text and the code that trains it beside it."""
    for name in ("research", "experiments", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "code" / name, ignore=ignore)
    (folder / "code" / "sitecustomize.py").write_text(POOR_DISK)
    words = random.Random(0).choices([f"w{k:x}" for k in range(999)], k=100_000)
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(words[k : k + 10]) for k in range(0, len(words), 10)))
    config = folder / "drill.py"
    config.write_text(SWEEP.format(steps=float(steps), text=str(text)))
    return config


def lease_holder_pids(workdir: Path) -> list[int]:
    """The process ids of the workers that hold a run now."""
    held_leases = [lease.read_holder(path) for path in workdir.glob("runs/*/lease")]
    return [h.content["pid"] for h in held_leases if h and h.alive and "pid" in h.content]


class Sweep:
    """A sweep that is being disturbed. Each fault is a method that answers whether it could be."""

    def __init__(self, process: subprocess.Popen, workdir: Path, config: Path, rng: random.Random):
        self.process, self.workdir, self.config, self.rng = process, workdir, config, rng

    def kill_worker(self) -> bool:
        """SIGKILL a worker."""
        return self._signal(signal.SIGKILL)

    def kill_launcher(self) -> bool:
        """SIGKILL the launcher, which ends its workers."""
        self.process.kill()
        return True

    def terminate_launcher(self) -> bool:
        """SIGTERM the launcher: all is saved."""
        self.process.terminate()
        return True

    def hang_up_launcher(self) -> bool:
        """SIGHUP the launcher, as a terminal does that is lost: all is saved."""
        self.process.send_signal(signal.SIGHUP)
        return True

    def edit_text(self) -> bool:
        """The text is another for a while: who resumes meanwhile has another run before it."""
        if not lease_holder_pids(self.workdir):  # else the launcher may be planning by it
            return False
        path = self.config.parent / "text.txt"
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"w1 ", b"w2 "))
        time.sleep(self.rng.uniform(1, 8))
        path.write_bytes(raw)
        return True

    def pause_worker(self) -> bool:
        """SIGSTOP a worker for a while."""
        if not (at := lease_holder_pids(self.workdir)):
            return False
        pid = self.rng.choice(at)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.rng.uniform(1, 15))
            os.kill(pid, signal.SIGCONT)
        return True

    def flip_bit(self) -> bool:
        """A bit of the newest checkpoint of a run that is not done and has an older whole one."""
        return self._damage_checkpoint(
            lambda path, raw: path.write_bytes(self._with_flipped_bit(raw))
        )

    def cut_file(self) -> bool:
        """A file of such a checkpoint cut anywhere, or deleted."""

        def act(path: Path, raw: bytes) -> None:
            at = self.rng.randrange(-1, len(raw))
            path.unlink() if at < 0 else os.truncate(path, at)

        return self._damage_checkpoint(act)

    def cut_last_record(self) -> bool:
        """The last record of a run that nobody holds, where its checkpoint is older."""
        for run in self._unfinished():
            last = lease.read_holder(run / "lease")
            newest = next(iter(stored_state.intact_checkpoints(run)), (0, run))[0]
            tail = metrics_log.read_tail(run)
            if last and not last.alive and tail and tail[-1]["step"] >= newest:
                path = run / "metrics.jsonl"
                os.truncate(path, path.stat().st_size - self.rng.randrange(1, 20))
                return True
        return False

    def fill_disk(self) -> bool:
        """No byte left on the disk for a while."""
        if not os.path.ismount(self.workdir.parent):
            return False
        ballast = self.workdir.parent / "ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        time.sleep(self.rng.uniform(1, 10))
        ballast.unlink()
        return True

    def _signal(self, number: signal.Signals) -> bool:
        if not (at := lease_holder_pids(self.workdir)):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(at), number)
        return True

    def _unfinished(self) -> list[Path]:
        runs = [p for p in self.workdir.glob("runs/*") if not (p / "result.json").exists()]
        return self.rng.sample(sorted(runs), len(runs))

    def _damage_checkpoint(self, act: Callable[[Path, bytes], Any]) -> bool:
        for run in self._unfinished():
            steps = checkpoint.saved_steps(run)
            if len(steps) < 2 or find_damage(run / "checkpoints" / str(steps[1])):
                continue
            last = read_row(run).get("steps")
            with contextlib.suppress(OSError):  # it is forgotten meanwhile
                root = run / "checkpoints" / str(steps[0])
                path = self.rng.choice(sorted(p for p in root.rglob("*") if p.is_file()))
                if steps[0] != last and (raw := path.read_bytes()):
                    act(path, raw)
                    return True
        return False

    def _with_flipped_bit(self, raw: bytes) -> bytes:
        out = bytearray(raw)
        out[self.rng.randrange(len(out))] ^= 1 << self.rng.randrange(8)
        return bytes(out)


KILLS = {"kill_worker": 12, "kill_launcher": 5}  # and how often, at most, in one sweep
FAULTS = {
    **KILLS,
    "terminate_launcher": 3,
    "hang_up_launcher": 2,
    "pause_worker": 4,
    "flip_bit": 4,
    "cut_file": 4,
    "cut_last_record": 3,
    "fill_disk": 4,
    "edit_text": 3,
}
STOP = ("kill_launcher", "terminate_launcher", "hang_up_launcher")
EDITS = 2  # of the code, in one sweep


def run_disturbed(
    config: Path, workdir: Path, workers: int, rng: random.Random, most: dict[str, int]
) -> Counter:
    """Launch and disturb until a launch ends the sweep, or, undisturbed, leaves some of it undone;
    how often each fault was."""
    done: Counter = Counter()
    accept = False
    while True:
        before = done.total()
        if most is FAULTS and done["edit_code"] < EDITS and before and rng.random() < 0.3:
            done["edit_code"] += launch_edited(config, workdir, workers, done["edit_code"])
        lacks = rng.choice(DISKS) if most is FAULTS else ""
        done[f"disk without {lacks.replace(' ', ' and ')}"] += bool(lacks)
        disturbed = done.total()
        process = start(config, workdir, workers, lacks, accept)
        sweep, launched = Sweep(process, workdir, config, rng), time.monotonic()
        while process.poll() is None:
            time.sleep(rng.uniform(0.5, 4))
            left = [name for name in most if done[name] < most[name]]
            if time.monotonic() - launched < 8:  # a launcher should come to something
                left = [name for name in left if name not in STOP]
            if left and rng.random() < 0.6 and process.poll() is None:
                name = rng.choice(left)
                done[name] += getattr(sweep, name)()
        code = process.wait()
        if code == 0:
            return done
        if code in (1, 2) and done.total() == disturbed:
            # What edited code began is refused by the code as it is, until that is accepted: at
            # once, or, where the edit was noticed later, as the reason of a run.
            log = config.parent / f"{workdir.name}.log"
            said = log.read_text()[-10_000:] if code == 2 else ""
            reasons = [r["reason"] or "" for r in read_table(workdir)]
            if accept or not any(REFUSED in text for text in [said, *reasons]):
                return done
            accept = True


def launch_edited(config: Path, workdir: Path, workers: int, number: int) -> bool:
    """A launch by edited code for a while, which must leave alone every run that has begun: those
    with a checkpoint, the others begin anew. Workers of a killed launcher still write for a while.
    No two edits of a sweep are equal: code goes on with what it began itself."""
    path = config.parent / "code" / EDITED
    while lease_holder_pids(workdir):
        time.sleep(0.5)
    runs = [p.parent for p in workdir.glob("runs/*/metrics.jsonl")]
    runs = [run for run in runs if checkpoint.saved_steps(run)]
    held = {run: (run / "metrics.jsonl").read_bytes() for run in runs}
    raw = path.read_bytes()
    path.write_bytes(raw + f"\n# edit {number}\n".encode())
    try:
        process = start(config, workdir, workers)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.terminate()
        process.wait()
    finally:
        path.write_bytes(raw)
    if changed := [run.name for run in held if (run / "metrics.jsonl").read_bytes() != held[run]]:
        raise SystemExit(f"edited code went on with {', '.join(changed)}: {workdir}")
    return True


def metrics_and_state(run: Path) -> tuple[list[dict], dict[str, Any]]:
    """All metrics but the clock, and the arrays of the last state."""
    metrics = [
        {k: v for k, v in r.items() if k != "seconds"} for r in metrics_log.read_records(run)
    ]
    step, path = stored_state.latest_intact(run)
    return metrics, {"step": step, **stored_state.read_arrays(path, "params")}


def compare(whole: Path, workdir: Path) -> list[str]:
    """What is wrong with a sweep that was disturbed."""
    rows = {r["run"]: r for r in read_table(workdir)}
    wrong = [
        f"{run}: {r['status']} {r['reason']}" for run, r in rows.items() if r["status"] != "done"
    ]
    if len(rows) != POINTS:
        wrong.append(f"{len(rows)} rows for {POINTS} points")
    for run in rows:
        (metrics, state), (expected, expected_state) = (
            metrics_and_state(w / "runs" / run) for w in (workdir, whole)
        )
        if [m["step"] for m in metrics if "train_loss" in m] != list(range(rows[run]["steps"])):
            wrong.append(f"{run}: not every step once")
        if metrics != expected:
            wrong.append(f"{run}: metrics differ")
        try:
            np.testing.assert_equal(state, expected_state)
        except AssertionError as error:
            wrong.append(f"{run}: states differ: {error}")
    return wrong


def run_on_small_disk() -> int | None:
    """The exit code of this command on a disk of its own; None where none may be mounted."""
    with tempfile.TemporaryDirectory() as place:
        mount = f'mount -t tmpfs -o size={DISK}m none "$0"'
        inside = ["unshare", "-rm", "sh", "-c"]
        try:
            subprocess.run([*inside, mount, place], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print("no disk may be mounted here, so none is filled", flush=True)
            return None
        argv = [sys.executable, "-m", "tools.kill_drill", *sys.argv[1:], f"--disk={place}"]
        return subprocess.call([*inside, f'{mount} && exec "$@"', place, *argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--hours", type=float, help="of all faults, in the place of --repeats")
    parser.add_argument("--steps", type=int, help="of the longest runs; by default 150, or 2000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hours and not args.disk and (code := run_on_small_disk()) is not None:
        return code
    rng, steps = random.Random(args.seed), args.steps or (2000 if args.hours else 150)
    failed, count, faults = 0, 0, Counter()
    until = time.monotonic() + 3600 * (args.hours or 0)
    with tempfile.TemporaryDirectory() as folder:
        config, disk = write_drill(Path(folder), steps), Path(args.disk or folder)
        whole = Path(folder) / "whole"
        if code := start(config, whole, args.workers).wait():
            print((Path(folder) / "whole.log").read_text())
            return code
        while time.monotonic() < until if args.hours else count < args.repeats:
            count, began = count + 1, time.monotonic()
            workdir = disk / f"disturbed-{count}"
            done = run_disturbed(
                config, workdir, args.workers, rng, FAULTS if args.hours else KILLS
            )
            wrong = compare(whole, workdir)
            failed, faults = failed + bool(wrong), faults + done
            summary = ", ".join(f"{n} {name}" for name, n in done.items() if n)
            seconds = time.monotonic() - began
            print(f"{count}: {summary} in {seconds:.0f} s: {wrong or 'as undisturbed'}", flush=True)
            if wrong:
                copy = Path(tempfile.mkdtemp(prefix="kill-drill-"))
                shutil.copytree(workdir, copy, dirs_exist_ok=True)
                shutil.copy(config.parent / f"{workdir.name}.log", copy)
                print(f"   kept: {copy}", flush=True)
            shutil.rmtree(workdir)
    print(f"{count - failed} of {count} sweeps ended as the undisturbed one; {dict(faults)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
