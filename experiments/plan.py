"""Plan a run for machines that are not here: memory, traffic, best step time and MFU, what fits.

  python -m experiments.plan --config=configs/lm_transformer.py --devices=4096 --device=h100
      --config.size=7e9 --config.data.context=2048 --config.batch.size=4096 --vocab=32000
      --config.horizon.unit=tokens_per_param --config.horizon.amount=20
      [--mesh=data:8,fsdp:64,tensor:8] [--exact] [--json]

Without --mesh the best one is searched for. With --vocab the text need not be there. --exact
compiles the run for simulated devices and shows what XLA reserves. Nothing is allocated, and
nothing here was measured on such machines.
"""

import json
from collections.abc import Sequence

from research.config import cli
from research.config.loading import validated
from research.errors import BadInput
from research.planning import hardware


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--devices", type=int, default=8, help="how many devices")
    parser.add_argument("--device", default="h100", help=", ".join(hardware.MACHINES))
    parser.add_argument(
        "--mesh", default="", metavar="AXIS:DEVICES,...", help="this mesh, not the best one"
    )
    parser.add_argument("--vocab", type=int, help="vocabulary of text that need not be there")
    parser.add_argument("--largest", action="store_true", help="find the largest model that fits")
    parser.add_argument(
        "--exact", action="store_true", help="compile it here, for simulated devices"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args, config, _ = cli.parse_config(parser, argv)
    machine = hardware.machine_named(args.device)
    for name in ("devices", "vocab"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"--{name}={value}: expected at least 1")
    config = validated(config)

    from research.planning import cluster, xla_memory  # jax from here on

    mesh = cluster.parse_mesh(config, args.mesh, args.devices)
    run = cluster.run_without_data(config, args.vocab)
    if mesh:
        plan = cluster.plan_for_mesh(run, machine, mesh, alternatives=True)
    else:
        plan = cluster.best_mesh(run, machine, args.devices, alternatives=True)
    largest = None
    if args.largest:
        largest = cluster.largest_size(config, args.vocab, machine, args.devices, mesh)
    out = cluster.plan_to_json(plan, run, args.device, largest)
    text = cluster.format_plan(plan, run, args.device, largest)
    if args.exact:
        reserved = xla_memory.measure_reserved(config, args.vocab, plan.mesh)
        predicted = cluster.unfused_dispatch_bytes(run, plan.mesh)
        out["exact"] = reserved._asdict() | {"peak": reserved.peak, "predicted": predicted}
        text += (
            f"\nXLA on CPU, where attention writes its map, reserves {reserved.peak:,} bytes for a "
            f"dispatch; predicted for it: {predicted:,.0f} ({predicted / reserved.peak - 1:+.1%})"
        )
    print(json.dumps(out) if args.json else text)
    return 0


if __name__ == "__main__":
    cli.run(main)
