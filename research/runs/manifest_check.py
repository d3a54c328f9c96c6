"""Whether a checkpoint is what its manifest says; one that is not is moved to quarantine."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

from research.errors import BadInput, StorageError
from research.io import files
from research.runs.manifest import LARGEST_MANIFEST, NAME, file_digests

log = logging.getLogger(__name__)

# A file is missing, or something else is there.
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def read_manifest(path: Path) -> dict[str, Any]:
    """{"step", "leaves": {path: [shape, dtype]}, "content": {path: SHA-256}, "files"} of a
    checkpoint. Raises BadInput."""
    manifest = files.read_json(path / NAME, LARGEST_MANIFEST, follow=False)
    leaves, listed = manifest.get("leaves"), manifest.get("files")
    if not isinstance(leaves, dict) or not isinstance(listed, dict):
        raise BadInput(f"{path}: its manifest lists no leaves or no files")
    for leaf, known in leaves.items():
        if not (
            isinstance(known, list)
            and [type(part) for part in known] == [list, str]
            and all(type(n) is int and n >= 0 for n in known[0])
        ):
            raise BadInput(f"{path}: its manifest says of {leaf} {known!r:.50}, no shape and dtype")
    content = manifest.get("content")
    if not isinstance(content, dict) or content.keys() != leaves.keys():
        raise BadInput(f"{path}: its manifest does not hold one digest for each leaf")
    return manifest


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Raises StorageError where the disk cannot be read
    now: an intact checkpoint must not be given up for that."""
    try:
        files.check_plain(path)
        manifest = read_manifest(path)
        if not files.as_digested(manifest):
            return f"{NAME} is not as it was written"
        listed, actual = manifest["files"], file_digests(path)
    except (BadInput, KeyError, OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno not in MISSING:
            raise StorageError(
                f"{path}: cannot be read now: {cause.strerror}; nothing was moved, launch again. "
                f"If that stays so, move it out of {path.parent}: the step before it is used then"
            ) from error
        return f"cannot be verified ({error})"
    actual.pop(NAME)
    if actual == listed:
        return None
    names = sorted(k for k in actual.keys() | listed.keys() if actual.get(k) != listed.get(k))
    return f"{len(names)} files are not as they were written, the first is {names[0]}"


def is_intact(directory: Path, step: int) -> bool:
    """Whether the checkpoint of a step of a run is as it was written; if not, it is moved to
    quarantine, with a warning."""
    path = directory / "checkpoints" / str(step)
    damage = find_damage(path)
    if damage:
        log.warning("checkpoint %d: %s; moved to %s", step, damage, _quarantine(directory, path))
    return damage is None


def _quarantine(directory: Path, path: Path) -> Path:
    folder = files.make_directory(directory / "quarantine")
    target = folder / path.name
    number = 1
    while target.exists():
        number += 1
        target = folder / f"{path.name}-{number}"
    os.rename(path, target)
    return target
