"""Fine-tuning: starting from the parameters of another run, perhaps for another task, or resuming
from its whole state; and opening a run to use what it learned. Other runs are never written."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from research.config import stored_model
from research.data import Dataset
from research.errors import BadInput
from research.io import files
from research.models import Model
from research.params import leaves_by_path, match_path, nest
from research.runs import stored_state
from research.runs.manifest_check import read_manifest
from research.training import pretrained

LARGEST_TOKENIZER = 64 << 20  # bytes
NEW_GROUP = "head"  # the parameter group that may differ: it belongs to the task


@dataclass(frozen=True)
class StartingPoint:
    """A checkpoint at `path` of `run` to start from: `digest` names its content, `what` is "params"
    or "state". `shapes` are those of its parameters, which `read` reads, by path; `pairs` has the
    paths of those that are taken, here and there. A model from elsewhere is at step 0."""

    run: Path
    path: Path
    name: str
    step: int
    what: str
    digest: str
    part: str
    tokenizer: str
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False, compare=False)
    read: Callable[[], dict[str, Any]] = field(repr=False, compare=False)
    pairs: tuple[tuple[str, str], ...] = ()
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.run.name}" + (f", step {self.step}" if self.step else "")


@contextlib.contextmanager
def _prefix_errors() -> Iterator[None]:
    """Prefix the errors of loading the starting run with its config key."""
    try:
        yield
    except BadInput as error:
        lines = (f"init.run: {line.removeprefix('init.run: ')}" for line in error.problems)
        raise BadInput(*lines) from error


def starting_point(
    config: Mapping[str, Any], dataset: Dataset, model: Model, inputs: Any, steps: int
) -> StartingPoint:
    """What a run of so many `steps` starts from, by the section `init` of its config. Raises
    BadInput where it cannot."""
    init = config["init"]
    with _prefix_errors():
        if folder := pretrained.folder_of(init["run"]):
            start = _from_elsewhere(folder, init, model, dataset.tokenizer)
        else:
            start = locate_checkpoint(init["run"], init["step"], init["what"])
    if "vocab" in dataset.facts and start.tokenizer != dataset.tokenizer:
        raise BadInput(
            f"data.tokenizer: not that of init.run; expected "
            f"{start.run / 'tokenizer.json' if start.tokenizer else 'bytes'}"
        )
    if start.what == "state" and 0 < steps <= start.step:
        raise BadInput(f"horizon: {steps} steps end before init.run's step {start.step}")
    if start.what == "state":
        _check_transfer(start.run, config["optim"]["transfer"])
    return match_parameters(start, model, inputs)


def _check_transfer(run: Path, here: Mapping[str, Any]) -> None:
    """Raise BadInput where the optimizer's state at `run` is of gradients in another scale."""
    optim = files.read_json(run / "config.json", follow=False).get("optim")
    there = optim.get("transfer") if isinstance(optim, dict) else None
    if not isinstance(there, dict) or there.get("rule", "none") == "none":  # older runs have none
        there = {"rule": "none"}
    if there["rule"] == here["rule"] == "none" or there == dict(here):
        return
    words = ["; ".join(f"{k} {v}" for k, v in of.items() if v is not None) for of in (there, here)]
    raise BadInput(
        f"optim.transfer: {words[1]}, but the state of init.run is of {words[0]}, which scales "
        "gradients otherwise; expected the same, or init.what = params"
    )


def locate_checkpoint(run: str, step: int | None, what: str) -> StartingPoint:
    """The newest intact checkpoint (or that of `step`) of `run`, which is a run's directory or the
    workdir of one run. Raises BadInput when there is none."""
    directory = find_run_directory(run)
    number, path = stored_state.latest_intact(directory, step)
    manifest = read_manifest(path)
    averaged = any(leaf.startswith("average/") for leaf in manifest["leaves"])
    part = "average" if averaged else "params"
    leaves = stored_state.select_part(manifest["leaves"], part)
    return StartingPoint(
        run=directory,
        path=path,
        name=_read_name(directory),
        step=number,
        what=what,
        digest=stored_state.content_digest(path, "" if what == "state" else part),
        part=part,
        tokenizer=_read_tokenizer(directory),
        shapes={leaf: tuple(shape) for leaf, (shape, _) in leaves.items()},
        read=functools.partial(_read_checkpoint, path, part),
    )


def _read_checkpoint(path: Path, part: str) -> dict[str, Any]:
    return leaves_by_path(stored_state.read_arrays(path, part))


def _from_elsewhere(
    folder: str, init: Mapping[str, Any], model: Model, tokenizer: str
) -> StartingPoint:
    """A model in the layout of transformers, which has parameters alone. One without a tokenizer is
    taken with ours, `tokenizer`: nothing else can be known."""
    if init["what"] != "params" or init["step"] is not None:
        given = f"init.what is {init['what']}" if init["step"] is None else "init.step is given"
        raise BadInput(f"{init['run']}: {given}; expected params and no step: it has no others")
    found = pretrained.read(folder)
    leaves = pretrained.fitted(found, model)
    return StartingPoint(
        run=found.folder,
        path=found.folder,
        name="hf",
        step=0,
        what="params",
        digest=found.digest,
        part="params",
        tokenizer=tokenizer if found.tokenizer is None else found.tokenizer,
        shapes={path: leaf.shape for path, leaf in leaves.items()},
        read=lambda: leaves,
    )


def match_parameters(start: StartingPoint, model: Model, inputs: Any) -> StartingPoint:
    """`start`, with the parameters that `model` takes from it paired by path.

    A parameter is found by its path, or by a tail of it (a language model inside a classifier).
    Those of the head may be missing or of another shape, and are then new; anything else that does
    not fit raises BadInput.
    """
    if start.what == "state":
        return dataclasses.replace(start, rule=f"resumes from {start}")
    there = start.shapes
    pairs, new, problems = [], [], []
    for path, leaf in leaves_by_path(model.shapes(inputs)).items():
        source = next((p for p in there if path == p or path.endswith(f"/{p}")), None)
        if source and there[source] == leaf.shape:
            pairs.append((path, source))
        elif match_path(model.groups, path, "row of its family's GROUPS") == NEW_GROUP:
            new.append(path)
        else:
            stored = f"of shape {there[source]}" if source else "missing"
            problems.append(
                f"init.run: parameter {path} of shape {leaf.shape} is {stored} in {start.path}"
            )
    if problems:
        raise BadInput(*problems[:5])
    rule = f"starts from {len(pairs)} parameter arrays of {start}"
    rule += f"; new: {', '.join(new)}" if new else ""
    return dataclasses.replace(start, pairs=tuple(pairs), rule=rule)


def take_parameters(start: StartingPoint, abstract: dict, params: dict) -> dict:
    """`params`, those that `start` provides replaced by its own and sharded as in `abstract`."""
    source = start.read()
    places = leaves_by_path(abstract)
    leaves = leaves_by_path(params)
    for here, there in start.pairs:
        leaves[here] = jax.device_put(source[there], places[here].sharding)
    return nest(leaves)


def model_shape(run: str, family: str) -> dict[str, Any]:
    """The fields of the model of `run`. Raises BadInput if it is of another family."""
    with _prefix_errors():
        folder = pretrained.folder_of(run)
        fields = pretrained.read_fields(folder) if folder else None
        fields = dict(fields or read_model_fields(find_run_directory(run)))
    if (name := fields.pop("name")) != family:
        raise BadInput(f"init.run: {run} is a {name}, but model.name is {family}")
    return fields


def read_model_fields(directory: Path) -> dict[str, Any]:
    """The fields of the model of a run (its launch.json). Raises BadInput where they are missing or
    wrong."""
    path = directory / "launch.json"
    fields = files.read_json(path, follow=False).get("model")
    if not isinstance(fields, dict) or "name" not in fields:
        raise BadInput(f"{path}: no model; expected an object with its name")
    if problems := stored_model.model_problems(fields):
        raise BadInput(*(f"{path}: {problem}" for problem in problems))
    return fields


def _read_tokenizer(directory: Path) -> str:
    """The JSON of the tokenizer of a run; "": bytes."""
    path = directory / "tokenizer.json"
    return files.text(path, LARGEST_TOKENIZER, follow=False) if path.exists() else ""


def find_run_directory(run: str) -> Path:
    path = Path(run)
    if os.path.isfile(path / "config.json"):
        return path
    there = path.glob("runs/*/config.json") if os.path.isdir(path) else ()
    runs = sorted(p.parent for p in there)
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise BadInput(
            f"{path}: no run found; expected WORKDIR/runs/<id>, or a workdir with a single run"
        )
    names = ", ".join(p.name for p in runs[:5])
    raise BadInput(f"{path}: {len(runs)} runs found ({names}); expected {path}/runs/<id>")


def _read_name(directory: Path) -> str:
    return str(files.read_json(directory / "config.json", follow=False).get("name", "run"))
