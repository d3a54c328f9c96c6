"""Measure how often 95 % intervals contain the truth, on simulated tables shaped like yours.

  python -m experiments.calibrate --runs=runs.csv --columns=params=N,tokens=D --out=OUT
  python -m experiments.calibrate --shape=isoflop --worlds=seed,wrong_law --methods=akima --out=OUT

Measurements are kept in OUT: launch the same command again to continue.

Simulated tables have the sizes, budgets, replicates and noise of the table; their true law is
E + A / N^alpha + B / D^beta as fitted to it. A world adds a violation of the assumptions: seed
(none, only noise), scatter (every size has its own efficiency), uneven (noise that differs
tenfold), wrong_law (interaction and broken), crashed, tilted (every budget's optimum is off).
"""

import os
import sys
import time
from collections.abc import Sequence

from research.config import cli
from research.io import files

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    # The tables keep every core busy; set before numpy is imported, here and by workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from research.scaling import calibrate_flags

    parser = cli.parser(__doc__)
    parser.add_argument("--out", required=True, help="where calibration.json is written")
    calibrate_flags.add_flags(parser)
    plan, processes = calibrate_flags.parse_plan(args := parser.parse_args(argv))

    from research.report import calibration_text
    from research.scaling import calibrate, calibrate_record

    out, began = files.make_directory(args.out), time.monotonic()
    record = calibrate_record.Record(out, plan)
    measured, whole = record.read(), len(plan.tasks()) * len(plan.methods)
    if before := len(measured):
        print(f"{before} of {whole} measurements are in {record.path}", file=sys.stderr)
    interrupted = False
    try:
        for some in calibrate.measure(plan, processes, measured):
            record.add(some)
            measured += some
            rate = (len(measured) - before) / (time.monotonic() - began)
            _show_progress(len(some), len(measured), whole, rate)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {len(measured)} of {whole} measurements", file=sys.stderr)
        interrupted = True
    document = calibrate.summarize(plan, measured)
    files.write_json(out / "calibration.json", document)
    print(calibration_text.calibration_table(document))
    print(calibration_text.seconds(plan.methods, measured))
    print(out / "calibration.json")
    return INTERRUPTED if interrupted else 0


def _show_progress(new: int, done: int, whole: int, rate: float) -> None:
    """One line that is written over on a terminal; a line for each tenth elsewhere."""
    terminal = sys.stderr.isatty()
    if not terminal and done * 10 // whole == (done - new) * 10 // whole:
        return
    end = "\r" if terminal and done < whole else "\n"
    left = f"{(whole - done) / rate:.0f} s left  "
    print(f"{done} of {whole} fits, {left}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
