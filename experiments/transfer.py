"""Whether the numbers of a config transfer to larger models: the check of its rule of transfer.

  python -m experiments.transfer --config=configs/transfer.py --workdir=DIR
  python -m experiments.transfer --config=FILE --workdir=DIR --widths=64,128,256 --depths=2,4,8

Stages: coordinates (ten steps of models of several widths and depths: how large the activations of
every module are and how far they move, and the slopes of both against the shape), with the rule and
with the standard parametrization beside it. Writes DIR/transfer.json, whose path is the last line.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from research.config import cli
from research.config.loading import validated
from research.errors import BadInput
from research.io import files

STAGES = ("coordinates",)


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="where transfer.json is written")
    parser.add_argument("--stages", default=",".join(STAGES), help=", ".join(STAGES))
    parser.add_argument("--widths", help="1, 2, 4 and 8 times the base width by default")
    parser.add_argument("--depths", help="2,4,8,16,32 by default")
    parser.add_argument("--seeds", type=int, default=3, help="of the initialization, at least 2")
    parser.add_argument("--lr", type=float, help="of the check; that of the config by default")
    args, config, _ = cli.parse_config(parser, argv)
    if unknown := [name for name in args.stages.split(",") if name not in STAGES]:
        raise BadInput(f"--stages={args.stages}: {unknown[0]!r}; expected {', '.join(STAGES)}")
    if args.seeds < 2:
        raise BadInput(f"--seeds={args.seeds}: expected at least 2, of which an interval is made")
    if args.lr is not None and not 0 < args.lr < math.inf:
        raise BadInput(f"--lr={args.lr}: expected a number above 0")
    widths, depths = parse_counts("widths", args.widths), parse_counts("depths", args.depths)
    config = validated(config)
    if config["optim"]["transfer"]["rule"] == "none":
        raise BadInput("optim.transfer.rule: none; expected the rule that is to be checked")

    from research.parallel import jax_settings
    from research.report import transfer_text
    from research.sweep import transfer  # jax from here on

    jax_settings.prepare()
    check = transfer.default_check(config)
    changes = {"widths": widths or check.widths, "depths": depths or check.depths}
    check = dataclasses.replace(check, **changes, seeds=args.seeds, lr=args.lr)
    folder = files.make_directory(Path(args.workdir) / "coordinates")
    found = transfer.coordinate_check(config, check, folder, lambda line: print(line, flush=True))
    path = Path(args.workdir) / "transfer.json"
    files.write_json(path, {"coordinates": found})
    print(transfer_text.coordinates(found))
    transfer_text.draw(found).save(path.with_name("coordinates"))
    print(path)
    return 0


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
