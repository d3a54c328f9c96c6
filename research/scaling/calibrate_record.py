"""The measurements of a calibration as they are made: an interrupted one goes on where it was.

OUT/measured.jsonl   a line of a table and a method: {"of", "world", "number", "method", ...}

`of` is a digest of what a measurement depends on: the shape, the seed, the options and the code of
the fits. Lines of others are left alone.
"""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from research.errors import StorageError
from research.io import files, source
from research.scaling.calibrate import Answer, Measured, Plan

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
        for line in files.read(self.path, LARGEST).split(b"\n"):
            try:
                one = json.loads(line)
                of, measured = one.pop("of"), Measured(**one)
                answers = {name: _answer(x) for name, x in measured.answers.items()}
                task = (measured.world, measured.number)
                known = task in wanted and measured.method in self.plan.methods
                seconds = float(measured.seconds)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if of == self.of and known:
                measured = dataclasses.replace(measured, answers=answers, seconds=seconds)
                out[(*task, measured.method)] = measured
        return list(out.values())

    def add(self, some: Iterable[Measured]) -> None:
        """Append them, below whatever a process that was killed left of a line. Raises
        StorageError."""
        lines = [json.dumps({"of": self.of, **dataclasses.asdict(one)}) for one in some]
        try:
            with open(self.path, "a") as file:
                file.write("".join(f"\n{line}" for line in lines))
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from error


def _answer(ends: Any) -> Answer:
    """An estimate and its interval. Raises ValueError or TypeError for anything else."""
    value, low, high = (None if x is None else float(x) for x in ends)
    if any(x is not None and not math.isfinite(x) for x in (value, low, high)):
        raise ValueError("not finite")
    return value, low, high
