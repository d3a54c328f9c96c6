"""Which runs are scored, on which tasks. Imports no jax."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.io.extras import install_command

TASK = "language_modeling"


def workdir_of(runs: str, run: str | None = None) -> tuple[Path, str | None]:
    """The workdir, and the run where one is meant: `runs` may be its directory. Raises BadInput
    where both name one."""
    path = Path(runs).absolute()
    if not (path / "config.json").is_file():
        return Path(runs), run
    if path.parent.name != "runs":
        raise BadInput(f"--runs={runs}: a run outside of a workdir; expected WORKDIR/runs/<id>")
    if run not in (None, path.name):
        raise BadInput(f"--run={run}: --runs={runs} is a run already; give its workdir")
    return path.parents[1], path.name


def language_models(
    rows: Sequence[Mapping[str, Any]], run: str | None = None
) -> list[Mapping[str, Any]]:
    """The rows of finished language models, or the one named `run`. Raises BadInput where there is
    none."""
    found = [row for row in rows if run in (None, row["run"])]
    if run and not found:
        raise BadInput(f"--run={run}: no such run; there are {_names(rows)}")
    done = [row for row in found if row["status"] == "done" and row.get("task") == TASK]
    if not done and run:
        row = found[0]
        what = f"its task is {row.get('task')}" if row["status"] == "done" else row["status"]
        raise BadInput(f"--run={run}: {what}; expected a finished language model")
    if not done:
        raise BadInput(f"no finished language model among {len(rows)} runs")
    return done


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [str(row["run"]) for row in rows]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def check_names(
    names: Sequence[str], known: Sequence[str], others: bool = False, folder: str | None = None
) -> list[str]:
    """Names of tasks, each once; others than those `known` may be where there are `others`, and one
    must be where a `folder` of them is given. Raises BadInput for what cannot be."""
    stripped = [name.strip() for name in names if name.strip()]
    problems = [
        f"--tasks: {name}: no task of the suite ({', '.join(known)}); others are lm-eval's, which "
        f"is not installed: {install_command('evaluate')}"
        for name in stripped
        if name not in known and not others
    ]
    twice = sorted(name for name in {*stripped} if stripped.count(name) > 1)
    problems += [f"--tasks: {name} is given twice" for name in twice]
    if folder and stripped and all(name in known for name in stripped):
        problems.append(f"--include_path={folder}: of no use: the suite has all of --tasks")
    if not stripped:
        problems.append(f"--tasks: expected some of {', '.join(known)}")
    if problems:
        raise BadInput(*problems)
    return stripped
