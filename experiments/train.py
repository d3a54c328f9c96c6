"""Train one run of a config, or resume it.

python -m experiments.train --config=configs/lm_transformer.py --config.size=3e5 --workdir=DIR
python -m experiments.train --config=DIR/runs/<id>/config.json --workdir=OTHER     (repeat a run)

--num_processes=K uses K processes on this machine. Across hosts, start this command K times with
--coordinator_address=HOST:PORT --num_processes=K --process_id=I, or use a scheduler (srun) with
--coordinator_address=auto.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from research.config import cli, process_flags, stop_signal
from research.config.loading import validated
from research.errors import DIVERGED, BadInput
from research.io.host import orphaned


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the run is written to WORKDIR/runs/<id>")
    process_flags.add_flags(parser)
    stop_signal.add_flag(parser)
    process_flags.add_run_flags(parser)
    parser.add_argument("--resume", action="store_true", help="only resume; start no new run")
    help_ = "trace this many steps, after compilation, into the run's profile/"
    parser.add_argument("--profile", type=int, default=0, metavar="STEPS", help=help_)
    help_ = "train even if predicted to run out of memory"
    parser.add_argument("--force", action="store_true", help=help_)
    args, config, _ = cli.parse_config(parser, argv)
    if args.profile < 0:
        raise BadInput(f"--profile={args.profile}: expected a number of steps, of at least 1")
    config = validated(config, args.config)
    place, launcher = process_flags.distributed_options(args), orphaned()
    count = 1 if place is not None else process_flags.process_count(args)
    with stop_signal.StopSignal(orderly=count > 1, end=args.end) as stop:
        if count > 1:
            from research.launch import process_group

            return stop.passed(process_group.run_group("train", argv, count, stop))

        from research.parallel import distributed, jax_settings
        from research.training import watchdog  # jax from here on

        jax_settings.prepare(alone=place is None)
        with distributed.join_processes(place), watchdog.watching():
            return train_one(config, args, lambda: stop() or launcher())


def train_one(config: Mapping[str, Any], args: argparse.Namespace, stop: Any) -> int:
    from research.parallel import distributed
    from research.runs import lease
    from research.runs.directory import ReadOnlyRunDirectory, RunDirectory
    from research.training.loop import preflight, train_run
    from research.training.make_run import make_run
    from research.training.progress import Progress

    run = make_run(config)
    directory_type = RunDirectory if distributed.is_primary() else ReadOnlyRunDirectory
    directory = directory_type(args.workdir, run.id, patience=2 * lease.TIMEOUT)
    directory.accept_changes, directory.labels = args.accept_changes, process_flags.labels(args)
    for rule in run.facts["rules"].splitlines():
        print(rule)
    if result := distributed.broadcast(lambda: directory.result):
        print(f"run {run.id} is {result['status']} already: {directory.path}")
        return DIVERGED if result["status"] == "diverged" else 0
    distributed.broadcast(directory.check_not_held)
    if distributed.broadcast(lambda: args.resume or directory.beside_others):
        from research.training import similar_runs

        distributed.broadcast(lambda: similar_runs.report(args.workdir, run, args.resume))
    if (large := preflight(run, directory)) and not args.force:
        from research.planning import memory  # which traces a step

        memory.check_fits(*large)
    with directory, Progress([run.facts]) as progress:
        progress.start_run(run.facts)
        result = train_run(run, directory, progress.update, stop, profile_steps=args.profile)
    print(result_line(result))
    print(directory.path)
    return 0


def result_line(result: Mapping[str, Any]) -> str:
    """The scores of a run, in the order in which its task declares them."""
    from research.runs.schema import scores

    loss, *metrics = scores(result)
    amount = f"{result['tokens']:,} {'examples' if result['context'] == 1 else 'tokens'}"
    line = ", ".join([f"{loss} {result['loss_unit']} after {amount}", *metrics])
    if "closed_form_distance" in result:
        line += f" ({result['closed_form_distance']:.1e} away)"
    return line


if __name__ == "__main__":
    cli.run(main)
