"""WSD branching: runs of one size share their stable phase. With a warmup–stable–decay schedule
(Hu et al. 2024) runs that differ in their horizon alone take the same steps until the first of
them decays. So the longer one starts where the shorter one's decay does, from its checkpoint, and
ends bit for bit where it would have ended alone.

shared_prefix.json, in the directory of such a run, says whose steps it did not take itself.
"""

import bisect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import Damaged, IsoflopError
from research.io import files
from research.parallel import distributed
from research.runs import checkpoint, metrics_log
from research.runs.directory import RunDirectory, read_launch, read_run_file
from research.training.run import Run

log = logging.getLogger(__name__)

FILE = "shared_prefix.json"
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
)
# A division may be off by an ulp on some device, so a share this near to 1 counts as decayed.
MARGIN = np.float32(1 + 1e-6)


@dataclass(frozen=True)
class SharedPrefix:
    """The directory of a shorter run, of which the first `steps` updates are this run's too."""

    path: Path
    steps: int


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
        state = checkpoint.restore(path, abstract)
    except IsoflopError:
        if not checkpoint.any_damaged(path):
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
    directory.check_lease()
    (directory.path / FILE).unlink(missing_ok=True)
    choices = (_checkpoint(directory.path, prefix) for prefix in prefixes)
    return next(((i, *choice) for i, choice in enumerate(choices) if choice), None)


def _checkpoint(own: Path, prefix: SharedPrefix) -> tuple[int, str] | None:
    """The step, and the name of its checkpoint, from which a run may begin."""
    here, there = read_launch(own) or {}, read_launch(prefix.path)
    if there is None:
        return None
    if differing := [key for key in ALIKE if here.get(key) != there.get(key)]:
        words = ", ".join(differing)
        log.info("%s: not begun from %s, another %s", own.name, prefix.path.name, words)
        return None
    newest = next(checkpoint.intact_checkpoints(prefix.path, prefix.steps), None)
    return (newest[0], newest[1].name) if newest else None


def spent_costs(run: Run, directory: RunDirectory, reached: int) -> dict[str, Any]:
    """What a run that has reached a step has cost, of what it means: `flops_spent`; and, if it
    started from a shared prefix, "shared_prefix", "shared_tokens" and "shared_flops"."""
    shared, flops = shared_steps(directory.path), run.facts["flops"]
    spent = {"flops_spent": flops * (reached - shared) / run.steps}
    if not shared:
        return spent
    return spent | {
        "shared_prefix": str(read_run_file(directory.path / FILE).get("run")),
        "shared_tokens": shared * run.tokens_per_step,
        "shared_flops": flops * shared / run.steps,
    }


def shared_steps(directory: Path) -> int:
    """The steps that another run took for the one in `directory`."""
    path = directory / FILE
    if not path.exists():
        return 0
    step = read_run_file(path).get("step")
    if not isinstance(step, int) or step < 0:
        raise Damaged(f"{path}: step is {step!r:.50}, expected a whole number")
    return step
