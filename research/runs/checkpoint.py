"""Checkpoints: orbax writes and reads the arrays; digests, commit and fallback are ours.

checkpoints/<step>/state/         as orbax writes it
checkpoints/<step>/manifest.json  what must be in it, see manifest.py
saved                             there once a step was: where all are gone, nothing begins anew

A step exists once its directory has its final name, which is one rename after everything in it is
written. orbax checks neither digests (one flipped bit in array data restores silently) nor dtypes
(float32 is cast to bfloat16 without a word), hence the manifest. A damaged step is moved to
quarantine/, never deleted, and the step before it is used.

A checkpoint may come from elsewhere. Before orbax opens one, it is regular files, exactly those of
the manifest, and holds arrays of exactly the shapes that the manifest says, in chunks no larger.
"""

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.errors import BadInput, Damaged, IsoflopError, StorageError, UnsafeFile, first_line
from research.io import files, host
from research.parallel import distributed
from research.params import key_path, leaves_by_path, nest
from research.runs.manifest import (
    array_digest,
    array_digests,
    find_damage,
    read_manifest,
    select_part,
    write_manifest,
)

log = logging.getLogger(__name__)

SAVED = "saved"
STEP = re.compile("0|[1-9][0-9]{0,17}")


def save(
    directory: Path,
    step: int,
    state: Any,
    keep: int,
    check: Callable[[], None] = lambda: None,
    also: Collection[int] = (),
) -> None:
    """Write `state` as `step`, durably, and then forget what `prune` forgets.

    All processes of a run must call it: each writes what its devices hold, and process 0 commits.
    `check` is called before the step gets its name, and raises if it must not: another process may
    have taken over. A step that is there, and whole, stays: it holds the same. Raises StorageError
    when the disk refuses; what was there before stays, and nothing of what was begun.
    """
    root = _root(directory)
    if distributed.agree(lambda: (root / str(step)).exists() and _is_intact(directory, step)):
        _remember(directory)
        return
    # Nobody else's name, lest one that was taken over removes what its successor is writing.
    temporary = root / f".saving-{step}-{distributed.agree(lambda: secrets.token_hex(4))}"
    final, state = root / str(step), _whole(state)
    try:
        with _checkpointer() as writer:  # returns when all processes have written
            writer.save(temporary / "state", args=_orbax().args.StandardSave(state))
        content = _content(state)
        if not distributed.first():
            return
        write_manifest(temporary, step, _leaves(state), content)
        files.sync_tree(temporary)  # orbax does so with its arrays, but not with all that it writes
        check()
        os.rename(temporary, final)
        files.sync(root)
        _remember(directory)
    except (OSError, ValueError) as error:
        check()  # a successor clears away what was begun
        raise StorageError(f"{final}: the checkpoint cannot be written: {error}") from error
    finally:
        if distributed.first():
            _remove_begun(temporary)
    prune(directory, keep, also)


def _remember(directory: Path) -> None:
    """Note that a step was saved, where that is not known yet."""
    if distributed.first() and not (directory / SAVED).exists():
        with contextlib.suppress(StorageError):  # the step is there; the next one says it then
            files.write_atomic(directory / SAVED, "")


def check_room(directory: Path, abstract: Any, members: int = 1) -> None:
    """Raise StorageError if the disk has no room for one checkpoint of a state (of each of so many
    `members` of a group) beside the last."""
    size = members * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    root = _root(directory)
    wanted, there = size * (1 if _steps(root) else 2), shutil.disk_usage(root).free
    if there < wanted:
        raise StorageError(
            f"{root}: a checkpoint takes {size:,} bytes and needs {wanted:,} free; there are "
            f"{there:,}"
        )


def prune(directory: Path, keep: int, also: Collection[int] = ()) -> None:
    """Forget all steps but the newest `keep` and those of `also`, which do not count."""
    root = _root(directory)
    for old in [step for step in _steps(root) if step not in also][keep:]:
        _discard(root / str(old))


def restore_newest(directory: Path, abstract: Any) -> tuple[int, Any] | None:
    """(step, state) of the newest intact checkpoint, laid out as `abstract` says; None if there
    never was one. Damaged steps are quarantined with a warning, by process 0, which decides.

    Raises Damaged if there were checkpoints and none is intact, BadInput if one holds other
    shapes or dtypes than `abstract`.
    """
    found = restore_common([(directory, abstract)])
    return found and (found[0], found[1][0])


def restore_common(runs: Sequence[tuple[Path, Any]]) -> tuple[int, list[Any]] | None:
    """As `restore_newest`, of the newest step that all runs (directory, abstract) hold intact."""
    directories = [directory for directory, _ in runs]
    while (step := distributed.agree(lambda: newest_common(directories))) is not None:
        paths = {_root(path) / str(step): abstract for path, abstract in runs}
        try:
            return step, [restore(path, abstract) for path, abstract in paths.items()]
        except IsoflopError:
            if not spoiled(*paths):
                raise
    return None


def spoiled(*paths: Path) -> bool:
    """Whether one of these checkpoints, which could not be read, was damaged after it was looked
    at, so that another may be sought: by one process alone, as several would have to agree."""
    return distributed.count() == 1 and any(map(find_damage, paths))


def newest_common(directories: Sequence[Path]) -> int | None:
    """The newest step that all of `directories` hold intact; None if there is no such step. Damaged
    steps are quarantined with a warning.

    Raises Damaged if one of them has had checkpoints and none is intact.
    """
    roots = [_root(directory) for directory in directories]
    for leftover in [p for r in roots for p in [*r.glob(".saving-*"), *r.glob(".deleting-*")]]:
        _remove(leftover)
    for step in sorted(set.intersection(*(set(_steps(root)) for root in roots)), reverse=True):
        if all(_is_intact(directory, step) for directory in directories):
            return step
    for directory, root in zip(directories, roots, strict=True):
        quarantine = directory / "quarantine"
        if not _steps(root) and (quarantine.exists() or (directory / SAVED).exists()):
            where = f"is intact; see {quarantine}" if quarantine.exists() else "is there any more"
            raise Damaged(
                f"{directory}: checkpoints were written, but none of them {where}. "
                f"Remove {directory} to train this run from the start."
            )
    return None


def _is_intact(directory: Path, step: int) -> bool:
    """Whether a step is as it was written; if not, it is moved away."""
    path = directory / "checkpoints" / str(step)
    found = find_damage(path)
    if found:
        log.warning("checkpoint %d: %s; moved to %s", step, found, _quarantine(directory, path))
    return found is None


def intact(directory: Path, most: int | None = None) -> Iterator[tuple[int, Path]]:
    """The intact checkpoints of a run, of at most step `most`, newest first; nothing is written or
    moved."""
    root = (directory / "checkpoints").resolve()
    for step in steps(directory):
        if (most is None or step <= most) and find_damage(root / str(step)) is None:
            yield step, root / str(step)


def steps(directory: Path) -> list[int]:
    """The steps of which a run has a checkpoint, intact or not, newest first."""
    root = directory / "checkpoints"
    return _steps(root) if root.is_dir() and not root.is_symlink() else []


def newest_intact(directory: Path, step: int | None = None) -> tuple[int, Path]:
    """The newest intact checkpoint of a run, or that of `step`; nothing is written or moved.

    Raises BadInput when there is none.
    """
    for number, path in intact(directory, step):
        if step in (None, number):
            return number, path
        break
    wanted = "" if step is None else f" of step {step}"
    there = steps(directory)
    known = [number for number in there if step in (None, number)]
    why = f"; {known[0]}: {find_damage(directory / 'checkpoints' / str(known[0]))}" if known else ""
    raise BadInput(f"{directory}: no intact checkpoint{wanted}; there are {sorted(there)}{why}")


def read(path: Path, part: str) -> dict:
    """The nested dict of arrays below `part` of a state ("params"), on the host. Raises BadInput or
    UnsafeFile where there is no checkpoint, Damaged where its arrays are not those of the
    manifest."""
    manifest = read_manifest(path)
    tree = _checked_tree(path, manifest["leaves"])
    wanted = select_part(manifest["leaves"], part)
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in wanted.values())
    if size > host.memory():
        raise UnsafeFile(f"{path}: {part} would take {size / 1e9:,.1f} GB of memory")
    leaves = _read_leaves(path, tree, {f"{part}/{leaf}" for leaf in wanted})
    if content := manifest.get("content"):
        for leaf, digest in array_digests(leaves).items():
            if digest != content[leaf]:
                raise Damaged(f"{path}: {leaf} holds other values than its manifest says")
    return nest(select_part(leaves, part))


def content_digest(path: Path, part: str = "") -> str:
    """One digest of the arrays below `part` of a checkpoint (of all of them): their paths, shapes,
    dtypes and values. It does not depend on when, where or by how many processes they were saved.

    The manifest of an older version holds none of the values: the arrays are read, one at a time.
    Raises as `read` does.
    """
    manifest = read_manifest(path)
    leaves, content = manifest["leaves"], manifest.get("content")
    if content is None:
        tree = _checked_tree(path, leaves)
        content = {k: array_digest(_read_leaves(path, tree, {k})[k]) for k in leaves}
    digests = select_part(content, part)
    return files.digest_of(
        {k: [*known, digests[k]] for k, known in select_part(leaves, part).items()}
    )


def _read_leaves(path: Path, tree: Any, leaves: Collection[str]) -> dict[str, np.ndarray]:
    """{path: array} of some `leaves` of a checkpoint that holds `tree`, on the host."""
    ocp = _orbax()
    item = jax.tree_util.tree_map_with_path(
        lambda key, x: x if key_path(key) in leaves else ocp.PLACEHOLDER, tree
    )
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.PyTreeCheckpointer() as reader, _typed(path):
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args)
        read = leaves_by_path(reader.restore(path / "state", args=args))
    return {leaf: read[leaf] for leaf in leaves}


def restore(path: Path, abstract: Any) -> Any:
    """The whole state of a checkpoint, laid out as `abstract` says. Raises BadInput if it holds
    other shapes or dtypes, Damaged if orbax cannot read it."""
    wanted, found = _leaves(abstract), read_manifest(path)["leaves"]
    if wanted != found:
        differing = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        lines = [f"{k}: holds {found.get(k)}, expected {wanted.get(k)}" for k in differing[:5]]
        raise BadInput(f"{path}: not the state of this run ({len(differing)} leaves)", *lines)
    _checked_tree(path, found)
    with _checkpointer() as reader, _typed(path):
        return reader.restore(path / "state", args=_orbax().args.StandardRestore(abstract))


def _checked_tree(path: Path, leaves: Mapping[str, list]) -> Any:
    """What orbax says of the arrays, as the tree of the state. Raises UnsafeFile if they are not of
    the shapes and dtypes that the manifest says, or one chunk of them is larger than the array:
    reading a single number would decode all of it."""
    with _orbax().PyTreeCheckpointer() as reader, _typed(path):
        metadata = reader.metadata(path / "state").item_metadata
        tree = metadata.tree if metadata else {}
        found = leaves_by_path(tree)
    if found.keys() != leaves.keys():
        raise UnsafeFile(f"{path}: holds other arrays than its manifest says")
    for leaf, known in leaves.items():
        array = found[leaf]
        chunk = getattr(getattr(array, "storage", None), "chunk_shape", None) or ()
        if [list(getattr(array, "shape", "?")), str(getattr(array, "dtype", ""))] != known:
            raise UnsafeFile(f"{path}: {leaf} is not the array that the manifest says")
        if math.prod(chunk) > max(1, math.prod(known[0])):
            raise UnsafeFile(f"{path}: {leaf} is stored in chunks {chunk}, larger than it is")
    return tree


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    """What orbax and tensorstore raise on whole files that are no checkpoint becomes Damaged."""
    try:
        yield
    except (IsoflopError, MemoryError):
        raise
    except Exception as error:  # so bare are those of orbax
        raise Damaged(f"{path}: orbax cannot read it: {first_line(error)}") from error


def _whole(state: Any) -> Any:
    """What every device has a copy of, as an array of the host: orbax would cut it into a slice for
    each device, by a program that it compiles for every shape."""
    if distributed.count() > 1:
        return state
    copied = lambda x: isinstance(x, jax.Array) and x.is_fully_replicated  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(x) if copied(x) else x, state)


def _content(state: Any) -> dict[str, str]:
    """{path: SHA-256} of the arrays of a state; all processes must call it. What several of them
    hold together is gathered an array at a time, for process 0, the only one that hashes."""
    leaves = leaves_by_path(state)
    if distributed.count() == 1:
        return array_digests(leaves, _host_array)
    out = {}
    for path, leaf in leaves.items():
        array = distributed.fetch(leaf)
        if distributed.first():
            out[path] = array_digest(array)
    return out


def _host_array(x: Any) -> np.ndarray:
    """A whole array on the host. jax would keep a second copy of a sharded one for as long as it
    lives; orbax has already brought its shards here."""
    if not isinstance(x, jax.Array) or x.is_fully_replicated:
        return np.asarray(x)
    out = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            out[shard.index] = shard.data
    return out


def _checkpointer() -> Any:
    ocp = _orbax()
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _orbax() -> Any:
    """orbax, imported when it is needed: for half a second a new run can train already."""
    import orbax.checkpoint

    return orbax.checkpoint


def _root(directory: Path) -> Path:
    """Where the steps are, as an absolute path, which orbax wants. Raises UnsafeFile where that is
    elsewhere: what is pruned there might be another run's."""
    if (directory / "checkpoints").is_symlink():
        raise UnsafeFile(f"{directory / 'checkpoints'}: is a link; link the workdir instead")
    return files.make_directory((directory / "checkpoints").resolve())


def _steps(root: Path) -> list[int]:
    return sorted((int(p.name) for p in root.iterdir() if STEP.fullmatch(p.name)), reverse=True)


def _leaves(state: Any) -> dict[str, list]:
    return {path: [list(x.shape), str(x.dtype)] for path, x in leaves_by_path(state).items()}


def _quarantine(directory: Path, path: Path) -> Path:
    folder = files.make_directory(directory / "quarantine")
    place = folder / path.name
    number = 1
    while place.exists():
        number += 1
        place = folder / f"{path.name}-{number}"
    os.rename(path, place)
    return place


def _discard(path: Path) -> None:
    """Delete a step so that a crash half-way cannot leave half of it under its name."""
    doomed = path.with_name(f".deleting-{path.name}")
    _remove(doomed)
    os.rename(path, doomed)
    _remove(doomed)


def _remove_begun(path: Path) -> None:
    """Delete what a save has begun; what the threads of a refused one still write into it is waited
    for a little. The next start deletes what is left."""
    for _ in range(20):
        _remove(path)
        if not os.path.lexists(path):
            return
        time.sleep(0.1)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
