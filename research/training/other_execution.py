"""A run computed in another way than its config says: as its first launch was, or as a plan
considers."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from research import models
from research.errors import Damaged
from research.runs.directory import REMEDY
from research.training.execution import MODEL_FIELDS, Execution
from research.training.run import Run

log = logging.getLogger(__name__)


def with_execution(run: Run, execution: Execution) -> Run:
    """The same run, computed otherwise. Raises ValueError where it cannot be."""
    _check(execution, run.batch, run.task, run.model.spec)
    task = run.task
    if hasattr(task, "chunk"):
        task = dataclasses.replace(task, chunk=execution.chunk)  # type: ignore[type-var]
    chosen = {k: getattr(execution, k) for k in MODEL_FIELDS}
    of_model = {k: v for k, v in chosen.items() if v is not None}
    model = models.build(**run.model.described() | of_model)
    return dataclasses.replace(run, execution=execution, task=task, model=model)


def with_stored_execution(
    run: Run, stored: Mapping[str, Any], path: Path, warn: Callable[..., None] = log.warning
) -> Run:
    """`run` with the execution of the launch.json `stored` at `path`. Raises Damaged where it
    cannot be computed so."""
    file = path / "launch.json"
    if "execution" not in stored:
        raise Damaged(f"{file}: has no key execution, how it was computed; {REMEDY[file.name]}")
    try:
        out = with_execution(run, _from_json(stored["execution"]))
    except ValueError as error:
        raise Damaged(f"{file}: execution: {error}; {REMEDY[file.name]}") from error
    if changed := _differences(run.execution, out.execution):
        warn("%s: resuming with the options of its first launch: %s", path, changed)
    return out


def _from_json(stored: Mapping[str, Any]) -> Execution:
    """What `vars` of one gave. Raises ValueError for anything else."""
    names = [field.name for field in dataclasses.fields(Execution)]
    if unknown := [key for key in stored if key not in names]:
        raise ValueError(f"{unknown[0]!r:.50} is not one of {', '.join(names)}")
    if "grad_accumulation" not in stored:
        raise ValueError("grad_accumulation is missing")
    return Execution(**stored)


def _check(execution: Execution, batch: int, task: Any, spec: Any) -> None:
    """Raise ValueError where a batch, task or model cannot be computed so."""
    _check_count("grad_accumulation", execution.grad_accumulation, 1)
    if batch % execution.grad_accumulation:
        raise ValueError(
            f"grad_accumulation: {execution.grad_accumulation} does not divide a batch of {batch}"
        )
    if execution.chunk is not None:
        _check_count("chunk", execution.chunk, 0)
        _check_has(task, "chunk")
    hints = type(spec).__annotations__
    for name in MODEL_FIELDS:
        value = getattr(execution, name)
        if value is None and name not in hints:
            continue
        _check_has(spec, name)
        if get_origin(hints[name]) is Literal:
            if value not in get_args(hints[name]):
                expected = ", ".join(get_args(hints[name]))
                raise ValueError(f"{name}: {value!r:.50}; expected one of {expected}")
        else:
            _check_count(name, value, 1)


def _differences(here: Execution, other: Execution) -> str:
    """What `other` has otherwise, in words; "" where nothing."""
    pairs = zip(vars(other).items(), vars(here).values(), strict=True)
    return ", ".join(f"{key} {value}" for (key, value), own in pairs if value != own)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise ValueError(f"{name}: {value!r:.50}; expected a whole number of at least {least}")


def _check_has(owner: Any, name: str) -> None:
    if not hasattr(owner, name):
        raise ValueError(f"{name}: {type(owner).__name__} has no such choice")
