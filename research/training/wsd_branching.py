"""WSD branching: runs of one size share their stable phase. With a warmup–stable–decay schedule
(Hu et al. 2024) runs that differ in their horizon alone take the same steps until the first of
them decays. So the longer one starts where the shorter one's decay does, from its checkpoint, and
ends bit for bit where it would have ended alone.

shared_prefix.json, in the directory of such a run, says so (see shared_prefix.py).
"""

import bisect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import IsoflopError
from research.io import files
from research.parallel import distributed
from research.runs import made_by, metrics_log, restoring, stored_state
from research.runs.directory import RunDirectory, read_launch
from research.training.run import Run
from research.training.shared_prefix import FILE, SharedPrefix, forget

log = logging.getLogger(__name__)

# What decides the last bits, of launch.json: a state from elsewhere is not what this run would be.
ALIKE = (
    "mesh",
    "execution",
    "members",
    "processes",
    "versions",
    "cores",
    "instructions",
    "xla_flags",
    "code",
    "jax_config",
)
# A division may be off by an ulp on some device, so a share this near to 1 counts as decayed.
MARGIN = np.float32(1 + 1e-6)


def steps_before_decay(run: Run) -> int:
    """How many updates of a `wsd` run come before its decay; every longer run of the same numbers
    makes the same ones. 0 for other schedules."""
    if run.schedule.name != "wsd":
        return 0
    total, decay = run.hyper.total, run.hyper.schedule["decay"]
    length = np.maximum(decay * total, np.float32(1)) * MARGIN  # as schedules.wsd, in float32
    return bisect.bisect_left(
        range(run.steps), True, key=lambda step: bool(total - 1 - np.float32(step) < length)
    )


def start_from_prefix(
    directory: RunDirectory,
    prefixes: Sequence[SharedPrefix],
    abstract: Any,
    show: Callable[[int, Mapping[str, float]], None],
) -> tuple[int, Any] | None:
    """(step, state) from the first of `prefixes` that has an intact checkpoint of steps that are
    also this run's, with its learning curve up to there; None if there is none."""
    choice = distributed.broadcast(lambda: _choose_prefix(directory, prefixes))
    if choice is None:
        return None
    index, step, name = choice
    prefix = prefixes[index]
    path = prefix.path / "checkpoints" / name
    try:
        state = restoring.restore(path, abstract)
    except IsoflopError:
        if not restoring.any_damaged(path):
            raise
        return start_from_prefix(directory, prefixes, abstract, show)
    distributed.broadcast(directory.check_lease)
    if not directory.writes:
        return step, state
    files.write_json(directory.path / FILE, {"run": prefix.path.name, "step": step})
    directory.append(resume=0)
    for record in metrics_log.read_records(prefix.path):
        if record["step"] < step:
            directory.append(**{**record, "seconds": 0.0})  # none of it was spent here
            at, hidden = record["step"], ("step", "tokens", "seconds")
            show(at, {k: v for k, v in record.items() if k not in hidden})
    log.info("%s: begins at step %d, from %s", directory.path.name, step, prefix.path.name)
    return step, state


def _choose_prefix(
    directory: RunDirectory, prefixes: Sequence[SharedPrefix]
) -> tuple[int, int, str] | None:
    """Which of `prefixes`, and the step and name of its checkpoint; forgets an earlier choice."""
    forget(directory)
    choices = (_checkpoint(directory.path, prefix) for prefix in prefixes)
    return next(((i, *choice) for i, choice in enumerate(choices) if choice), None)


def _checkpoint(own: Path, prefix: SharedPrefix) -> tuple[int, str] | None:
    """The step, and the name of its checkpoint, from which a run may begin."""
    here, there = read_launch(own) or {}, read_launch(prefix.path)
    if there is None:
        return None
    made = (there, *({**there, **x["made_by"]} for x in made_by.launches(prefix.path)))
    if differing := [key for key in ALIKE if any(here.get(key) != x.get(key) for x in made)]:
        words = ", ".join(differing)
        log.info("%s: not begun from %s, another %s", own.name, prefix.path.name, words)
        return None
    newest = next(stored_state.intact_checkpoints(prefix.path, prefix.steps), None)
    return (newest[0], newest[1].name) if newest else None
