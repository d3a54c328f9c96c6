"""Write the table of docs/machines.md: what the machines' own compilers say of language models from
125M to 70B parameters, beside the estimate.

python -m tools.machines_table [--row=h100:8]

Needs the extras `cuda` and `tpu`, and takes half an hour: each row is one call of
experiments.plan with --compile.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from research.io.text_table import format_table

PAGE = Path(__file__).parents[1] / "docs" / "machines.md"
BEGIN, END = "<!-- printed by `python -m tools.machines_table` -->", "<!-- end of the table -->"
HEADINGS = ("target", "parameters", "batch, context", "data, fsdp, tensor", "remat")
HEADINGS += ("GB", "live", "estimate", "fits", "step ≥", "MFU ≤", "received", "derived", "errors")


class Row(NamedTuple):
    target: str
    size: float
    batch: int
    context: int
    mesh: tuple[int, int, int]
    remat: str

    def command(self, *more: str) -> list[str]:
        mesh = ",".join(f"{a}:{n}" for a, n in zip(("data", "fsdp", "tensor"), self.mesh))
        flags = ["--config=configs/lm_transformer.py", "--vocab=32768", f"--mesh={mesh}", "--json"]
        config = {
            "size": self.size,
            "data.context": self.context,
            "batch.size": self.batch,
            "model.remat": self.remat,
            "model.dtype": "bfloat16",
            "model.unroll": 1,
            "horizon.unit": "steps",
            "horizon.amount": 1000,
            "loop.steps_per_dispatch": 4,
        }
        flags += [f"--config.{key}={value}" for key, value in config.items()]
        return [sys.executable, "-m", "experiments.plan", *flags, *more]


ROWS = (
    Row("h100:8", 125e6, 32, 2048, (1, 8, 1), "none"),
    Row("h100:8", 1.3e9, 32, 2048, (1, 8, 1), "none"),
    Row("h100:8", 6.7e9, 32, 2048, (1, 8, 1), "dots"),
    Row("h100:1x8x8", 6.7e9, 256, 2048, (1, 64, 1), "none"),
    Row("h100:1x8x8", 6.7e9, 256, 2048, (1, 64, 1), "projections"),
    Row("h100:1x8x8", 6.7e9, 256, 2048, (1, 64, 1), "full"),
    Row("h100:1x8x8", 6.7e9, 256, 2048, (1, 64, 1), "offload"),
    Row("h100:1x8x8", 13e9, 256, 2048, (1, 64, 1), "dots"),
    Row("h100:1x8x8", 70e9, 256, 2048, (1, 64, 1), "full"),
    Row("a100:8", 1.3e9, 32, 2048, (1, 8, 1), "none"),
    Row("tpu:v6e:4x4", 1.3e9, 64, 2048, (1, 16, 1), "full"),
    Row("tpu:v5p:4x4x4", 6.7e9, 128, 4096, (4, 16, 1), "full"),
    Row("tpu:v5p:4x4x4", 6.7e9, 128, 4096, (1, 16, 4), "full"),
    Row("tpu:v5e:16x16", 8e9, 256, 2048, (1, 256, 1), "full"),
)


def planned(row: Row, *more: str) -> dict[str, Any]:
    """What experiments.plan says of a row; also where it ends with an error of the program."""
    done = subprocess.run(row.command(*more), capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        raise SystemExit(f"{row.target}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def cells(row: Row, plan: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row; those of the compiler only where it was asked."""
    found = plan.get("compiled")
    total = found["bytes"]["total"] if found else plan["bytes"]["total"]
    received = sum(c["received"] for c in found["collectives"]) if found else 0.0
    return (
        row.target,
        f"{plan['params'] / 1e9:.3g}B",
        f"{row.batch}, {row.context}",
        ", ".join(map(str, row.mesh)),
        row.remat,
        f"{total / 1e9:.3g}" if found else "",
        f"{found['live'] / 1e9:.3g}" if found else "",
        f"{plan['bytes']['total'] / 1e9:.3g}",
        "yes" if total <= plan["available"] else "no",
        f"{plan['seconds']['step']:.3g}",
        f"{plan['mfu']:.0%}",
        f"{received / 1e9:.3g}" if found else "",
        f"{sum(plan['traffic'].values()) / 1e9:.3g}",
        str(len(found["errors"])) if found else "",
    )


def with_table(page: str, table: str) -> str:
    """The page with `table` between BEGIN and END."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise LookupError(f"no table between {BEGIN} and {END} in {PAGE}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", help="print the rows of this target and write nothing")
    args = parser.parse_args()
    rows, versions = [], {}
    for row in ROWS:
        if args.row in (None, row.target):
            plan = planned(row, f"--compile={row.target}")
            versions |= plan["compiled"]["versions"]
            rows.append(cells(row, plan))
            print(*rows[-1], *plan["compiled"]["errors"], sep=" | ", flush=True)
    if args.row is None:
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        made = f"{datetime.date.today()}, by {names}"
        table = f"{format_table(HEADINGS, rows, markdown=True)}\n\nCompiled on {made}."
        PAGE.write_text(with_table(PAGE.read_text(), table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
