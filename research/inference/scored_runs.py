"""The scores of the runs of a workdir: measured where they are not there, or of something else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from research.errors import BadInput, Held, Preempted
from research.inference.load import OpenedRun, open_run
from research.runs import scores
from research.runs.directory import RunDirectory
from research.training.fine_tuning import locate_checkpoint


class Source(Protocol):
    """Tasks of one origin: the suite of this library, or lm-eval."""

    def recipe(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the score of a task beside the parameters."""
        ...

    def score(self, opened: OpenedRun, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The score. Raises BadInput where the task cannot be asked of this run."""
        ...


@dataclass(frozen=True)
class Missing:
    """A task that could not be asked of a run, and why."""

    run: str
    task: str
    reason: str


def score_runs(
    workdir: Path,
    rows: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, Source],
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> list[Missing]:
    """Score the runs of `rows` on `tasks` and write it into them, each as soon as it is known; what
    is there already and was measured of the same parameters in the same way stays. Returns what
    could not be scored. Raises Preempted when `stop` says so."""
    missing: list[Missing] = []
    for number, row in enumerate(rows, start=1):
        path = workdir / "runs" / str(row["run"])
        try:
            digest = locate_checkpoint(str(path), None, "params").digest
        except BadInput as error:
            missing += [Missing(path.name, task, str(error)) for task in tasks]
            continue
        stored = scores.read(path)
        made = {task: source.recipe(task, row) for task, source in tasks.items()}
        left = [t for t in tasks if _stale(stored.get(t), digest, made[t])]
        what = f"[{number}/{len(rows)}] run {path.name}, {row.get('params', 0):,} parameters"
        if not left:
            tell(f"{what}: scored already")
            continue
        try:
            with RunDirectory(workdir, path.name) as directory:
                opened = open_run(path)
                for task in left:
                    if stop():
                        raise Preempted(f"{what}: stopped before {task}; what is scored is kept")
                    try:
                        found = tasks[task].score(opened, task, row)
                    except BadInput as error:
                        missing.append(Missing(path.name, task, str(error)))
                        tell(f"{what}: {task}: not scored: {error}")
                        continue
                    entry = {**found, "of": digest, "step": opened.step, "recipe": made[task]}
                    scores.write(directory, task, entry)
                    tell(f"{what}: {task} {words(found)}")
        except Held as error:  # by another command that scores it, or trains it anew
            missing += [Missing(path.name, task, str(error)) for task in left]
            tell(f"{what}: left alone: {error}")
    return missing


def _stale(entry: Mapping[str, Any] | None, digest: str, recipe: Mapping[str, Any]) -> bool:
    return entry is None or entry.get("of") != digest or entry["recipe"] != recipe


def words(entry: Mapping[str, Any]) -> str:
    """A score in words: of a task that reads whole texts it has bits per byte alone."""
    parts, error = [], entry.get("standard_error")
    if (accuracy := entry.get("accuracy")) is not None:
        parts.append(f"{accuracy:.3f}" + (f" ± {error:.3f}" if error is not None else ""))
        if (chance := entry.get("chance")) is not None:
            parts[0] += f" (chance {chance:.3f})"
    if (bits := entry.get("bits_per_byte")) is not None:
        parts.append(f"{bits:.3f} bits per byte")
    return ", ".join(parts)
