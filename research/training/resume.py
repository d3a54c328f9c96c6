"""Resuming: with the execution and devices of the first launch, and never by mistake. What a run
means is compared field by field with what is in a workdir, so that a new run is not taken for an
old one that is resumed."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from research.config import schema
from research.errors import BadInput
from research.io import files, source
from research.parallel import distributed, jax_settings
from research.runs import checkpoint
from research.runs.directory import RunDirectory, read_launch
from research.training.run import Run, identity_config
from research.training.shared_prefix import SharedPrefix
from research.training.trainer import run_mesh

log = logging.getLogger(__name__)

SHOWN = 12  # differences that are listed


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What two resolved configs mean otherwise, a line for each field."""
    mine, other = (schema.flatten(identity_config(config)) for config in (here, there))
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


def as_first_launched(
    run: Run,
    directory: RunDirectory,
    prefixes: Sequence[SharedPrefix] = (),
    warn: Callable[..., None] = log.warning,
) -> tuple[Run, Mesh]:
    """The run with the execution of its first launch, or of that whose steps it starts from, and
    that mesh where its devices are here: both decide the last bits. `warn` is told of them."""
    begun = [directory.path] if checkpoint.saved_steps(directory.path) else []
    if begun:
        from research.runs import made_by  # which a new run does not need

        made_by.check(directory, jax_settings.describe(), warn)
    for path in (*begun, *(prefix.path for prefix in prefixes)):
        if stored := read_launch(path):
            from research.training.other_execution import with_stored_execution  # as above

            run, mesh = with_stored_execution(run, stored, path, warn), stored["mesh"]
            used = math.prod(mesh.values())
            if used <= jax.device_count() and used % distributed.process_count() == 0:
                return run, run_mesh(dataclasses.replace(run, mesh=mesh))
            warn("%s: first launched on mesh %s, which is not here", path, mesh)
    return run, run_mesh(run)


def check_one_code() -> None:
    """Collective: raise BadInput in a process that runs other code than process 0."""
    code = source.describe()["code"]
    if (first := distributed.broadcast(lambda: code)) != code:
        raise BadInput(f"this process runs code {code}, process 0 code {first}; expected one")
