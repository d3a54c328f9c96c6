"""The manifest of a checkpoint: what it must hold, checked before anything in it is used.

manifest.json  {"step", "leaves": {path: [shape, dtype]}, "content": {path: SHA-256}, "files":
               {name: [bytes, SHA-256]}, "digest": SHA-256 of all that}

`files` guards the bytes on disk, which differ between two saves of one state: orbax writes the time
into them. `content` is of the values of the arrays, so that equal states have equal digests
whenever, wherever and by however many processes they were saved.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.io import files
from research.parallel import distributed
from research.params import leaves_by_path

NAME = "manifest.json"
LARGEST_MANIFEST = 64 << 20  # bytes


def write_manifest(
    folder: Path, step: int, leaves: Mapping[str, list], content: Mapping[str, str]
) -> None:
    """Describe the checkpoint whose files are in `folder`: `leaves` holds shapes and dtypes,
    `content` the digests of the arrays."""
    listed = {"step": step, "leaves": dict(leaves), "content": dict(content)}
    files.write_json(folder / NAME, files.digested({**listed, "files": file_digests(folder)}))


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of the values of an array in C order, in hexadecimal. Shape and dtype are not in it:
    the manifest holds them beside it."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def array_digests(
    leaves: Mapping[str, Any], to_host: Callable[[Any], np.ndarray] = np.asarray
) -> dict[str, str]:
    """{path: digest} of the arrays that `to_host` makes of `leaves`, several at once: hashing
    releases the GIL."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda leaf: array_digest(to_host(leaf)), leaves.values())
        return dict(zip(leaves, digests, strict=True))


def digest_state(state: Any) -> dict[str, str]:
    """{path: SHA-256} of the arrays of a state; all processes must call it. What several of them
    hold together is gathered an array at a time, for process 0, the only one that hashes."""
    leaves = leaves_by_path(state)
    if distributed.process_count() == 1:
        return array_digests(leaves, _host_array)
    out = {}
    for path, leaf in leaves.items():
        array = distributed.gather(leaf)
        if distributed.is_primary():
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


def file_digests(folder: Path) -> dict[str, list]:
    """{relative path: [bytes, SHA-256]}. Raises UnsafeFile on anything but regular files."""
    listed = sorted(files.walk(folder))
    return {name: [stat.st_size, files.digest_file(folder / name)] for name, stat in listed}
