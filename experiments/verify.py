"""Train a run larger than those of a sweep, and compare it with the prediction of their law.

  python -m experiments.verify --runs=DIR [--flops=1e14]

The law L(N, D) is fitted to all runs in DIR; the run has its optimal size for a budget of ten times
the largest one, or of --flops (6 N D). The prediction is written before the run is
trained. Launch the same command again to resume after an interruption.
"""

import math
from collections.abc import Sequence

from research.config import cli, process_flags, stop_signal
from research.errors import BadInput


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, help="the workdir of a sweep over both")
    parser.add_argument("--flops", type=float, help="the budget 6 N D of the larger run")
    process_flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    if args.flops is not None and not 0 < args.flops < math.inf:
        raise BadInput(f"--flops={args.flops}: expected a number above 0")

    from research.parallel import jax_settings
    from research.report import build, text
    from research.sweep import verify  # jax from here on

    jax_settings.prepare()
    prediction, config = verify.predict(args.runs, args.flops)
    print(text.prediction_sentence(prediction), flush=True)
    how = args.accept_changes, process_flags.labels(args)
    with stop_signal.StopSignal() as stop:
        measurement = verify.measure(args.runs, prediction, config, stop, *how)
    print(text.verification_sentence(measurement))
    written = build.write_report(args.runs)["files"]
    print(f"{args.runs}/verify/verify.json")
    if "verify.png" in written:  # the runs of the sweep may have been removed since
        print(written["verify.png"])
    return 0


if __name__ == "__main__":
    cli.run(main)
