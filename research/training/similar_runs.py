"""A new run beside others that are not done: which of them may have been meant."""

import logging
from pathlib import Path

from research.errors import BadInput
from research.io import files
from research.training.resume import SHOWN, differences
from research.training.run import Run

log = logging.getLogger(__name__)


def similar_runs(workdir: str | Path, run: Run) -> list[tuple[str, list[str]]]:
    """(id, differences) of the unfinished runs at `workdir`, the nearest first."""
    sharing = []
    for path in (Path(workdir) / "runs").glob("*/config.json"):
        if path.parent.name != run.id and not (path.parent / "result.json").exists():
            try:
                differing = differences(run.config, files.read_json(path))
            except (BadInput, AttributeError, KeyError, TypeError):
                continue
            sharing.append((path.parent.name, differing or ["data: another content"]))
    return sorted(sharing, key=lambda pair: (len(pair[1]), pair[0]))


def report(workdir: str | Path, run: Run, must: bool) -> None:
    """Log how a run that is new at `workdir` differs from the nearest unfinished one, or raise
    BadInput with that if it `must` exist already."""
    if (Path(workdir) / "runs" / run.id).exists():
        return
    near = similar_runs(workdir, run)
    if must and not near:
        raise BadInput(f"--resume: no unfinished run at {workdir}")
    if near:
        name, lines = near[0]
        lines = lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if lines[SHOWN:] else [])
        if must:
            raise BadInput(f"--resume: this config is run {run.id}, not {name}:", *lines)
        log.info("a new run; %s, which is not done, differs in: %s", name, "; ".join(lines))
