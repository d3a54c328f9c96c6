"""WORKDIR/sweeps/<digest>.json: all that a launch hands to its workers, as data, and what those who
watch the sweep read. Needs no jax."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.io import files
from research.runs.directory import RUN, check_workdir

GROUPING = ("auto", "off", "force")
GROUPING_HELP = (
    "auto: runs that share a WSD prefix (their steps before the decay) train it once; force: also "
    "train runs that differ only in hyperparameters as one vmapped program; off: neither"
)
FACTS = ("params", "tokens", "flops", "steps", "seed", "lr", "context")  # those that are shown
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class SweepPoint:
    """A point as a worker gets it: the id of its run, the overrides as text, the checked config,
    the FACTS, and how many failures do not keep it from being tried again."""

    run: str
    overrides: Mapping[str, str]
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    ignored_failures: int = 0


@dataclass(frozen=True)
class SweepFile:
    """The points of a launch, which of them are trained together (one of GROUPING), the digests of
    the config file and what it imported, whether other code may continue runs, and labels."""

    points: tuple[SweepPoint, ...]
    grouping: str = "auto"
    config_files: Mapping[str, str] = field(default_factory=dict)
    accept_changes: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    def write(self, workdir: str | Path) -> Path:
        """Write the file, if it is not there, and return its path: equal sweeps are one file. The
        newest of them is that of the last launch."""
        content = asdict(self)
        path = Path(workdir) / "sweeps" / f"{files.digest_of(content)[:12]}.json"
        if not path.exists():
            check_workdir(workdir)
            files.make_directory(path.parent)
            files.write_atomic(path, files.canonical(content))
        elif path != max(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
            os.utime(path)
        return path


def read_sweep_file(path: str | Path, follow: bool = True) -> SweepFile:
    """The content of a file that `write` made; the configs are not checked yet. Raises BadInput for
    any other file, and for a link unless `follow`."""
    content = files.read_json(path, limit=MAX_BYTES, follow=follow)
    try:
        points = tuple(SweepPoint(**point) for point in content["points"])
        more = content.get("config_files", {}), content.get("accept_changes") is True
        sweep = SweepFile(points, content["grouping"], *more, content.get("labels", {}))
        facts = [point.facts[name] for point in points for name in FACTS]
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a sweep of this version ({error})") from error
    if not all(isinstance(fact, int | float) for fact in facts):
        raise BadInput(f"{path}: not a sweep of this version (a fact is not a number)")
    if not all(isinstance(x, dict) for p in points for x in (p.overrides, p.config)):
        raise BadInput(f"{path}: not a sweep of this version (a config is not an object)")
    noted = sweep.config_files
    if not isinstance(noted, dict) or not all(isinstance(x, str) for x in noted.values()):
        raise BadInput(f"{path}: not a sweep of this version (config_files are no digests)")
    if not isinstance(sweep.labels, dict) or not {*sweep.labels} <= {"tag", "note"}:
        raise BadInput(f"{path}: not a sweep of this version (labels are no tag and note)")
    for name in (str(point.run) for point in points):
        if not RUN.fullmatch(name):
            raise BadInput(f"{path}: {name!r:.50} is not the id of a run")
    return sweep
