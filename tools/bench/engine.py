"""What the engine of sweeps takes for itself.

python -m tools.bench.engine

start   seconds from the command that trains a tiny model (GPT-2's shape, 32/2/8) until the metrics
        of its first step are in metrics.jsonl, its program being in the compilation cache
plan    seconds from the command that plans 200 trivial points to the end of its output
run     seconds of a run beyond those that it records (from its records being opened to its result:
        compiling, training, evaluating, checkpoints), over 50 runs of one process
table   seconds in which a table of 10,000 runs, copies of one of the 50 under other names, is read
        for the first time, again, and again after 10 of them ended
The last line is JSON.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import bench
from research.config.loading import load_config
from research.config.sweeps import sweep_points
from research.io import files

CONFIG = str(Path(__file__).parent / "linear_sweep.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="of the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out: dict[str, object] = {"start": starting(Path(folder))}
        out["plan"] = planning(Path(folder))
        out["run"], run = overhead(Path(folder))
        out["table"] = scanning(Path(folder) / "many", run, args.runs)
    print(json.dumps(out))
    return 0


def starting(folder: Path) -> float:
    flags = bench.flags(bench.CASES["tiny 32/2/8"])
    command = [sys.executable, "-m", "experiments.train", *flags]
    times = []
    for i in range(6):
        begun = time.perf_counter()
        workdir = folder / f"start{i}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        training = subprocess.Popen([*command, f"--workdir={workdir}"], **quiet)
        try:
            while not _stepped(workdir):
                if training.poll() is not None:
                    raise RuntimeError(
                        f"{command} ended before a step: {training.communicate()[1]}"
                    )
                time.sleep(0.005)
            times.append(time.perf_counter() - begun)
        finally:
            training.terminate()
            training.communicate()
    print(f"train is at its first step after {words(times[1:])}; the launch before those took "
          f"{times[0]:.2f} s", flush=True)  # fmt: skip
    return statistics.median(times[1:])


def _stepped(workdir: Path) -> bool:
    return any('"step": 0' in path.read_text() for path in workdir.glob("runs/*/metrics.jsonl"))


def planning(folder: Path) -> float:
    command = [sys.executable, "-m", "experiments.sweep", f"--config={CONFIG}", "--plan"]
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([*command, f"--workdir={folder / 'plan'}"], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    print(f"200 points are planned in {words(times)}", flush=True)
    return statistics.median(times)


def overhead(folder: Path) -> tuple[float, Path]:
    """Seconds for each of 50 runs, and the directory of one."""
    from research.parallel import compile_cache, device_mesh
    from research.runs.table import read_table
    from research.sweep.launcher import launch_sweep
    from research.sweep.points import resolve_points

    device_mesh.use_all_cpu_cores()
    compile_cache.enable_compile_cache()
    config, module = load_config(CONFIG)
    points = resolve_points(sweep_points(config, module, "fifty"), folder)
    begun = time.perf_counter()
    launch_sweep(points, folder, lambda: False)
    whole = time.perf_counter() - begun
    rows = read_table(folder)
    recorded = sum(row["seconds"] for row in rows)
    each = (whole - recorded) / len(rows)
    print(f"{len(rows)} runs in {whole:.2f} s, {recorded:.2f} s of which are the runs' own: "
          f"{each:.3f} s for each", flush=True)  # fmt: skip
    return each, folder / "runs" / rows[0]["run"]


def scanning(workdir: Path, run: Path, count: int) -> dict[str, float]:
    from research.runs.table import read_table

    launched, result = (files.read_json(run / name) for name in ("launch.json", "result.json"))
    for i in range(count):
        path = files.make_directory(workdir / "runs" / f"{i:012x}")
        shutil.copy(run / "config.json", path)
        shutil.copytree(run / "lease", path / "lease")
        launched["facts"]["seed"] = result["seed"] = i
        (path / "launch.json").write_text(json.dumps(launched, indent=1))
        if i >= 10:
            (path / "result.json").write_text(json.dumps(result, indent=1))
    out = {}
    for when in ("first", "again", "after 10 ended"):
        if when == "after 10 ended":
            for i in range(10):
                (workdir / "runs" / f"{i:012x}" / "result.json").write_text(json.dumps(result))
        begun = time.perf_counter()
        assert len(read_table(workdir)) == count
        out[when] = time.perf_counter() - begun
        print(f"a table of {count:,} runs, {when}: {out[when]:.2f} s", flush=True)
    return out


def words(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s (of {', '.join(f'{t:.2f}' for t in times)})"


if __name__ == "__main__":
    sys.exit(main())
