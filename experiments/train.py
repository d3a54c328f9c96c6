"""Train one run of a config, or go on with it.

python -m experiments.train --config=configs/lm_transformer.py --config.size=3e5 --workdir=DIR
python -m experiments.train --config=DIR/runs/<id>/config.json --workdir=OTHER     (repeat a run)
"""

import signal
from collections.abc import Sequence

from research import cli
from research.errors import DIVERGED


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the run is written to WORKDIR/runs/<id>")
    args, config, _ = cli.parse_config(parser, argv)
    config = cli.checked(config)

    from research import records, sharding, train  # jax from here on
    from research.progress import Progress
    from research.run import make_run

    sharding.use_all_cores()
    run = make_run(config)
    directory = records.RunDirectory(args.workdir, run.id)
    for rule in run.facts["rules"].splitlines():
        print(rule)
    if directory.result:
        print(f"run {run.id} is {directory.result['status']} already: {directory.path}")
        return DIVERGED if directory.result["status"] == "diverged" else 0
    train.check(run, directory)
    stop = cli.StopSignal(signal.SIGTERM, signal.SIGUSR1)
    with directory, Progress([run.facts]) as progress:
        progress.begin(run.facts)
        result = train.fit(run, directory, progress.update, stop)
    print(f"loss {result['loss']:.4f} nats per token after {run.facts['tokens']:,} tokens")
    print(directory.path)
    return 0


if __name__ == "__main__":
    cli.run(main)
