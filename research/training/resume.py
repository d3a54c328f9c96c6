"""What a run means, field by field, beside what is in a workdir: so that beginning another run is
never mistaken for going on with one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import schema
from research.errors import BadInput
from research.io import files
from research.training.run import Run, meaning

log = logging.getLogger(__name__)

SHOWN = 12  # differences that are told


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What two resolved configs mean otherwise, a line for each field."""
    mine, other = (schema.flatten(meaning(config)) for config in (here, there))
    return [
        f"{key}: {other.get(key, 'not there')!r} there, {mine.get(key, 'not there')!r} here"
        for key in sorted(mine.keys() | other.keys())
        if key not in mine or key not in other or not _same(mine[key], other[key])
    ]


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and files.canonical([a]) == files.canonical([b])


def check_stored(path: Path, stored: Mapping[str, Any], run: Run) -> None:
    """Raise BadInput if the config.json of a run's directory means something else than `run`."""
    try:
        differing = differences(run.config, stored)
    except (AttributeError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: no resolved config; remove the run's directory") from error
    if differing:
        raise BadInput(f"{path}: of another run than {run.id}, or altered", *differing[:SHOWN])


def others(workdir: str | Path, run: Run) -> list[tuple[str, list[str]]]:
    """(id, differences) of the unfinished runs at `workdir`, the nearest first."""
    found = []
    for path in (Path(workdir) / "runs").glob("*/config.json"):
        if path.parent.name != run.id and not (path.parent / "result.json").exists():
            try:
                differing = differences(run.config, files.read_json(path))
            except (BadInput, AttributeError, KeyError, TypeError):
                continue
            found.append((path.parent.name, differing or ["data: another content"]))
    return sorted(found, key=lambda pair: (len(pair[1]), pair[0]))


def tell(workdir: str | Path, run: Run, must: bool) -> None:
    """Say how a run that is new at `workdir` differs from the nearest one that is not done; if it
    `must` be one that has begun, raise BadInput with that."""
    if (Path(workdir) / "runs" / run.id).exists():
        return
    near = others(workdir, run)
    if must and not near:
        raise BadInput(f"--resume: no unfinished run at {workdir}")
    if near:
        name, lines = near[0]
        lines = lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if lines[SHOWN:] else [])
        if must:
            raise BadInput(f"--resume: this config is run {run.id}, not {name}:", *lines)
        log.info("a new run; %s, which is not done, differs in: %s", name, "; ".join(lines))
