"""Moments of a run (`eval.at`, `save.at`) as steps."""

import functools
import itertools
import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


def steps_at(key: str, moments: Sequence[str | int], total: int) -> frozenset[int]:
    """The steps, from 1 on and before the last, that the moments of a checked config are in a run
    of `total` steps. What is no step of it is told; after the last one it is evaluated and saved
    anyhow."""
    out: set[int] = set()
    for moment in moments:
        if isinstance(moment, str) and not moment.endswith("%"):
            base = float(moment.removeprefix("powers of "))
            powers = (round(base**k) for k in itertools.count())
            out.update(itertools.takewhile(lambda step: step < total, powers))
            continue
        of_run = isinstance(moment, str)
        step = round(float(moment[:-1]) / 100 * total) if of_run else moment
        if not 0 < step <= total:
            _warn(f"{key}: {moment} is no step of a run of {total:,}")
        out.add(step)
    return frozenset(step for step in out if 0 < step < total)


@functools.cache  # once a process, whatever the points of a sweep
def _warn(words: str) -> None:
    log.warning("%s", words)
