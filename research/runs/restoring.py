"""Reading a checkpoint, through orbax, once its manifest was found true."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import BadInput, Damaged, IsoflopError, UnsafeFile, first_line
from research.parallel import distributed
from research.params import leaves_by_path
from research.runs import orbax_io
from research.runs.manifest import digest_state
from research.runs.manifest_check import find_damage, read_manifest


def restore(path: Path, abstract: Any) -> Any:
    """The whole state of a checkpoint, sharded as `abstract`. Raises BadInput if it holds other
    shapes or dtypes, Damaged if orbax cannot read it, or reads other values than were saved: its
    files may have changed since they were found intact."""
    manifest = read_manifest(path)
    expected, stored = orbax_io.shapes_and_dtypes(abstract), manifest["leaves"]
    if expected != stored:
        differing = sorted(
            k for k in expected.keys() | stored.keys() if expected.get(k) != stored.get(k)
        )
        lines = [f"{k}: holds {stored.get(k)}, expected {expected.get(k)}" for k in differing[:5]]
        raise BadInput(f"{path}: not the state of this run ({len(differing)} leaves)", *lines)
    checked_tree(path, stored)
    with orbax_io.checkpointer() as reader, orbax_errors(path):
        state = reader.restore(path / "state", args=orbax_io.orbax().args.StandardRestore(abstract))
    content = digest_state(state)
    if distributed.broadcast(lambda: content != manifest["content"]):
        raise Damaged(f"{path}: other values were read than were saved: it is damaged, or changing")
    return state


def checked_tree(path: Path, leaves: Mapping[str, list]) -> Any:
    """The metadata of the arrays, from orbax, as the tree of the state. Raises UnsafeFile if they
    are not of the shapes and dtypes that the manifest says."""
    with orbax_io.orbax().PyTreeCheckpointer() as reader, orbax_errors(path):
        metadata = reader.metadata(path / "state").item_metadata
        tree = metadata.tree if metadata else {}
        stored = leaves_by_path(tree)
    if stored.keys() != leaves.keys():
        raise UnsafeFile(f"{path}: holds other arrays than its manifest says")
    for leaf, known in leaves.items():
        array = stored[leaf]
        if [list(getattr(array, "shape", "?")), str(getattr(array, "dtype", ""))] != known:
            raise UnsafeFile(f"{path}: {leaf} is not the array that the manifest says")
    return tree


@contextlib.contextmanager
def orbax_errors(path: Path) -> Iterator[None]:
    """Turn what orbax and tensorstore raise on files that are not a checkpoint into Damaged."""
    try:
        yield
    except (IsoflopError, MemoryError):
        raise
    except Exception as error:  # orbax raises no narrower type
        raise Damaged(f"{path}: orbax cannot read it: {first_line(error)}") from error


def any_damaged(*paths: Path) -> bool:
    """Whether one of these checkpoints, which were intact and could not be read, is damaged now, so
    that an earlier one may be tried. False with several processes, which would have to agree."""
    return distributed.process_count() == 1 and any(map(find_damage, paths))
