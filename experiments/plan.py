"""Plan a run for machines you do not have: memory, traffic, best step time and MFU, what fits.

  python -m experiments.plan --config=configs/lm_transformer.py --devices=4096 --device=h100
      --config.size=7e9 --config.data.context=2048 --config.batch.size=4096 --vocab=32000
      --config.horizon.unit=tokens_per_param --config.horizon.amount=20
      [--mesh=data:8,fsdp:64,tensor:8] [--compile=h100:8] [--json]

Without --mesh the best one is found by an estimate accurate to about 30 %. With --vocab no text is
needed. --compile=TARGET runs the target's own compiler, without its devices: h100:8, h100:1x8x8 (8
hosts of 8), tpu:v5e:16x16, tpu:v5p:4x4x4, tpu:v6e:4x4, cpu:8; exit code 2 if the program gathers or
moves arrays that it should not. Nothing is allocated, and nothing was measured on such machines.
"""

import json
import os
from collections.abc import Sequence

from research.config import cli
from research.config.loading import validated
from research.errors import BadInput
from research.planning import hardware, targets


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--devices", type=int, help="how many devices (8)")
    parser.add_argument("--device", help=f"{', '.join(hardware.MACHINES)} (h100)")
    parser.add_argument(
        "--mesh",
        default="",
        metavar="AXIS:DEVICES,...",
        help="use this mesh instead of the best one",
    )
    parser.add_argument("--vocab", type=int, help="vocabulary size, in place of a text")
    parser.add_argument("--largest", action="store_true", help="find the largest model that fits")
    parser.add_argument("--compile", metavar="TARGET", help="compile it for h100:8, tpu:v5e:4x4, …")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args, config, _ = cli.parse_config(parser, argv)
    target = targets.parse_target(args.compile) if args.compile else None
    if target and (args.device or args.devices):
        raise BadInput(f"--compile={target.text} names the devices; leave out --device, --devices")
    device = target.device if target else args.device or "h100"
    devices = target.devices if target else 8 if args.devices is None else args.devices
    machine = None if device == "cpu" and target else hardware.machine_named(device)
    for name, value in (("devices", devices), ("vocab", args.vocab)):
        if value is not None and value < 1:
            raise BadInput(f"--{name}={value}: expected at least 1")
    config = validated(config, args.config)
    os.environ["JAX_PLATFORMS"] = "cpu"  # no device is needed, so none is taken

    from research.planning import cluster, compiled  # jax from here on

    mesh = cluster.parse_mesh(config, args.mesh, devices)
    run = cluster.run_without_data(config, args.vocab)
    out, text, available = {}, "", None
    if machine:
        if mesh:
            plan = cluster.plan_for_mesh(run, machine, mesh, alternatives=True)
        else:
            plan = cluster.best_mesh(run, machine, devices, alternatives=True)
        largest = None
        if args.largest:
            largest = cluster.largest_size(config, args.vocab, machine, devices, mesh)
        out = cluster.plan_to_json(plan, run, device, largest)
        text = cluster.format_plan(plan, run, device, largest)
        mesh, available = plan.mesh, plan.available
    if target:
        mesh = mesh or {"data": devices, "fsdp": 1, "tensor": 1}
        found = compiled.compile_for(config, args.vocab, run, mesh, target)
        out["compiled"] = found
        text += "\n\n" * bool(text) + compiled.format_compiled(found, available)
    print(json.dumps(out) if args.json else text)
    return BadInput.exit_code if target and out["compiled"]["errors"] else 0


if __name__ == "__main__":
    cli.run(main)
