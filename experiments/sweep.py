"""Train every point of a sweep that is not trained yet, then fit and report.

  python -m experiments.sweep --config=configs/sweeps/lm_params.py --workdir=DIR [--plan]

--plan shows every point with its size, tokens, FLOPs, seconds, memory and status, what bends a law
and what would be cheaper, and trains nothing. --calibrate times two programs here, for the seconds.
Launch the same command again to go on after an interruption.
"""

import signal
import time
from collections.abc import Sequence

from research import cli, plan
from research.errors import UNFINISHED


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="runs, table and report are written here")
    parser.add_argument("--sweep", default="sweep", help="the config's function to use")
    plan.add_flags(parser)
    args, config, module = cli.parse_config(parser, argv)
    limits = plan.limits(args)
    configs = cli.points(config, module, args.sweep)

    from research import records, sharding, sweep  # jax from here on
    from research.progress import Progress

    sharding.use_all_cores()
    points, told = sweep.prepare(configs, args.workdir, limits)
    print(told)
    if args.plan:
        return 0
    pending = [p for p in points if p.pending]
    print(f"{len(points) - len(pending)} of {len(points)} runs are done, {len(pending)} to train")
    started = time.monotonic()
    stop = cli.StopSignal(signal.SIGTERM, signal.SIGUSR1)
    with Progress(p.run.facts for p in pending) as progress:
        outcome = sweep.launch(points, args.workdir, progress, stop)
    if outcome.trained:
        print(f"trained {outcome.trained} runs in {time.monotonic() - started:.0f} s")
    else:
        print("nothing to train")
    records.write_table(args.workdir)
    from research import report, summary  # matplotlib and scipy, which a plan does not need

    print(summary.text_summary(report.write(args.workdir, every_way=True)))
    for run_id, reason in outcome.missing.items():
        print(f"missing: run {run_id}: {reason}")
    return UNFINISHED if outcome.missing else 0


if __name__ == "__main__":
    cli.run(main)
