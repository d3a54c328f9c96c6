"""Check whether learning rate and the other hyperparameters transfer to larger models.

  python -m experiments.transfer --config=configs/transfer.py --workdir=DIR
  python -m experiments.transfer --config=FILE --workdir=DIR --stages=rate --rate_widths=64,256

Every stage compares the config's rule with the standard parametrization. coordinates: ten steps at
several widths and depths; how activations and their changes scale. rate: a sweep of learning rates
x widths; the best rate of every width. regret: at the largest width, the excess loss of the base
width's best rate over the best one there, in fresh seeds.

Writes DIR/transfer.json and figures; the last line is its path. Launch the same command again to
resume.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research import launch
from research.config import cli, stop_signal, transfer_flags
from research.config.loading import validated
from research.errors import UNFINISHED, BadInput
from research.io import files
from research.sweep.sweep_file import GROUPING_HELP


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    transfer_flags.add_flags(parser)
    launch.add_flags(parser)
    stop_signal.add_flag(parser)
    parser.add_argument("--grouping", default="auto", help=GROUPING_HELP)
    args, config, _ = cli.parse_config(parser, argv)
    asked, how = transfer_flags.parse_flags(args), launch.parse_flags(args)
    config, workdir = validated(config, args.config), Path(args.workdir)
    if config["optim"]["transfer"]["rule"] == "none":
        raise BadInput("optim.transfer.rule: none; expected the rule that is to be checked")

    from research.parallel import jax_settings
    from research.report import transfer_text
    from research.sweep import transfer, transfer_rates  # jax from here on
    from research.sweep.launcher import LaunchOptions
    from research.training import watchdog

    jax_settings.prepare()
    document: dict[str, Any] = {}
    missing: Mapping[str, str] = {}
    if "coordinates" in asked.stages:
        check = dataclasses.replace(transfer.default_check(config), **asked.check)
        folder = files.make_directory(workdir / "coordinates")
        document["coordinates"] = transfer.coordinate_check(config, check, folder, show)
    if {"rate", "regret"} & set(asked.stages):
        rates = dataclasses.replace(transfer_rates.default_rates(config), **asked.rates)
        options = LaunchOptions(*how, args.grouping)
        orderly = options.executor != "inline" or options.num_processes > 1
        with stop_signal.StopSignal(orderly, args.end) as stop, watchdog.watching():
            trained = transfer_rates.launcher_of(workdir, stop, options, show)
            sweep = transfer_rates.RateSweep(config, rates, workdir, trained)
            missing = sweep.fill(document, asked.stages)
    print(transfer_text.write(document, workdir))
    for run_id, reason in missing.items():
        print(f"missing: run {run_id}: {reason}")
    print(workdir / transfer_text.FILE)
    return UNFINISHED if missing else 0


def show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
