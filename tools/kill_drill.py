"""SIGKILL workers and launchers of a sweep of chains and groups at random, launch it again until it
is done, and compare every run with that of an undisturbed sweep: each trained to its end once,
bitwise the same.

  python -m tools.kill_drill --repeats=20
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from research import checkpoint, lease, records

POINTS = 12
SWEEP = """
from configs import lm_transformer
from research import grid

def get_config():
    config = lm_transformer.get_config()
    config.size = None
    config.model.update(width=16, depth=2, heads=2, kv_heads=2, hidden=32)
    config.data.context = 32
    config.batch.size = 8
    config.horizon.update(unit="steps", amount={steps})
    config.eval.update(examples=16, batch=8, every=0)
    config.save.every = 25
    config.log.every = 1
    return config

def sweep(config):
    wsd = {{"name": "wsd", "decay": 0.2, "final": 0.0}}
    trunk = {{f"optim.schedule.{{k}}": v for k, v in wsd.items()}}
    trunk |= {{"optim.warmup.unit": "steps", "optim.warmup.amount": 5.0}}
    lengths = [{{**trunk, "horizon.amount": part * {steps}}} for part in (0.5, 0.75, 1.0)]
    seeds = [{{"seed": k, "mesh.data": 1}} for k in range(3)]
    return grid.product(grid.values("model.width", [16, 24]), [*lengths, *seeds])
"""


def start(config: Path, workdir: Path, workers: int) -> subprocess.Popen:
    argv = [sys.executable, "-m", "experiments.sweep", f"--config={config}"]
    argv += [f"--workdir={workdir}", "--executor=local", f"--workers={workers}"]
    argv += ["--grouping=force"]
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log)


def holders(workdir: Path) -> list[int]:
    """The process ids of the workers that hold a run now."""
    found = [lease.holder(path) for path in workdir.glob("runs/*/lease")]
    return [h.content["pid"] for h in found if h and h.alive]


def disturbed(config: Path, workdir: Path, workers: int, rng: random.Random) -> dict[str, int]:
    """Launch and kill until a launch ends by itself; how many of each were killed."""
    killed = {"launcher": 0, "worker": 0}
    while True:
        process = start(config, workdir, workers)
        end = time.monotonic() + rng.uniform(8, 25)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(rng.uniform(0.5, 4))
            if (at := holders(workdir)) and rng.random() < 0.5 and killed["worker"] < 12:
                os.kill(rng.choice(at), signal.SIGKILL)
                killed["worker"] += 1
        if process.poll() is None and killed["launcher"] < 5:
            process.kill()
            killed["launcher"] += 1
        if process.wait() == 0:
            return killed


def content(run: Path) -> tuple[list[dict], dict[str, Any]]:
    """All metrics but the clock, and the arrays of the last state."""
    metrics = [{k: v for k, v in r.items() if k != "seconds"} for r in records.read_metrics(run)]
    step, path = checkpoint.newest_intact(run)
    return metrics, {"step": step, **checkpoint.read(path, "params")}


def compare(whole: Path, workdir: Path) -> list[str]:
    """What is wrong with a sweep that was disturbed."""
    rows = {r["run"]: r for r in records.table(workdir)}
    wrong = [
        f"{run}: {r['status']} {r['reason']}" for run, r in rows.items() if r["status"] != "done"
    ]
    if len(rows) != POINTS:
        wrong.append(f"{len(rows)} rows for {POINTS} points")
    for run in rows:
        (metrics, state), (expected, wanted) = (content(w / "runs" / run) for w in (workdir, whole))
        if [m["step"] for m in metrics if "train_loss" in m] != list(range(rows[run]["steps"])):
            wrong.append(f"{run}: not every step once")
        if metrics != expected:
            wrong.append(f"{run}: metrics differ")
        try:
            np.testing.assert_equal(state, wanted)
        except AssertionError as error:
            wrong.append(f"{run}: states differ: {error}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "drill.py"
        config.write_text(SWEEP.format(steps=float(args.steps)))
        whole = Path(folder) / "whole"
        if code := start(config, whole, args.workers).wait():
            print(whole.with_suffix(".log").read_text())
            return code
        for k in range(args.repeats):
            began = time.monotonic()
            workdir = Path(folder) / f"disturbed-{k}"
            killed = disturbed(config, workdir, args.workers, rng)
            wrong = compare(whole, workdir)
            failed += bool(wrong)
            told = f"{killed['worker']} workers and {killed['launcher']} launchers killed"
            seconds = time.monotonic() - began
            print(f"{k + 1}: {told} in {seconds:.0f} s: {wrong or 'as undisturbed'}", flush=True)
    print(f"{args.repeats - failed} of {args.repeats} sweeps ended as the undisturbed one")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
