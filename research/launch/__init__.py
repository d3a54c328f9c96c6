"""Where the workers of a sweep run. An executor starts copies of one command and watches them; what
there is to do, and what is done, the workers see and write themselves (see sweep.work), so nothing
passes between them and the launcher but signals and exit codes."""

import inspect
from collections.abc import Callable

from research.errors import BadInput
from research.launch import inline, local, ray, slurm
from research.launch.job import Job

__all__ = ["AUTO", "CHOICES", "EXECUTORS", "HELP", "Job", "options"]

# Each is run(job, **options) -> the exit codes of its workers; its keyword-only parameters are the
# options that it takes.
EXECUTORS: dict[str, Callable[..., list[int]]] = {
    "inline": inline.run,
    "local": local.run,
    "ray": ray.run,
    "slurm": slurm.run,
}

AUTO = "auto"  # inline, or local where that is expected to end sooner
CHOICES = (AUTO, *EXECUTORS)


def options(executor: str, text: str, workers: int | None) -> dict[str, str | int | float]:
    """The options in KEY=VALUE,KEY=VALUE. Raises BadInput listing everything that is wrong."""
    takes = _takes(executor)
    problems, out = [], {}
    if workers is not None and workers < 1:
        problems.append(f"--workers: {workers}; expected at least 1")
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            problems.append(f"--executor_options: {part!r}; expected KEY=VALUE")
        elif key not in takes:
            known = f"one of {', '.join(takes)}" if takes else "none"
            problems.append(f"--executor_options: {key}: no option of {executor}; expected {known}")
        else:
            try:
                out[key] = _value(takes[key], value)
            except ValueError:
                expected = _WORDS[takes[key]]
                problems.append(f"--executor_options: {key}: {value!r}; expected {expected}")
    if problems:
        raise BadInput(*problems)
    return out


_WORDS = {int: "a whole number ≥ 0", float: "a number ≥ 0", str: "a text"}


def _takes(executor: str) -> dict[str, type]:
    if executor == AUTO:
        return {}
    parameters = inspect.signature(EXECUTORS[executor]).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def _value(kind: type, text: str) -> str | int | float:
    value = kind(text)
    if kind is not str and not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


HELP = "; ".join(f"{name}: {', '.join(_takes(name))}" for name in EXECUTORS if _takes(name))
