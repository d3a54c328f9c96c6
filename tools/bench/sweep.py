"""How long a sweep takes from its command to its table, here and by one process for each run.

python -m tools.bench.sweep --nanodo=CHECKOUT [--config=tools/bench/gpt2_sweep.py] [--warm]

Three ways to the same 24 losses:
ours      python -m experiments.sweep, until table.csv is written
alone     python -m experiments.train for every run, one after the other
nanodo    one process for every run around nanodo's model and step (nanodo_run.py), on the same
          batches and held-out windows, evaluated as often: one process at a time with all cores,
          and two at a time with half of them each; the better counts

Every way begins without compiled programs (ours and alone share a new cache each, nanodo's process
has none, as its code has it), or with --warm, ours and alone with those of an earlier time. The
last line is JSON, with the processor seconds of all processes of a way beside its seconds, which
other programs on the machine disturb less.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.config.loading import load_config
from research.config.sweeps import sweep_points
from research.training.make_run import make_run
from research.training.run import Run

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanodo", default="", help="a checkout; without one only ours is timed")
    parser.add_argument("--config", default=str(HERE / "gpt2_sweep.py"))
    parser.add_argument("--ways", default="ours,alone,one,two", help="which, and in what order")
    parser.add_argument("--flags", default="", help="more flags for experiments.sweep")
    parser.add_argument("--warm", action="store_true")
    args = parser.parse_args()
    config, module = load_config(args.config)
    points = sweep_points(config, module, "sweep")
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in args.ways.split(","):
            place = Path(folder) / way
            place.mkdir()
            before = _children_seconds()
            if way == "ours":
                flags = args.flags.split()
                seconds[way], processor[way] = ours(args.config, place, flags, args.warm)
            elif way == "alone":
                seconds[way] = alone(args.config, [dict(o) for o, _ in points], place, args.warm)
            elif args.nanodo:
                runs = [make_run(checked) for _, checked in points]
                seconds[way] = nanodo(args.nanodo, runs, place, 2 if way == "two" else 1)
            else:
                continue
            processor.setdefault(way, _children_seconds() - before)
            print(
                f"{way}: {seconds[way]:.1f} s for {len(points)} runs, {processor[way]:.1f} s of "
                "processors",
                flush=True,
            )
    out: dict[str, object] = {"seconds": {k: round(v, 1) for k, v in seconds.items()}}
    out["processor_seconds"] = {k: round(v, 1) for k, v in processor.items()}
    peers = [seconds[way] for way in ("one", "two") if way in seconds]
    if "ours" in seconds and peers:
        out["nanodo"] = round(min(peers) / seconds["ours"], 2)
    if {"ours", "alone"} <= seconds.keys():
        out["alone"] = round(seconds["alone"] / seconds["ours"], 2)
    print(json.dumps(out))
    return 0


def ours(config: str, place: Path, flags: Sequence[str], warm: bool) -> tuple[float, float]:
    """Seconds until the table is there, of the clock and of processors; the report after it is
    waited for and not counted."""
    table = place / "sweep" / "table.csv"
    command = [sys.executable, "-m", "experiments.sweep", f"--config={config}"]
    command += [f"--workdir={table.parent}", *flags]
    for _ in range(1 + warm):
        shutil.rmtree(table.parent, ignore_errors=True)
        begun = time.perf_counter()
        with open(place / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=_cache(place))
        seconds = processor = 0.0
        while process.poll() is None:
            if not seconds and table.exists():
                seconds, processor = time.perf_counter() - begun, _seconds_of(process.pid)
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit((place / "log").read_text())
    return seconds, processor


def _seconds_of(pid: int) -> float:
    """Of the processors, by a process and by its children that have ended; as Linux tells."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def alone(config: str, points: Sequence[dict], place: Path, warm: bool) -> float:
    for again in range(1 + warm):
        begun = time.perf_counter()
        for point in points:
            command = [sys.executable, "-m", "experiments.train", f"--config={config}"]
            command += [f"--workdir={place / str(again)}"]
            command += [f"--config.{key}={value}" for key, value in point.items()]
            _run(command, _cache(place))
    return time.perf_counter() - begun


def nanodo(repo: str, runs: Sequence[Run], place: Path, at_once: int) -> float:
    """The data that the runs share are written before the clock starts."""
    _write_data(runs[0], place / "data.npz")
    cores = sorted(os.sched_getaffinity(0))
    share = [cores[i::at_once] for i in range(at_once)]
    waiting = [
        [sys.executable, str(HERE / "nanodo_run.py"), f"--repo={repo}", str(place / "data.npz"),
         f"--width={run.model.spec.width}", f"--layers={run.model.spec.depth}",
         f"--lr={run.facts['lr']}", f"--steps={run.steps}", f"--every={run.cadence.eval}",
         f"--out={place / run.id}.json"]
        for run in runs
    ]  # fmt: skip
    running: dict[int, subprocess.Popen] = {}
    begun = time.perf_counter()
    while waiting or running:
        for slot, cpus in enumerate(share):
            ended = slot in running and running[slot].poll() is not None
            if ended and running.pop(slot).returncode:
                raise SystemExit("nanodo's run failed")
            if slot not in running and waiting:
                pinned = ["taskset", "-c", ",".join(map(str, cpus))]
                running[slot] = subprocess.Popen(pinned + waiting.pop(0))
        time.sleep(0.01)
    return time.perf_counter() - begun


def _write_data(run: Run, path: Path) -> None:
    """The batches of all steps and the held-out windows, as every run of the sweep sees them."""
    from research.training.trainer import host_batches, host_heldout

    batches = host_batches(run, 0, run.steps, run.steps)
    heldout = host_heldout(run, 1)
    heldout.pop("weights")  # every window counts: the number is a multiple of the batch
    assert run.eval_examples % run.eval_batch == 0
    arrays = {**{f"train_{k}": v for k, v in batches.items()}}
    np.savez(path, **arrays, **{f"held_{k}": v for k, v in heldout.items()})


def _cache(place: Path) -> dict[str, str]:
    return {**os.environ, "ISOFLOP_CACHE": str(place / "cache")}


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    sys.exit(main())
