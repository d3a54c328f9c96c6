"""The points of a sweep: configs become runs, once each, and a run has a status in a workdir."""

import collections
import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from research.config.loading import validated
from research.config.sweeps import problems_of_points
from research.errors import BadInput, Damaged, UnsafeFile
from research.io import files, source
from research.parallel import jax_settings
from research.runs import lease, made_by
from research.runs.directory import RunDirectory
from research.runs.table import read_row
from research.sweep.sweep_file import FACTS, SweepFile, SweepPoint, read_sweep_file
from research.training.make_run import make_run
from research.training.run import Run


class ResolvedConfig(NamedTuple):
    """A checked config and the overrides that made it, with its run, or else the problems because
    of which there is none."""

    overrides: dict
    config: dict
    run: Run | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its overrides, its checked config, its run and the run's status.
    `failures` counts failed attempts; it is pending unless they exceed `ignored_failures`. `deaths`
    counts the latest consecutive attempts whose process died. With `accept_changes` other code may
    continue it; `labels` are recorded of it."""

    overrides: dict
    config: dict
    run: Run
    status: str
    failures: int = 0
    ignored_failures: int = 0
    deaths: int = 0
    accept_changes: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def pending(self) -> bool:
        if self.status == "failed":
            return self.failures <= self.ignored_failures
        return self.status not in ("done", "diverged")


@dataclass
class Outcome:
    """What a launch left. `trained` are done now and were not before; `missing` says, by run id,
    why a run is not done."""

    trained: int = 0
    skipped: int = 0
    missing: dict[str, str] = field(default_factory=dict)


# From configs to points.


def resolve_configs(configs: Iterable[tuple[dict, dict]]) -> list[ResolvedConfig]:
    """(overrides, checked config) pairs with their runs, in order. Every distinct config is made
    into a run once. Trains nothing."""
    resolved: dict[bytes, tuple[Run | None, tuple[str, ...]]] = {}
    out = []
    for overrides, config in configs:
        key = files.canonical(config)
        if key not in resolved:
            try:
                resolved[key] = make_run(config), ()
            except BadInput as error:
                resolved[key] = None, error.problems
        out.append(ResolvedConfig(overrides, config, *resolved[key]))
    return out


def locate_points(
    resolved: Iterable[ResolvedConfig],
    workdir: str | Path,
    ignored_failures: Mapping[str, int] | None = None,
) -> list[Point]:
    """The points of configs, smallest FLOPs first, each run once, with their status in `workdir`.

    `ignored_failures`: by run id, how many failures do not count. Raises BadInput listing what is
    wrong with every point that could not be made into a run.
    """
    points: dict[str, Point] = {}
    problems: list[tuple[str, str]] = []
    for overrides, config, run, own_problems in resolved:
        problems += [(str(overrides), line) for line in own_problems]
        if run is not None and run.id not in points:
            ignored = (ignored_failures or {}).get(run.id, 0)
            status = _read_status(RunDirectory(workdir, run.id), ignored)
            points[run.id] = Point(overrides, config, run, **status)
    if problems:
        raise BadInput(*problems_of_points(dict.fromkeys(problems)))
    facts = {key: point.run.facts for key, point in points.items()}
    rank = {key: (f.get("budget", f["flops"]), f["params"]) for key, f in facts.items()}
    return [points[key] for key in sorted(points, key=lambda key: rank[key])]


def resolve_points(
    configs: Iterable[tuple[dict, dict]],
    workdir: str | Path,
    ignored_failures: Mapping[str, int] | None = None,
) -> list[Point]:
    """`locate_points` of (overrides, checked config) pairs."""
    return locate_points(resolve_configs(configs), workdir, ignored_failures)


def _read_status(directory: RunDirectory, ignored_failures: int) -> dict[str, Any]:
    if not directory.path.exists():
        return {"status": "new", "ignored_failures": ignored_failures}
    last = None
    with contextlib.suppress(Damaged):  # which the row says
        last = lease.read_holder(directory.path / "lease")
    return {
        "status": read_row(directory.path)["status"],
        "failures": directory.failures,
        "ignored_failures": ignored_failures,
        "deaths": last.deaths if last else 0,
    }


# What is said and done about the status.


def retry_failed(points: Iterable[Point]) -> list[Point]:
    """The points, those that failed pending again."""
    return [replace(p, ignored_failures=p.failures) for p in points]


def launched_with(
    points: Iterable[Point], accept_changes: bool, labels: Mapping[str, str]
) -> list[Point]:
    """The points, whether other code than what began them may continue them, and with labels."""
    return [replace(p, accept_changes=accept_changes, labels=dict(labels)) for p in points]


def describe_changes(points: Iterable[Point], workdir: str | Path) -> list[str]:
    """How the finished runs among the points were made otherwise than the next ones would be, a
    line for each difference that can change what a run means, and one for the others."""
    ended = [p.run.id for p in points if not p.pending and p.status != "failed"]
    makers: dict[bytes, list[dict]] = {}  # of a thousand runs there are few
    for run_id in ended:
        with contextlib.suppress(Damaged):
            before = made_by.latest(Path(workdir) / "runs" / run_id, sys.maxsize)
            compared = {k: before[k] for k in made_by.COMPARED if k in before}
            makers.setdefault(files.canonical(compared), []).append(compared)
    counts = collections.Counter[str]()
    for runs in makers.values():
        refused, told = made_by.differences(runs[0], jax_settings.describe(), Path(workdir))
        for line in (*refused, *(["; ".join(told)] if told else [])):
            counts[line] += len(runs)
    return [
        f"{count} of {len(ended)} finished runs were made differently: {line}"
        for line, count in counts.items()
    ]


def describe_status(points: Sequence[Point]) -> str:
    """How many there are to train, and how to have the others trained."""
    pending = sum(p.pending for p in points)
    done = sum(p.status == "done" for p in points)
    text = f"{done} of {len(points)} runs are done, {pending} to train"
    if failed := sum(p.status == "failed" and not p.pending for p in points):
        text += f"; {failed} failed and are left as they are (--retry_failed tries them again)"
    return text


def read_outcome(points: Iterable[Point], workdir: str | Path) -> Outcome:
    """What a launch of the points left, read from the files of the runs."""
    out = Outcome()
    for point in points:
        path = RunDirectory(workdir, point.run.id).path
        row = read_row(path) if path.exists() else {"status": "unfinished", "reason": ""}
        if row["status"] != "done":
            reason = row["reason"] or _unsafe_reason(path)
            out.missing[point.run.id] = f"{row['status']}{reason and f': {reason}'}"
        if not point.pending:
            out.skipped += 1
        elif row["status"] == "done":
            out.trained += 1
    return out


def _unsafe_reason(path: Path) -> str:
    """Why nobody may write in a run's directory, or ""."""
    try:
        files.check_plain(path)
    except UnsafeFile as error:
        return str(error)
    except FileNotFoundError:  # it was never begun
        pass
    return ""


# From a launch to its workers.


def write_points(points: Sequence[Point], workdir: str | Path, grouping: str = "auto") -> Path:
    """Write the points as a sweep file; its path."""
    entries = [
        SweepPoint(
            run=p.run.id,
            overrides={key: repr(value) for key, value in p.overrides.items()},
            config=p.config,
            facts={name: p.run.facts[name] for name in FACTS},
            ignored_failures=p.ignored_failures,
        )
        for p in points
    ]
    accept = any(p.accept_changes for p in points)
    labels = points[0].labels if points else {}
    sweep = SweepFile(tuple(entries), grouping, source.config_files(), accept, labels)
    return sweep.write(workdir)


def read_points(path: str | Path, workdir: str | Path) -> tuple[list[Point], str]:
    """The points of a sweep file, with their status now, and their grouping; every run is made
    once. Raises BadInput for another file, for configs that are not valid, and where the data are
    no longer what they were when the file was written."""
    sweep = read_sweep_file(path)
    try:
        configs = [(dict(p.overrides), validated(dict(p.config))) for p in sweep.points]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--sweep={path}: not a sweep of this version ({error})") from error
    ignored_failures = {p.run: p.ignored_failures for p in sweep.points}
    points = resolve_points(configs, workdir, ignored_failures)
    if new := [point for point in points if point.run.id not in ignored_failures]:
        raise BadInput(
            f"data: not what it was at the launch of --sweep={path}: point {new[0].overrides} is "
            f"another run now, {new[0].run.id}; launch the sweep again"
        )
    source.set_config_files(sweep.config_files)
    return launched_with(points, sweep.accept_changes, sweep.labels), sweep.grouping
