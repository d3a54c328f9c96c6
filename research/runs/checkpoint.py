"""Checkpoints: orbax writes and reads the arrays; digests, commit and fallback are ours.

checkpoints/<step>/state/         as orbax writes it
checkpoints/<step>/manifest.json  what must be in it, see manifest.py
saved                             exists once there was a checkpoint: if all of them are gone, the
                                  run is not silently trained from the start
best.json                         the step that best.py keeps

A step exists once its directory has its final name, which is one rename after everything in it is
written. orbax checks neither digests (one flipped bit in array data restores silently) nor dtypes
(float32 is cast to bfloat16 without a word), hence the manifest. A damaged step is moved to
quarantine/, never deleted, and the step before it is used.

A checkpoint may come from elsewhere. Before orbax opens one, it is regular files, exactly those of
the manifest, and holds arrays of exactly the shapes that the manifest says.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.errors import BadInput, Damaged, IsoflopError, StorageError, UnsafeFile, first_line
from research.io import files
from research.parallel import distributed
from research.runs import orbax_io
from research.runs.manifest import (
    digest_state,
    write_manifest,
)

log = logging.getLogger(__name__)

SAVED, BEST = "saved", "best.json"  # see above
STEP = re.compile("0|[1-9][0-9]{0,17}")


def save(
    directory: Path,
    step: int,
    state: Any,
    keep: int,
    check_lease: Callable[[], None] = lambda: None,
    pinned: Collection[int] = (),
) -> None:
    """Write `state` as `step`, durably, then `prune` older steps.

    All processes of a run must call it: each writes what its devices hold, and process 0 commits.
    `check_lease` is called just before the commit, and raises if another process has taken the run
    over. An intact checkpoint of that step is kept as it is: it holds the same. Raises StorageError
    when the disk refuses; earlier checkpoints are untouched, and the unfinished one is removed.
    """
    if not (temporary := begin(directory, step)):
        return
    state = _replicated_to_host(state)
    with writing(temporary, step, check_lease):
        try:
            with orbax_io.checkpointer() as writer:  # returns when all processes have written
                writer.save(temporary / "state", args=orbax_io.orbax().args.StandardSave(state))
            commit(temporary, step, state, check_lease)
        finally:
            remove_unfinished(temporary)
    prune(directory, keep, pinned)


def begin(directory: Path, step: int) -> Path | None:
    """Where `step` is written until it has its name; None if it is there and intact."""
    root = _checkpoint_root(directory)
    if distributed.broadcast(lambda: (root / str(step)).exists() and _is_intact(directory, step)):
        _mark_saved(directory)
        return None
    # A random name, or a process that was taken over could remove what its successor is writing.
    return root / f".saving-{step}-{distributed.broadcast(lambda: secrets.token_hex(4))}"


def commit(temporary: Path, step: int, state: Any, check_lease: Callable[[], None]) -> None:
    """Give what orbax has written of `state` its name, durably."""
    content = digest_state(state)
    if not distributed.is_primary():
        return
    write_manifest(temporary, step, orbax_io.shapes_and_dtypes(state), content)
    files.sync_tree(temporary)  # orbax does so with its arrays, but not with all that it writes
    check_lease()
    os.rename(temporary, temporary.with_name(str(step)))
    files.sync(temporary.parent)
    _mark_saved(temporary.parent.parent)


@contextlib.contextmanager
def writing(temporary: Path, step: int, check_lease: Callable[[], None]) -> Iterator[None]:
    """Turn what the disk refuses into StorageError."""
    try:
        yield
    except (OSError, ValueError) as error:
        check_lease()  # if taken over, the successor removes the unfinished checkpoint
        final, text = temporary.with_name(str(step)), first_line(error)[:300]
        if code := re.search(r"os_error_code='(\d+)'", str(error)):  # of kilobytes of tensorstore's
            text = os.strerror(int(code[1]))
        raise StorageError(f"{final}: the checkpoint cannot be written: {text}") from error


def _mark_saved(directory: Path) -> None:
    """Record that the run has had a checkpoint."""
    if distributed.is_primary() and not (directory / SAVED).exists():
        with contextlib.suppress(
            StorageError
        ):  # the checkpoint itself is there; the next save tries again
            files.write_atomic(directory / SAVED, "")


def check_disk_space(directory: Path, abstract: Any, members: int = 1) -> None:
    """Raise StorageError if the disk cannot hold one more checkpoint of a state (of each of
    `members` vmapped runs) beside the last."""
    size = members * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    root = _checkpoint_root(directory)
    needed, free = size * (1 if _list_steps(root) else 2), shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"{root}: a checkpoint takes {size:,} bytes and needs {needed:,} free; there are "
            f"{free:,}"
        )


def prune(directory: Path, keep: int, pinned: Collection[int] = ()) -> None:
    """Delete all checkpoints but the latest `keep` and those of `pinned`, which do not count, nor
    does that of best.json. Of several processes the first does it, or each would find that another
    had deleted what it meant to."""
    if not distributed.is_primary():
        return
    root, best = _checkpoint_root(directory), read_best(directory)
    pinned = {*pinned, *([best["step"]] if best else [])}
    for old in [step for step in _list_steps(root) if step not in pinned][keep:]:
        _delete_step(root / str(old))


def read_best(directory: Path) -> dict[str, Any] | None:
    """best.json, None if there is none or it is not as it was written."""
    if not (directory / BEST).exists():
        return None
    with contextlib.suppress(BadInput):
        best = files.read_json(directory / BEST, follow=False)
        if type(best.get("step")) is int and isinstance(best.get("value"), float):
            return best
    log.warning("%s: not as it was written; the best is found anew", directory / BEST)
    return None


def restore_latest(directory: Path, abstract: Any) -> tuple[int, Any] | None:
    """(step, state) of the latest intact checkpoint, sharded as `abstract`; None if there never was
    one. Damaged checkpoints are quarantined with a warning, by process 0, which decides.

    Raises Damaged if there were checkpoints and none is intact, BadInput if one holds other
    shapes or dtypes than `abstract`.
    """
    restored = restore_latest_common([(directory, abstract)])
    return restored and (restored[0], restored[1][0])


def restore_latest_common(runs: Sequence[tuple[Path, Any]]) -> tuple[int, list[Any]] | None:
    """As `restore_latest`, of the latest step of which all `runs` (directory, abstract) have an
    intact checkpoint."""
    directories = [directory for directory, _ in runs]
    while (step := distributed.broadcast(lambda: latest_common_step(directories))) is not None:
        from research.runs import restoring  # which a new run does not need

        paths = {_checkpoint_root(path) / str(step): abstract for path, abstract in runs}
        try:
            return step, [restoring.restore(path, abstract) for path, abstract in paths.items()]
        except IsoflopError:
            if not restoring.any_damaged(*paths):
                raise
    return None


def latest_common_step(directories: Sequence[Path]) -> int | None:
    """The latest step of which all `directories` have an intact checkpoint; None if there is none.
    Damaged checkpoints are quarantined with a warning.

    Raises Damaged if one of them has had checkpoints and none is intact.
    """
    roots = [_checkpoint_root(directory) for directory in directories]
    for leftover in [p for r in roots for p in [*r.glob(".saving-*"), *r.glob(".deleting-*")]]:
        _remove(leftover)
    for step in sorted(set.intersection(*(set(_list_steps(root)) for root in roots)), reverse=True):
        if all(_is_intact(directory, step) for directory in directories):
            return step
    for directory, root in zip(directories, roots, strict=True):
        quarantine = directory / "quarantine"
        if not _list_steps(root) and (quarantine.exists() or (directory / SAVED).exists()):
            where = f"is intact; see {quarantine}" if quarantine.exists() else "is there any more"
            raise Damaged(
                f"{directory}: checkpoints were written, but none of them {where}. "
                f"Remove {directory} to train this run from the start."
            )
    return None


def _is_intact(directory: Path, step: int) -> bool:
    from research.runs import manifest_check  # which a new run does not need

    return manifest_check.is_intact(directory, step)


def saved_steps(directory: Path) -> list[int]:
    """The steps of which a run has a checkpoint, intact or not, latest first."""
    root = directory / "checkpoints"
    return _list_steps(root) if root.is_dir() and not root.is_symlink() else []


def _replicated_to_host(state: Any) -> Any:
    """`state` with its replicated arrays on the host: orbax would slice them by device, with a
    program compiled for every shape."""
    if distributed.process_count() > 1:
        return state
    replicated = lambda x: isinstance(x, jax.Array) and x.is_fully_replicated  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(x) if replicated(x) else x, state)


def _checkpoint_root(directory: Path) -> Path:
    """The directory of the checkpoints, as an absolute path, which orbax requires. Raises
    UnsafeFile if it is a link: `prune` could delete another run's checkpoints."""
    if (directory / "checkpoints").is_symlink():
        raise UnsafeFile(f"{directory / 'checkpoints'}: is a link; link the workdir instead")
    return files.make_directory((directory / "checkpoints").resolve())


def _list_steps(root: Path) -> list[int]:
    return sorted((int(p.name) for p in root.iterdir() if STEP.fullmatch(p.name)), reverse=True)


def _delete_step(path: Path) -> None:
    """Delete a checkpoint; a crash meanwhile does not leave half of it under its name."""
    doomed = path.with_name(f".deleting-{path.name}")
    _remove(doomed)
    os.rename(path, doomed)
    _remove(doomed)


def remove_unfinished(path: Path) -> None:
    """Remove an unfinished checkpoint. The threads of a failed save may still write into it for a
    moment; what is left then is removed by the next launch."""
    for _ in range(20 if distributed.is_primary() else 0):
        _remove(path)
        if not os.path.lexists(path):
            return
        time.sleep(0.1)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
