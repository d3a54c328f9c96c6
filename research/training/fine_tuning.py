"""Going on from another run: from its parameters, for another task, or from its whole state; and
opening a run to use what it learned. Other runs are read, never written."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from research.config import validation
from research.errors import BadInput
from research.io import files
from research.models import Model
from research.params import leaves_by_path, match_path, nest
from research.runs import checkpoint
from research.runs.manifest import read_manifest

LARGEST_TOKENIZER = 64 << 20  # bytes
NEW = "head"  # the parameter group that may differ: it belongs to the task


@dataclass(frozen=True)
class Start:
    """A checkpoint at `path` of `run` to start from: `digest` names its content, `what` is "params"
    or "state". `taken` pairs the paths of parameters here and there."""

    run: Path
    path: Path
    name: str
    step: int
    what: str
    digest: str
    part: str
    tokenizer: str
    taken: tuple[tuple[str, str], ...] = ()
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.run.name}, step {self.step}"


def locate(run: str, step: int | None, what: str) -> Start:
    """The newest intact checkpoint (or that of `step`) of `run`, which is a run's directory or the
    workdir of one run. Raises BadInput when there is none."""
    directory = run_directory(run)
    number, path = checkpoint.latest_intact(directory, step)
    manifest = read_manifest(path)
    averaged = any(leaf.startswith("average/") for leaf in manifest["leaves"])
    part = "average" if averaged else "params"
    return Start(
        run=directory,
        path=path,
        name=_name(directory),
        step=number,
        what=what,
        digest=checkpoint.content_digest(path, "" if what == "state" else part),
        part=part,
        tokenizer=_tokenizer(directory),
    )


def planned(start: Start, model: Model, inputs: Any) -> Start:
    """`start` with the parameters that `model` takes from it.

    A parameter is found by its path, or by a tail of it (a language model inside a classifier).
    Those of the head may be missing or of another shape, and are then new; anything else that does
    not fit raises BadInput.
    """
    if start.what == "state":
        return dataclasses.replace(start, rule=f"goes on from {start}")
    there = {
        leaf.removeprefix(f"{start.part}/"): tuple(shape)
        for leaf, (shape, _) in read_manifest(start.path)["leaves"].items()
        if leaf.startswith(f"{start.part}/")
    }
    taken, new, problems = [], [], []
    for path, leaf in leaves_by_path(model.shapes(inputs)).items():
        source = next((p for p in there if path == p or path.endswith(f"/{p}")), None)
        if source and there[source] == leaf.shape:
            taken.append((path, source))
        elif match_path(model.groups, path, "row of its family's GROUPS") == NEW:
            new.append(path)
        else:
            held = f"shape {there[source]}" if source else "no such parameter"
            problems.append(f"init.run: {start.path} has {held} for {path}, shape {leaf.shape}")
    if problems:
        raise BadInput(*problems[:5])
    rule = f"starts from {len(taken)} parameter arrays of {start}"
    rule += f"; new: {', '.join(new)}" if new else ""
    return dataclasses.replace(start, taken=tuple(taken), rule=rule)


def transplanted(start: Start, abstract: dict, params: dict) -> dict:
    """`params` with those that `start` gives in their place, laid out as `abstract` says."""
    source = leaves_by_path(checkpoint.read_arrays(start.path, start.part))
    places = leaves_by_path(abstract)
    leaves = leaves_by_path(params)
    for here, there in start.taken:
        leaves[here] = jax.device_put(source[there], places[here].sharding)
    return nest(leaves)


def shape(run: str, family: str) -> dict[str, Any]:
    """The fields of the model of `run`. Raises BadInput if it is of another family."""
    found = dict(described(run_directory(run)))
    if (name := found.pop("name")) != family:
        raise BadInput(f"init.run: {run} is a {name}, but model.name is {family}")
    return found


def described(directory: Path) -> dict[str, Any]:
    """What the model of a run is made from. Raises BadInput."""
    path = directory / "launch.json"
    found = files.read_json(path, follow=False).get("model")
    if not isinstance(found, dict) or "name" not in found:
        raise BadInput(f"{path}: does not say what the model is")
    if problems := validation.model_problems(found):
        raise BadInput(*(f"{path}: {problem}" for problem in problems))
    return found


def _tokenizer(directory: Path) -> str:
    """The JSON of the tokenizer of a run; "": bytes."""
    kept = directory / "tokenizer.json"
    return files.text(kept, LARGEST_TOKENIZER, follow=False) if kept.exists() else ""


def run_directory(run: str) -> Path:
    path = Path(run)
    if os.path.isfile(path / "config.json"):
        return path
    there = path.glob("runs/*/config.json") if os.path.isdir(path) else ()
    runs = sorted(p.parent for p in there)
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise BadInput(f"{path}: no run here; expected WORKDIR/runs/<id>, or the workdir of one")
    names = ", ".join(p.name for p in runs[:5])
    raise BadInput(f"{path}: {len(runs)} runs here ({names}); expected {path}/runs/<id>")


def _name(directory: Path) -> str:
    return str(files.read_json(directory / "config.json", follow=False).get("name", "run"))
