"""The measurements of a calibration as they are made: an interrupted one goes on where it was.

OUT/measured.jsonl   a line of a table and a method: {"of", "world", "number", "method", ...}

`of` is a digest of what a measurement depends on: the shape, the seed, the options and the code of
the fits. Lines of others are left alone.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from research.io import files, source
from research.scaling.calibrate import Measured, Plan

ROOMS = ("research/scaling/", "research/tables/")
LARGEST = 1 << 30  # bytes


class Record:
    """The measurements of a plan in a folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        code = {k: v for k, v in source.library().files.items() if k.startswith(ROOMS)}
        depends = {"shape": dataclasses.asdict(plan.shape), "seed": plan.seed}
        self.of = files.digest_of(depends | {"options": dict(plan.options), "code": code})
        self.path, self.plan = folder / "measured.jsonl", plan

    def read(self) -> list[Measured]:
        """Those of the plan that are there. A line that was cut off or damaged is none."""
        if not self.path.exists():
            return []
        wanted, out = {*self.plan.tasks()}, {}
        for line in files.text(self.path, LARGEST).splitlines():
            try:
                one = json.loads(line)
                of, measured = one.pop("of"), Measured(**one)
                answers = {name: tuple(x) for name, x in measured.answers.items()}
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            task = (measured.world, measured.number)
            if of == self.of and task in wanted and measured.method in self.plan.methods:
                measured = dataclasses.replace(measured, answers=answers)
                out[(*task, measured.method)] = measured
        return list(out.values())

    def add(self, some: Iterable[Measured]) -> None:
        """Append them, below whatever a process that was killed left of a line."""
        lines = [json.dumps({"of": self.of, **dataclasses.asdict(one)}) for one in some]
        with open(self.path, "a") as file:
            file.write("".join(f"\n{line}" for line in lines))
