"""Moments of a run (`eval.at`, `save.at`) as steps."""

import itertools
from collections.abc import Sequence


def steps_at(moments: Sequence[str | int], total: int) -> frozenset[int]:
    """The steps, from 1 on and before the last, that the moments of a checked config are in a run
    of `total` steps."""
    out: set[int] = set()
    for moment in moments:
        if isinstance(moment, int):
            out.add(moment)
        elif moment.endswith("%"):
            out.add(round(float(moment[:-1]) / 100 * total))
        else:
            base = float(moment.removeprefix("powers of "))
            powers = (round(base**k) for k in itertools.count())
            out.update(itertools.takewhile(lambda step: step < total, powers))
    return frozenset(step for step in out if 0 < step < total)
