"""Where the workers of a sweep run. An executor starts copies of one command and watches them. The
workers find out themselves what there is to do and record what is done (see sweep.worker), so only
signals and exit codes pass between them and the launcher."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from research.config import process_flags
from research.errors import BadInput, ErrorCollector
from research.launch import inline, local, ray, slurm
from research.launch.job import Job

__all__ = ["AUTO", "EXECUTORS", "Job", "add_flags", "parse_flags", "parse_options"]

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


def parse_options(
    executor: str, text: str, workers: int | None, sbatch: Sequence[str] = ()
) -> dict[str, Any]:
    """The options of `executor` in KEY=VALUE,KEY=VALUE, and those that it hands on to `sbatch`.
    Raises BadInput listing every problem."""
    accepted = _accepted_options(executor)
    collect = ErrorCollector()
    problems, out = collect.problems, {}
    if sbatch and executor != "slurm":
        problems.append(f"--sbatch: needs --executor=slurm, not {executor}")
    elif sbatch:
        out["sbatch"] = collect(slurm.parse_sbatch, sbatch)
    if workers is not None and workers < 1:
        problems.append(f"--workers: {workers}; expected at least 1")
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            problems.append(f"--executor_options: {part!r}; expected KEY=VALUE")
        elif key not in accepted:
            known = f"one of {', '.join(accepted)}" if accepted else "none"
            problems.append(f"--executor_options: {key}: no option of {executor}; expected {known}")
        else:
            try:
                out[key] = _parse_value(accepted[key], value)
            except ValueError:
                expected = _EXPECTED[accepted[key]]
                problems.append(f"--executor_options: {key}: {value!r}; expected {expected}")
    if problems:
        raise BadInput(*problems)
    return out


_EXPECTED = {int: "a whole number ≥ 0", float: "a number ≥ 0", str: "a text"}


def _accepted_options(executor: str) -> dict[str, type]:
    """The type of every option."""
    if executor == AUTO:
        return {}
    parameters = inspect.signature(EXECUTORS[executor]).parameters.values()
    options = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: kind for name, kind in options.items() if kind in _EXPECTED}


def _parse_value(kind: type, text: str) -> str | int | float:
    value = kind(text)
    if kind is not str and not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


OPTIONS_HELP = "; ".join(
    f"{name}: {', '.join(_accepted_options(name))}" for name in EXECUTORS if _accepted_options(name)
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that has runs trained by workers."""
    flag = parser.add_argument
    flag("--executor", choices=CHOICES, default=AUTO)
    flag("--workers", type=int, help="number of workers (default: as many as fit)")
    process_flags.add_flags(parser, member=False)
    flag("--executor_options", default="", metavar="KEY=VALUE,...", help=OPTIONS_HELP)
    help_ = "options of Slurm's sbatch, as in --sbatch='--qos=high --constraint=a100'; repeatable"
    flag("--sbatch", action="append", default=[], metavar="OPTIONS", help=help_)


def parse_flags(args: argparse.Namespace) -> tuple[str, int | None, dict[str, Any], int]:
    """The executor, the number of workers, the executor's options and the processes of a worker.
    Raises BadInput listing every problem."""
    count = process_flags.process_count(args)
    options = parse_options(args.executor, args.executor_options, args.workers, args.sbatch)
    return args.executor, args.workers, options, count
