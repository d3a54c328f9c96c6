"""Train every point of a sweep that is still missing, then fit and report.

  python -m experiments.sweep --config=configs/sweeps/lm_params.py --workdir=DIR [--plan]
  python -m experiments.sweep --watch=DIR                            (from another shell or host)

--plan trains nothing: it shows every point with its size, tokens, FLOPs, seconds, memory and
status, and what would bias a fitted law. --calibrate times two programs on this machine to predict
seconds. Launch the same command again to resume, or at the same time to share the work.
--num_processes=K trains each run in K processes, which the executor starts.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from research import launch
from research.config import cli, process_flags, stop_signal
from research.config.sweeps import sweep_points
from research.errors import UNFINISHED
from research.sweep import limits, sweep_file


class Watch(argparse.Action):
    """Needs no other flag."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        from research.sweep import watch

        parser.exit(watch.follow(values[1]))


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="runs, table and report are written here")
    parser.add_argument("--sweep", default="sweep", help="the config's function to use")
    limits.add_flags(parser)
    launch.add_flags(parser)
    stop_signal.add_flag(parser)
    parser.add_argument("--retry_failed", action="store_true", help="also retry failed runs")
    process_flags.add_run_flags(parser)
    parser.add_argument("--grouping", default="auto", help=sweep_file.GROUPING_HELP)
    parser.add_argument("--watch", action=Watch, metavar="DIR", help="watch a running sweep")
    args, config, module = cli.parse_config(parser, argv)
    most = limits.parse_limits(args)
    how = launch.parse_flags(args)
    num_processes = how[-1]
    configs = sweep_points(config, module, args.sweep)

    from research.parallel import jax_settings
    from research.runs.table import write_table
    from research.sweep.launcher import LaunchOptions, choose_executor, launch_sweep
    from research.sweep.plan import plan_sweep
    from research.sweep.points import describe_status
    from research.training import watchdog  # jax from here on

    jax_settings.prepare()
    retry = args.retry_failed
    plan = (args.grouping, retry, num_processes, args.accept_changes, process_flags.labels(args))
    points, text, _ = plan_sweep(configs, args.workdir, most, *plan)
    print(text)
    if args.plan:
        return 0
    print(describe_status(points))
    started = time.monotonic()
    options = choose_executor(LaunchOptions(*how, args.grouping), points, args.workdir)
    orderly = options.executor != "inline" or num_processes > 1
    with stop_signal.StopSignal(orderly, args.end) as stop, watchdog.watching():
        outcome = launch_sweep(points, args.workdir, stop, options)
    took = f"trained {outcome.trained} runs in {time.monotonic() - started:.0f} s"
    print(took if outcome.trained else "nothing to train")
    write_table(args.workdir)
    from research.report import reuse

    print(reuse.written_report(args.workdir, every_way=True))
    for run_id, reason in outcome.missing.items():
        print(f"missing: run {run_id}: {reason}")
    return UNFINISHED if outcome.missing else 0


if __name__ == "__main__":
    cli.run(main)
