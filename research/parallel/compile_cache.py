"""Compiled programs are kept in the user's cache, so no process compiles what another one did."""

import importlib.metadata
import logging
import os
import platform
from pathlib import Path

import jax

from research.errors import StorageError
from research.io import files, host

log = logging.getLogger(__name__)

SWITCH = "ISOFLOP_COMPILE_CACHE"


def keep_programs() -> Path | None:
    """Look compiled programs up in a folder of this user, and keep new ones there; call before the
    first use of jax. Returns the folder.

    ISOFLOP_COMPILE_CACHE=off keeps none, and a folder that JAX_COMPILATION_CACHE_DIR names is left
    as it is. A folder that others can write to is not used: what lies there is run.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
        return None
    if chosen := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return Path(chosen)
    try:
        folder = _private(files.cache("programs") / _machine())
    except StorageError as error:
        log.warning("compiled programs are not kept: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a sweep of small models compiles many that take less than a second each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _machine() -> str:
    """What jax's own key of a program leaves out, as a name: a program for other instructions does
    not run, and one made for another number of cores may split its sums otherwise, so that the last
    bits of a run would depend on who had compiled it."""
    known = {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "machine": platform.machine(),
        "instructions": host.instructions(),
        "cores": host.cores(),
    }
    return f"jax-{jax.__version__}-{files.digest_of(known)[:12]}"


def _private(folder: Path) -> Path:
    """`folder`, made if it is not there, for this user alone, as is what it lies in below the
    cache: who may write there could put another in its place. Raises StorageError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for place, others in ((folder, 0o077), (folder.parent, 0o022), (files.cache(), 0o022)):
            found = place.lstat()
            mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
            if not mine or found.st_mode & others or not place.is_dir() or place.is_symlink():
                raise StorageError(
                    f"{place}: others may write there; expected a folder of mode 0700"
                )
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder
