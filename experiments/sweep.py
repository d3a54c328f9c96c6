"""Train every point of a sweep that is not trained yet, then fit and report.

  python -m experiments.sweep --config=configs/sweeps/lm_params.py --workdir=DIR [--plan]
  python -m experiments.sweep --watch=DIR                            (from another shell or host)

--plan shows every point with its size, tokens, FLOPs, seconds, memory and status, what bends a law
and what would be cheaper, and trains nothing. --calibrate times two programs here, for the seconds.
Launch the same command again to go on after an interruption, or at the same time to share the work.
--num_processes=K trains each run in K processes, which the executor starts.
"""

import argparse
import signal
import time
from collections.abc import Sequence
from typing import Any

from research import launch
from research.config import cli
from research.config.loading import sweep_points
from research.config.stop_signal import StopSignal
from research.errors import UNFINISHED
from research.launch import process_group
from research.sweep import plan


class Watch(argparse.Action):
    """Needs no other flag."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        from research.sweep import watch

        parser.exit(watch.follow(given[1]))


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="runs, table and report are written here")
    parser.add_argument("--sweep", default="sweep", help="the config's function to use")
    plan.add_flags(parser)
    parser.add_argument("--executor", choices=launch.CHOICES, default="auto")
    parser.add_argument("--workers", type=int, help="how many (default: what there is room for)")
    process_group.add_flags(parser, member=False)
    parser.add_argument("--executor_options", default="", metavar="KEY=VALUE,...", help=launch.HELP)
    parser.add_argument("--retry_failed", action="store_true", help="train failed runs again too")
    parser.add_argument("--grouping", default="auto", help="of runs in one program: auto|off|force")
    parser.add_argument("--watch", action=Watch, metavar="DIR", help="show a sweep that runs")
    args, config, module = cli.parse_config(parser, argv)
    limits = plan.limits(args)
    number = process_group.number(args)
    options = launch.options(args.executor, args.executor_options, args.workers)
    configs = sweep_points(config, module, args.sweep)

    from research.parallel import compile_cache, sharding
    from research.runs.table import write_table
    from research.sweep import prepare
    from research.sweep.launcher import choose_executor, launch_sweep
    from research.sweep.points import describe_status
    from research.training import watchdog  # jax from here on

    sharding.use_all_cores()
    compile_cache.keep_programs()
    more = (limits, args.grouping, args.retry_failed, number)
    points, told = prepare.prepare(configs, args.workdir, *more)
    print(told)
    if args.plan:
        return 0
    print(describe_status(points))
    started = time.monotonic()
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    how = (args.grouping, args.workers, number)
    executor = choose_executor(args.executor, points, args.workdir, *how)
    orderly = executor != "inline" or number > 1
    with StopSignal(*signals, orderly=orderly) as stop, watchdog.watching():
        how = (executor, args.workers, options, args.grouping, number)
        outcome = launch_sweep(points, args.workdir, stop, *how)
    took = f"trained {outcome.trained} runs in {time.monotonic() - started:.0f} s"
    print(took if outcome.trained else "nothing to train")
    write_table(args.workdir)
    from research.report import build as report  # matplotlib and scipy, which a plan does not need
    from research.report import text as summary

    print(summary.text_summary(report.write(args.workdir, every_way=True)))
    for run_id, reason in outcome.missing.items():
        print(f"missing: run {run_id}: {reason}")
    return UNFINISHED if outcome.missing else 0


if __name__ == "__main__":
    cli.run(main)
