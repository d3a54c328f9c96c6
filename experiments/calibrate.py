"""Measure how often 95 % intervals contain the truth, on simulated tables shaped like yours.

  python -m experiments.calibrate --runs=runs.csv --columns=params=N,tokens=D --out=OUT
  python -m experiments.calibrate --shape=isoflop --worlds=seed,wrong_law --methods=akima --out=OUT

Simulated tables have the sizes, budgets, replicates and noise of the table, and the law
E + A / N^alpha + B / D^beta that was fitted to it as their truth. Worlds say what is beside it:
seed (noise alone), scatter (every size has an efficiency of its own), uneven (noise that differs
tenfold), wrong_law (interaction and broken), crashed, tilted (every budget's optimum is off).
"""

import argparse
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from research.config import cli
from research.errors import BadInput
from research.io import files, host

if TYPE_CHECKING:
    from research.scaling.calibrate import Measured, Plan

INTERRUPTED = 130
FIT_FLAGS = ("where", "objective", "huber_delta", "cluster", "bootstrap")  # as in a fit
SHAPES = ("isoflop",)


def main(argv: Sequence[str]) -> int:
    # The tables keep every core busy; set before numpy is imported, here and by workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from research.scaling import flags

    parser = cli.parser(__doc__)
    flag = parser.add_argument
    flag("--runs", help="whose shape tables have: a sweep's workdir, a .csv or a .parquet")
    flag("--shape", choices=SHAPES, help="without a table: seven budgets of nine sizes")
    flag("--out", required=True, help="where calibration.json is written")
    flag("--columns", default="", help="rename columns: params=N,loss=val_loss")
    for name in FIT_FLAGS:
        flag(f"--{name}", **flags.FLAGS[name])
    flag("--tables", type=int, default=400, help="simulated tables of each world")
    flag("--worlds", default="", help="some of them: seed,scatter (default: all)")
    flag("--methods", default="", help="some of them: envelope,akima,parabola,chinchilla")
    flag("--truth", default="", help="the true law in place of the fitted one: E=1.8,A=480,...")
    flag("--noise", type=float, help="standard deviation of log loss, in place of the table's")
    flag("--scatter", type=float, help="standard deviation of a size's log efficiency: 0.015")
    flag("--seed", type=int, default=0)
    flag("--processes", type=int, help="by default one for each core")
    args = parser.parse_args(argv)
    _check(args)

    from research.report import calibration_text
    from research.scaling import calibrate

    plan = _plan(args)
    out, began, measured = files.make_directory(args.out), time.monotonic(), []
    try:
        for some in _measure(plan, args.processes or host.cores()):
            measured += some
            _show_progress(len(measured) // len(plan.methods), len(plan.tasks()), began)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    document = calibrate.summarize(plan, measured)
    files.write_json(out / "calibration.json", document)
    print(calibration_text.calibration_table(document))
    for method in plan.methods:
        seconds = [one.seconds for one in measured if one.method == method]
        print(f"{method}: {sum(seconds) / len(seconds):.2g} s for a table")
    print(f"{len(plan.tasks())} tables in {time.monotonic() - began:.0f} s")
    print(out / "calibration.json")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that no table is needed to refuse."""
    problems = []
    if bool(args.runs) == bool(args.shape):
        problems.append("--runs, --shape: expected one of them")
    if args.shape:
        problems += [f"--{k}: is for the table of --runs" for k in ("where", "columns")
                     if getattr(args, k)]  # fmt: skip
    if args.tables < 1:
        problems.append(f"--tables={args.tables}: expected 1 or more")
    if args.processes is not None and args.processes < 1:
        problems.append(f"--processes={args.processes}: expected 1 or more")
    if args.seed < 0:
        problems.append(f"--seed={args.seed}: expected 0 or more")
    for name in ("noise", "scatter"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1:
            problems.append(f"--{name}={value}: expected a number between 0 and 1")
    if problems:
        raise BadInput(*problems)


def _plan(args: argparse.Namespace) -> "Plan":
    """What is to be measured. Raises BadInput."""
    from research.scaling import Options, calibrate, flags, table, worlds

    options = {name: getattr(args, name) for name in FIT_FLAGS if name != "where"}
    Options(**options).check()
    truth = flags.parse_truth(args)
    if truth and set(truth) != set(worlds.CHINCHILLA):
        raise BadInput(f"--truth={args.truth}: expected {', '.join(worlds.CHINCHILLA)}")
    if bad := [name for name, value in truth.items() if value <= 0]:
        raise BadInput(f"--truth={bad[0]}={truth[bad[0]]:g}: expected a number above 0")
    names = [[x for x in text.split(",") if x] for text in (args.worlds, args.methods)]
    chosen, methods = calibrate.chosen_worlds(names[0]), calibrate.chosen_methods(names[1])
    if args.runs:
        rows = table.read_runs(args.runs, flags.parse_columns(args))
        shape = worlds.shape_of(rows, Options(**options, where=args.where))
    else:
        shape = worlds.isoflop_shape()
    given = {"truth": truth, "noise": args.noise, "scatter": args.scatter}
    shape = dataclasses.replace(shape, **{k: v for k, v in given.items() if v})
    return calibrate.Plan(shape, chosen, methods, args.tables, args.seed, options)


def _measure(plan: "Plan", processes: int) -> Iterator[list["Measured"]]:
    """The measurements of every table, in the order in which they are done."""
    from research.scaling import calibrate

    work = functools.partial(calibrate.measure_task, plan)
    if processes == 1:
        yield from map(work, plan.tasks())
        return
    # Workers leave Ctrl-C to this process, which ends them when it leaves the pool.
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(work, plan.tasks())


def _show_progress(done: int, total: int, began: float) -> None:
    """One line that is written over on a terminal; a line for each tenth elsewhere."""
    terminal = sys.stderr.isatty()
    if not terminal and done * 10 // total == (done - 1) * 10 // total:
        return
    left = (time.monotonic() - began) / done * (total - done)
    end = "\r" if terminal and done < total else "\n"
    print(f"{done} of {total} tables, {left:.0f} s left  ", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
