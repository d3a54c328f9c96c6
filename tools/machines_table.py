"""Write the tables of docs/machines.md: 125M to 70B parameters on 8 to 4,096 devices.

python -m tools.machines_table [--device=h100 --device=a100]

Takes minutes. For each cell the best of some meshes, and the least remat with which it fits; the
batch is EACH sequences for each device.
"""

import argparse
import copy
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import validation
from research.config.loading import load_config, validated
from research.io.text_table import format_table
from research.planning import cluster, hardware
from research.planning.cluster import Plan
from research.planning.hardware import Machine
from research.training.run import Run

PAGE = Path(__file__).parents[1] / "docs" / "machines.md"
SIZES = (125e6, 350e6, 1.3e9, 7e9, 13e9, 70e9)
COUNTS = (8, 64, 512, 4096)
EACH, VOCAB = 4, 32768
# Of configs/lm_transformer.py; how long a run is decides nothing here, if it has a step.
CONFIG = {"data.context": 2048, "model.dtype": "bfloat16"}
CONFIG |= {"horizon.unit": "tokens_per_param", "horizon.amount": 20.0}
HEADINGS = (
    *("parameters", "devices", "data, fsdp, tensor", "remat", "GB", "fits", "step ≥", "MFU ≤"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", action="append", choices=hardware.MACHINES)
    args = parser.parse_args()
    config, _ = load_config("configs/lm_transformer.py")
    config, problems = validation.override(config, CONFIG)
    assert not problems, problems
    for device in args.device or ("h100", "a100"):
        table = machines_table(validated(config), hardware.machine_named(device))
        PAGE.write_text(with_table(PAGE.read_text(), device, table))
    return 0


def with_table(page: str, device: str, table: str) -> str:
    """The page with `table` in place of that under the heading of `device`."""
    pattern = rf"(?<=\n### {device.upper()}\n\n)(\|.*\n)+"
    if not re.search(pattern, page):
        raise LookupError(f"no table under '### {device.upper()}' in {PAGE}")
    return re.sub(pattern, lambda _: table + "\n", page, count=1)


def machines_table(config: Mapping[str, Any], machine: Machine) -> str:
    """SIZES on COUNTS devices, as Markdown. The config says all but the size and the batch."""
    rows = []
    for size in SIZES:
        for devices in COUNTS:
            plan, run = best_plan(config, size, devices, machine)
            rows.append((
                f"{run.facts['params'] / 1e9:.3g}B",
                f"{devices}",
                ", ".join(str(n) for n in plan.mesh.values()),
                str(run.execution.remat),
                f"{plan.bytes.total / 1e9:.3g}",
                "yes" if plan.fits else "no",
                f"{plan.seconds.step:.3g}",
                f"{plan.mfu:.0%}",
            ))  # fmt: skip
    return format_table(HEADINGS, rows, markdown=True)


def best_plan(
    config: Mapping[str, Any], size: float, devices: int, machine: Machine
) -> tuple[Plan, Run]:
    """The fastest plan with the least remat with which any fits, or that of the fewest bytes."""
    config = copy.deepcopy(dict(config))
    config["size"], config["batch"]["size"] = size, EACH * devices
    run, tried = cluster.run_without_data(config, VOCAB), []
    for remat in ("none", "dots", "full"):
        run = cluster.with_execution(run, remat=remat)
        meshes = promising_meshes(list(cluster.candidate_meshes(run, machine, devices)), machine)
        tried += [(cluster.plan_for_mesh(run, machine, mesh), run) for mesh in meshes]
        if fitting := [pair for pair in tried if pair[0].fits]:
            return min(fitting, key=lambda pair: pair[0].seconds.step)
    return min(tried, key=lambda pair: pair[0].bytes.total)


def promising_meshes(meshes: list[dict[str, int]], machine: Machine) -> list[dict[str, int]]:
    """For each tensor size the meshes whose fsdp axis is a node, 64 devices or the longest."""
    longest: dict[int, int] = {}
    for mesh in meshes:
        longest[mesh["tensor"]] = max(longest.get(mesh["tensor"], 0), mesh["fsdp"])
    return [
        mesh
        for mesh in meshes
        if mesh["fsdp"] in (machine.node // mesh["tensor"], 64, longest[mesh["tensor"]])
    ]


if __name__ == "__main__":
    sys.exit(main())
