"""One worker of a sweep: take runs that nobody holds and train them until none is left.

python -m experiments.worker --sweep=WORKDIR/sweeps/<digest>.json --workdir=WORKDIR

Launchers start workers by this command, and so may you, on any host that sees WORKDIR, while the
sweep runs or after it was interrupted. SIGTERM saves the run and ends.
"""

import os
import signal
from collections.abc import Sequence

from research import cli
from research.launch.job import PARENT


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--sweep", required=True, metavar="FILE", help="written by the launcher")
    parser.add_argument("--workdir", required=True, help="the workdir of that launch")
    args = parser.parse_args(argv)

    from research import compiled, sharding, sweep  # jax from here on
    from research.progress import Progress

    # A scheduler may send its warning to every process of a job, submitit's being SIGUSR2.
    stop = cli.StopSignal(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    parent = int(os.environ.get(PARENT, os.getppid()))
    sharding.use_all_cores()
    compiled.keep_programs()
    points, grouping = sweep.read(args.sweep, args.workdir)
    sweep.check(points, args.workdir)
    print(f"process {os.getpid()} takes part in {args.sweep}", flush=True)
    with Progress(p.run.facts for p in points if p.pending) as progress:
        # Without its launcher a worker would go on unseen.
        ending = lambda: stop() or os.getppid() != parent  # noqa: E731
        sweep.work(points, args.workdir, progress, ending, grouping)
    return 0


if __name__ == "__main__":
    cli.run(main)
