"""Train runs larger than those of a sweep, and compare them with what their laws predicted.

  python -m experiments.verify --runs=DIR [--rungs=3,10,33,100]
  python -m experiments.verify --runs=DIR --flops=1e14 --law=chinchilla

A rung is a run of optimal size at a multiple of the sweep's largest budget (10 by default), or at
--flops (6 N D). Predictions are written to DIR/verify/registration.json before any rung is trained,
and never changed: further rungs, or another law, get a registration of their own. By default
predictions are averaged over laws. Launch the same command again to resume.
"""

import math
from collections.abc import Sequence

from research import launch
from research.config import cli, process_flags, stop_signal
from research.errors import UNFINISHED, BadInput


def parse_rungs(text: str, furthest: float) -> list[float]:
    """Ratios above 1, each once. Raises BadInput."""
    try:
        ratios = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise BadInput(f"--rungs={text}: expected numbers joined by commas: 3,10,33") from error
    for ratio in ratios:
        if not 1 < ratio <= furthest:
            raise BadInput(
                f"--rungs={text}: {ratio:g}; a rung is a multiple of the sweep's largest budget, "
                f"above 1 and at most {furthest:g}"
            )
        if ratios.count(ratio) > 1:
            raise BadInput(f"--rungs={text}: {ratio:g} is given twice")
    if not ratios:
        raise BadInput(f"--rungs={text}: expected numbers joined by commas: 3,10,33")
    return ratios


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, help="the workdir of a sweep over size and tokens")
    parser.add_argument("--rungs", help="multiples of the largest budget of the sweep: 3,10,33")
    parser.add_argument("--flops", type=float, help="or one budget 6 N D")
    parser.add_argument("--law", help="auto averages over laws (default); or a law by name")
    help_ = "register the rungs again, from the current sweep, in a new file"
    parser.add_argument("--new_registration", action="store_true", help=help_)
    help_ = "save and stop a run that leaves its forecast training curve"
    parser.add_argument("--stop_off_track", action="store_true", help=help_)
    launch.add_flags(parser)
    stop_signal.add_flag(parser)
    process_flags.add_run_flags(parser)
    args = parser.parse_args(argv)
    if args.flops is not None and not 0 < args.flops < math.inf:
        raise BadInput(f"--flops={args.flops}: expected a number above 0")
    if args.rungs is not None and args.flops is not None:
        raise BadInput("--rungs, --flops: give one of both")
    how = launch.parse_flags(args)

    from research.parallel import jax_settings
    from research.report import ladder_text, reuse
    from research.runs.ladder import read_ladder, read_registrations
    from research.sweep import verify
    from research.sweep.launcher import LaunchOptions, choose_executor
    from research.sweep.points import launched_with
    from research.training import watchdog  # jax from here on

    ratios = parse_rungs(args.rungs, verify.FURTHEST) if args.rungs is not None else []
    jax_settings.prepare()
    asked = verify.Asked(ratios, args.flops, args.law, args.new_registration)
    path = verify.register(args.runs, asked)
    print(ladder_text.registered(args.runs, path, read_registrations(args.runs)), flush=True)
    points = verify.rung_points(args.runs, asked)
    points = launched_with(points, args.accept_changes, process_flags.labels(args))
    options = choose_executor(LaunchOptions(*how), points, f"{args.runs}/verify")
    orderly = options.executor != "inline" or options.num_processes > 1
    with stop_signal.StopSignal(orderly, args.end) as stop, watchdog.watching():
        outcome = verify.train(args.runs, points, stop, options, args.stop_off_track)
    print(ladder_text.measured(read_ladder(args.runs)))
    print(f"{args.runs}/verify/ladder.json")
    try:
        reuse.written_report(args.runs, every_way=True)
        print(f"{args.runs}/report.html")
    except BadInput as error:  # the runs of the sweep may have been removed since
        print(f"no report: {error}")
    for run_id, reason in outcome.missing.items():
        print(f"missing: run {run_id}: {reason}")
    return UNFINISHED if outcome.missing else 0


if __name__ == "__main__":
    cli.run(main)
