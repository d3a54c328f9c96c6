"""The points of a sweep: overrides and configs become runs, and where each run stands."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from research.config.loading import validated
from research.errors import BadInput, Damaged, UnsafeFile
from research.io import files
from research.runs import lease
from research.runs.directory import RunDirectory, check_workdir
from research.runs.table import read_row
from research.sweep import watch
from research.training.run import Run, make_run


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the overrides that made it and its checked config, its run, and where
    that stands. `failures` counts its attempts that failed, of which `forgiven` do not keep it from
    being tried again; `deaths` those in a row whose process died."""

    overrides: dict
    config: dict
    run: Run
    status: str
    failures: int = 0
    forgiven: int = 0
    deaths: int = 0

    @property
    def pending(self) -> bool:
        if self.status == "failed":
            return self.failures <= self.forgiven
        return self.status not in ("done", "diverged")


@dataclass
class Outcome:
    """What a launch left. `trained` are done now and were not before; `missing` says, by run id,
    why a run is not done."""

    trained: int = 0
    skipped: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def resolve_points(
    configs: Iterable[tuple[dict, dict]],
    workdir: str | Path,
    forgiven: Mapping[str, int] | None = None,
) -> list[Point]:
    """The points of (overrides, checked config) pairs, smallest FLOPs first, each run once.

    `forgiven` says, by run id, how many failures do not count. Trains nothing. Raises BadInput
    listing what is wrong with every point.
    """
    points: dict[str, Point] = {}
    problems: list[str] = []
    for overrides, config in configs:
        try:
            run = make_run(config)
        except BadInput as error:
            problems += [f"point {overrides}: {line}" for line in error.problems]
            continue
        if run.id not in points:
            stands = _stands(RunDirectory(workdir, run.id), (forgiven or {}).get(run.id, 0))
            points[run.id] = Point(overrides, config, run, **stands)
    if problems:
        raise BadInput(*dict.fromkeys(problems))
    facts = {key: point.run.facts for key, point in points.items()}
    rank = {key: (f.get("budget", f["flops"]), f["params"]) for key, f in facts.items()}
    return [points[key] for key in sorted(points, key=lambda key: rank[key])]


def _stands(directory: RunDirectory, forgiven: int) -> dict[str, Any]:
    if not directory.path.exists():
        return {"status": "new", "forgiven": forgiven}
    last = None
    with contextlib.suppress(Damaged):  # which the row says
        last = lease.holder(directory.path / "lease")
    return {
        "status": read_row(directory.path)["status"],
        "failures": directory.failures,
        "forgiven": forgiven,
        "deaths": last.deaths if last else 0,
    }


def retry_failed(points: Iterable[Point]) -> list[Point]:
    """The points, those that failed pending again."""
    return [replace(p, forgiven=p.failures) for p in points]


def describe_status(points: Sequence[Point]) -> str:
    """How many there are to train, and how to have the others trained."""
    pending = sum(p.pending for p in points)
    done = sum(p.status == "done" for p in points)
    text = f"{done} of {len(points)} runs are done, {pending} to train"
    if failed := sum(p.status == "failed" and not p.pending for p in points):
        text += f"; {failed} failed and are left as they are (--retry_failed tries them again)"
    return text


def read_outcome(points: Iterable[Point], workdir: str | Path) -> Outcome:
    """Where the points stand now, read from their files."""
    out = Outcome()
    for point in points:
        path = RunDirectory(workdir, point.run.id).path
        row = read_row(path) if path.exists() else {"status": "unfinished", "reason": ""}
        if row["status"] != "done":
            reason = row["reason"] or _links(path)
            out.missing[point.run.id] = f"{row['status']}{reason and f': {reason}'}"
        if not point.pending:
            out.skipped += 1
        elif row["status"] == "done":
            out.trained += 1
    return out


def _links(path: Path) -> str:
    """Why nobody may write in a run's directory, or ""."""
    try:
        files.check_plain(path)
    except UnsafeFile as error:
        return str(error)
    except FileNotFoundError:  # it was never begun
        pass
    return ""


def write_sweep_file(points: Iterable[Point], workdir: str | Path, grouping: str = "auto") -> Path:
    """WORKDIR/sweeps/<digest>.json: what workers need to take part, as data. `facts` are there for
    those who watch."""
    rows = [
        {
            "run": p.run.id,
            "overrides": {key: repr(value) for key, value in p.overrides.items()},
            "config": p.config,
            "facts": {k: p.run.facts[k] for k in watch.FACTS},
            "forgiven": p.forgiven,
        }
        for p in points
    ]
    content = {"points": rows, "grouping": grouping}
    path = Path(workdir) / "sweeps" / f"{files.digest_of(content)[:12]}.json"
    if not path.exists():
        check_workdir(workdir)
        files.make_directory(path.parent)
        files.write_atomic(path, files.canonical(content))
    return path


def read_sweep_file(path: str | Path, workdir: str | Path) -> tuple[list[Point], str]:
    """The points of a file that `write` made, as they stand now, and how they are grouped. Raises
    BadInput."""
    try:
        content = files.read_json(path, limit=1 << 30)
        rows, grouping = content["points"], content["grouping"]
        configs = [(row["overrides"], validated(row["config"])) for row in rows]
        forgiven = {row["run"]: row["forgiven"] for row in rows}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--sweep={path}: not a sweep of this version ({error})") from error
    points = resolve_points(configs, workdir, forgiven)
    if new := [point for point in points if point.run.id not in forgiven]:
        raise BadInput(
            f"data: not what it was at the launch of --sweep={path}: point {new[0].overrides} is "
            f"another run now, {new[0].run.id}; launch the sweep again"
        )
    return points, grouping
