"""Whether the numbers of a config transfer to larger models: the check of its rule of transfer.

  python -m experiments.transfer --config=configs/transfer.py --workdir=DIR
  python -m experiments.transfer --config=FILE --workdir=DIR --stages=rate --rate_widths=64,256

Every stage has the config's rule, and beside it the standard parametrization. coordinates: ten
steps of models of several widths and depths: how large the activations of every module are and how
far they move, and the slopes of both against the shape. rate: learning rates x widths, each run as
long as the config says: the best rate of every width. regret: at the largest of these widths, what
the best rate of the base width loses against the best one there, by fresh seeds.

Writes DIR/transfer.json with the stages that were asked for, and figures; the last line is its
path. Launch the same command again to resume.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research import launch
from research.config import cli, stop_signal
from research.config.loading import validated
from research.errors import UNFINISHED, BadInput
from research.io import files
from research.sweep.sweep_file import GROUPING_HELP

STAGES = ("coordinates", "rate", "regret")


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="where transfer.json is written")
    parser.add_argument("--stages", default=",".join(STAGES), help=", ".join(STAGES))
    parser.add_argument("--widths", help="1, 2, 4 and 8 times the base width by default")
    parser.add_argument("--depths", help="2,4,8,16,32 by default")
    parser.add_argument("--seeds", type=int, default=3, help="of the initialization, at least 2")
    parser.add_argument("--lr", type=float, help="of the check; that of the config by default")
    help_ = "whether it starts at 0 in the check, or as the family draws it"
    parser.add_argument("--head", choices=("zero", "drawn"), default="zero", help=help_)
    help_ = "of the runs; 1/2, 1, 2 and 4 times the base width by default"
    parser.add_argument("--rate_widths", help=help_)
    help_ = "learning rates, as multiples of the config's; 1/8 to 8 by factors of 2 by default"
    parser.add_argument("--factors", help=help_)
    parser.add_argument("--fresh_seeds", type=int, default=2, help="of the regret, at least 2")
    launch.add_flags(parser)
    stop_signal.add_flag(parser)
    parser.add_argument("--grouping", default="auto", help=GROUPING_HELP)
    args, config, _ = cli.parse_config(parser, argv)
    stages = args.stages.split(",")
    if unknown := [name for name in stages if name not in STAGES]:
        raise BadInput(f"--stages={args.stages}: {unknown[0]!r}; expected {', '.join(STAGES)}")
    for name in ("seeds", "fresh_seeds"):
        if (given := getattr(args, name)) < 2:
            raise BadInput(f"--{name}={given}: expected at least 2, of which an interval is made")
    if args.lr is not None and not 0 < args.lr < math.inf:
        raise BadInput(f"--lr={args.lr}: expected a number above 0")
    shapes = {name: parse_counts(name, getattr(args, name)) for name in ("widths", "depths")}
    varied = {
        "widths": tuple(sorted(parse_counts("rate_widths", args.rate_widths))),
        "factors": parse_factors(args.factors),
    }
    how = launch.parse_flags(args)
    config = validated(config)
    if config["optim"]["transfer"]["rule"] == "none":
        raise BadInput("optim.transfer.rule: none; expected the rule that is to be checked")

    from research.parallel import jax_settings
    from research.sweep import transfer, transfer_rates  # jax from here on
    from research.sweep.launcher import LaunchOptions

    jax_settings.prepare()
    check = transfer.default_check(config)
    changes = {"seeds": args.seeds, "lr": args.lr, "zero_head": args.head == "zero"}
    check = dataclasses.replace(check, **_given(shapes), **changes)
    rates = transfer_rates.default_rates(config)
    rates = dataclasses.replace(rates, **_given(varied), seeds=args.fresh_seeds)
    workdir, options = Path(args.workdir), LaunchOptions(*how, args.grouping)
    document: dict[str, Any] = {}
    if "coordinates" in stages:
        folder = files.make_directory(workdir / "coordinates")
        document["coordinates"] = transfer.coordinate_check(config, check, folder, _show)
    missing = {}
    if {"rate", "regret"} & set(stages):
        found, missing = _rates(config, rates, workdir, options, args.end, "regret" in stages)
        document |= {name: part for name, part in found.items() if name in stages}
    return _finish(workdir, document, missing)


def _rates(
    config: dict, rates: Any, workdir: Path, options: Any, end: Any, regret: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The documents of the stages of runs, and the runs that are missing for another."""
    from research.sweep import transfer_rates
    from research.sweep.launcher import choose_executor, launch_sweep
    from research.sweep.points import describe_status
    from research.training import watchdog

    orderly = options.executor != "inline" or options.num_processes > 1
    found: dict[str, Any] = {}
    with stop_signal.StopSignal(orderly, end) as stop, watchdog.watching():

        def train(points: Sequence) -> Any:
            _show(describe_status(points))
            return launch_sweep(points, workdir, stop, choose_executor(options, points, workdir))

        sweep = transfer_rates.RateSweep(config, rates, workdir, train)
        try:
            found["rate"] = sweep.rate()
            if regret:
                found["regret"] = sweep.regret(found["rate"])
        except transfer_rates.Unfinished as error:
            return found, dict(error.missing)
    return found, {}


def _finish(workdir: Path, document: dict[str, Any], missing: dict[str, str]) -> int:
    from research.report import transfer_text

    path = workdir / "transfer.json"
    files.write_json(path, document)
    for name, part in document.items():
        print(transfer_text.WRITTEN[name](part))
        transfer_text.DRAWN[name](part).save(path.with_name(name))
    for run_id, reason in missing.items():
        print(f"missing: run {run_id}: {reason}")
    print(path)
    return UNFINISHED if missing else 0


def _show(line: str) -> None:
    print(line, flush=True)


def _given(changes: dict[str, tuple]) -> dict[str, tuple]:
    return {name: value for name, value in changes.items() if value}


def parse_factors(text: str | None) -> tuple[float, ...]:
    """Numbers above 0 joined by commas, ascending, at least three. Raises BadInput."""
    if text is None:
        return ()
    try:
        factors = tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        factors = ()
    wrong = len(set(factors)) != len(factors) or not all(0 < x < math.inf for x in factors)
    if wrong or len(factors) < 3:
        raise BadInput(f"--factors={text}: expected at least three numbers above 0: 0.5,1,2")
    return factors


def parse_counts(name: str, text: str | None) -> tuple[int, ...]:
    """Whole numbers joined by commas, each once, at least two. Raises BadInput."""
    if text is None:
        return ()
    parts = text.split(",")
    counts = tuple(int(part) for part in parts if part.isdigit() and int(part) > 0)
    if len(counts) != len(parts) or len(set(counts)) != len(counts) or len(counts) < 2:
        raise BadInput(f"--{name}={text}: expected at least two whole numbers joined by commas")
    return counts


if __name__ == "__main__":
    cli.run(main)
