"""Run one worker of a sweep: it takes runs that nobody holds until none is left.

python -m experiments.worker --sweep=WORKDIR/sweeps/<digest>.json --workdir=WORKDIR

Launchers start workers with this command, and so may you, on any host that sees WORKDIR, while the
sweep runs or after an interruption. SIGTERM saves the run and ends the worker. A worker may be
several processes, with the flags of experiments.train.
"""

import argparse
import os
from collections.abc import Callable, Sequence

from research.config import cli, process_flags, stop_signal
from research.io.host import orphaned


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--sweep", required=True, metavar="FILE", help="written by the launcher")
    parser.add_argument("--workdir", required=True, help="the workdir of that launch")
    process_flags.add_flags(parser)
    args = parser.parse_args(argv)
    place, count = process_flags.distributed_options(args), process_flags.process_count(args)
    # Without its launcher a worker would continue unseen.
    stop = stop_signal.StopSignal()
    launcher_gone = orphaned(os.getppid())
    if place is None and count > 1:
        from research.launch import process_group

        return process_group.run_group("worker", argv, count, stop)

    from research.parallel import distributed, jax_settings
    from research.training import watchdog  # jax from here on

    jax_settings.prepare(alone=place is None)
    with distributed.join_processes(place), watchdog.watching():
        work(args, lambda: stop() or launcher_gone())
    return 0


def work(args: argparse.Namespace, stop: Callable[[], bool]) -> None:
    from research.sweep.points import read_points
    from research.sweep.worker import check_points, run_worker
    from research.training.progress import Progress

    points, grouping = read_points(args.sweep, args.workdir)
    check_points(points, args.workdir)
    print(f"process {os.getpid()} takes part in {args.sweep}", flush=True)
    with Progress(p.run.facts for p in points if p.pending) as progress:
        run_worker(points, args.workdir, progress, stop, grouping)


if __name__ == "__main__":
    cli.run(main)
