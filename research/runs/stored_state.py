"""The arrays of a checkpoint, read to start another run from them or to use them: of which nothing
is known but what its manifest says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.errors import BadInput, Damaged
from research.io import files
from research.params import key_path, leaves_by_path, nest
from research.runs import checkpoint, orbax_io, restoring
from research.runs.manifest import array_digests
from research.runs.manifest_check import find_damage, read_manifest


def latest_intact(directory: Path, step: int | None = None) -> tuple[int, Path]:
    """(step, path) of the latest intact checkpoint of a run, or of that of `step`. Read-only.

    Raises BadInput when there is none.
    """
    for number, path in intact_checkpoints(directory, step):
        if step in (None, number):
            return number, path
        break
    of_step = "" if step is None else f" of step {step}"
    steps = checkpoint.saved_steps(directory)
    damaged = [number for number in steps if step in (None, number)]
    why = ""
    if damaged:
        why = f"; {damaged[0]}: {find_damage(directory / 'checkpoints' / str(damaged[0]))}"
    raise BadInput(f"{directory}: no intact checkpoint{of_step}; there are {sorted(steps)}{why}")


def read_arrays(path: Path, part: str) -> dict:
    """The nested dict of arrays below `part` of a state ("params"), on the host. Raises BadInput or
    UnsafeFile where there is no checkpoint, Damaged where its arrays are not those of the
    manifest."""
    manifest = read_manifest(path)
    tree = restoring.checked_tree(path, manifest["leaves"])
    selected = {f"{part}/{leaf}" for leaf in select_part(manifest["leaves"], part)}
    ocp = orbax_io.orbax()
    item = jax.tree_util.tree_map_with_path(
        lambda key, x: x if key_path(key) in selected else ocp.PLACEHOLDER, tree
    )
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.PyTreeCheckpointer() as reader, restoring.orbax_errors(path):
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args)
        restored = leaves_by_path(reader.restore(path / "state", args=args))
    leaves = {leaf: restored[leaf] for leaf in selected}
    for leaf, digest in array_digests(leaves).items():
        if digest != manifest["content"][leaf]:
            raise Damaged(f"{path}: {leaf} holds other values than its manifest says")
    return nest(select_part(leaves, part))


def content_digest(path: Path, part: str = "") -> str:
    """One digest of the arrays below `part` of a checkpoint (of all of them): their paths, shapes,
    dtypes and values. It does not depend on when, where or by how many processes they were saved.
    Raises BadInput where there is no checkpoint."""
    manifest = read_manifest(path)
    leaves, digests = (select_part(manifest[key], part) for key in ("leaves", "content"))
    return files.digest_of({k: [*known, digests[k]] for k, known in leaves.items()})


def intact_checkpoints(directory: Path, last: int | None = None) -> Iterator[tuple[int, Path]]:
    """(step, path) of the intact checkpoints of a run up to `last`, latest first. Read-only."""
    root = (directory / "checkpoints").resolve()
    for step in checkpoint.saved_steps(directory):
        if (last is None or step <= last) and find_damage(root / str(step)) is None:
            yield step, root / str(step)


def select_part(leaves: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Those of the `leaves` of a state that are below `part` ("params"; "": all of them), by their
    paths from there on."""
    below = f"{part}/" if part else ""
    return {k.removeprefix(below): v for k, v in leaves.items() if k.startswith(below)}
