"""Sweeps of a notebook: planned and trained by what the commands call."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.table import Table, load
from research.config import sweeps, validation
from research.config.loading import load_config
from research.errors import BadInput

SHOWN = ("run", "status", "params", "tokens", "flops", "steps", "lr", "seed", "memory")


def plan(
    config: str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None,
    sweep: str,
    changes: Mapping[str, Any],
) -> Table:
    """See `isoflop.plan`."""
    loaded, module = load_config(os.fspath(config))
    loaded, problems = validation.override(loaded, changes)
    if problems:
        raise BadInput(*problems)
    configs = sweeps.sweep_points(loaded, module, sweep)

    from research.parallel import jax_settings
    from research.sweep.limits import Limits
    from research.sweep.plan import plan_sweep  # jax from here on

    jax_settings.prepare()

    with tempfile.TemporaryDirectory() as nowhere:
        planned = plan_sweep(configs, Path(workdir or nowhere), Limits())
    rows = [
        {"run": row.run, "status": row.status, **row.facts, **row.settings, "memory": row.memory}
        for row in planned.rows
    ]
    told = planned.text.splitlines()[1 + len(rows) :]  # below the table
    return Table(rows, told, SHOWN)


def sweep(
    config: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    flags: Sequence[str],
    name: str,
    changes: Mapping[str, Any],
) -> Table:
    """See `isoflop.sweep`."""
    from experiments import sweep as command

    overrides = [f"--config.{key}={_as_flag(value)}" for key, value in changes.items()]
    argv = [f"--config={os.fspath(config)}", f"--workdir={os.fspath(workdir)}", f"--sweep={name}"]
    if command.main([*argv, *flags, *overrides]):
        raise RuntimeError(f"{workdir}: runs are missing; call sweep again, or see the report")
    return load(workdir, None, False, False)


def _as_flag(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ",".join(map(_as_flag, value))
    return str(value)
