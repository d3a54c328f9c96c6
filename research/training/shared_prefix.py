"""The steps that a run did not take itself, and what that saved. shared_prefix.json, in its
directory, says whose they are; `wsd_branching` says which runs may share steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import Damaged
from research.runs.directory import RunDirectory, read_run_file
from research.training.run import Run

FILE = "shared_prefix.json"


@dataclass(frozen=True)
class SharedPrefix:
    """The directory of a shorter run, of which the first `steps` updates are this run's too."""

    path: Path
    steps: int


def forget(directory: RunDirectory) -> None:
    """Forget an earlier choice of a prefix, of a run that begins anew."""
    directory.check_lease()
    (directory.path / FILE).unlink(missing_ok=True)


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
