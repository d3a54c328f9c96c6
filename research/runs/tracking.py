"""Whether a run is where its training curve was forecast to be.

A forecast is {"share", "loss", "sd"}: losses of batches at shares of training, and their standard
deviations beside the noise of batches (research/scaling/collapse.py).
"""

import bisect
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW = 0.25  # of the logarithm of the share: the newest records that are compared
FEWEST = 8  # records
BEGIN = 0.05  # share from which on a run is watched: before it warms up
LIMIT = 3.0  # standard deviations from which it is off track
MOVED = 1.5  # factor from which on a gradient norm, or a rate, has moved
MEDIAN_OF_NORMAL = 0.6745  # of the size of what is normal with a standard deviation of one


@dataclass(frozen=True)
class Track:
    """How far a run is off its forecast at a share of its training: in standard deviations,
    positive above, and relative; and what else moved within the records compared."""

    share: float
    sds: float
    relative: float
    moved: str = ""

    @property
    def off(self) -> bool:
        return abs(self.sds) >= LIMIT

    def __str__(self) -> str:
        where = "above" if self.sds > 0 else "below"
        if not self.off:
            return f"on track at {self.share:.0%}: {abs(self.sds):.1f} sd {where}"
        moved = f"; {self.moved}" if self.moved else ""
        return f"off track at {self.share:.0%}: {abs(self.sds):.1f} sd {where}{moved}"


def track(
    curve: Mapping[str, Sequence[float]] | None, records: Sequence[Mapping[str, Any]], steps: int
) -> Track | None:
    """Where a run of `steps` is, by its newest records; None without a forecast, or too early."""
    losses = [record for record in records if "train_loss" in record]
    if not curve or not losses:
        return None
    end = (losses[-1]["step"] + 1) / steps
    begin = max(end * math.exp(-WINDOW), curve["share"][0])
    new = [record for record in losses if (record["step"] + 1) / steps >= begin]
    if end < BEGIN or len(new) < FEWEST:
        return None
    expected = [_at(curve["share"], curve["loss"], (record["step"] + 1) / steps) for record in new]
    off = [record["train_loss"] - e for record, e in zip(new, expected, strict=True)]
    mean, level = statistics.fmean(off), statistics.fmean(expected)
    falls = [abs(b - a) / math.sqrt(2) for a, b in itertools.pairwise(off)]
    noise = statistics.median(falls) / MEDIAN_OF_NORMAL / math.sqrt(len(off))
    sd = math.hypot(noise, _at(curve["share"], curve["sd"], end))
    return Track(end, mean / sd, mean / level, _moved(new))


def _at(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """Linear between the points, and what is at the nearest end beyond them."""
    i = bisect.bisect_left(x, at)
    if i in (0, len(x)):
        return y[0] if i == 0 else y[-1]
    part = (at - x[i - 1]) / (x[i] - x[i - 1])
    return y[i - 1] + part * (y[i] - y[i - 1])


def _moved(records: Sequence[Mapping[str, Any]]) -> str:
    """What differs between the first and the second half of records: gradient norm and rate."""
    half, words = len(records) // 2, []
    for name, title in (("grad_norm", "gradient norm"), ("lr", "learning rate")):
        values = [record[name] for record in records
                  if isinstance(record.get(name), int | float) and record[name] > 0]  # fmt: skip
        if len(values) < len(records):
            continue
        factor = statistics.median(values[half:]) / statistics.median(values[:half])
        if not 1 / MOVED < factor < MOVED:
            words.append(f"{title} {factor:.2g} times what it was")
    return ", ".join(words)
