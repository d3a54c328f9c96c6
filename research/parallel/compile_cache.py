"""jax's persistent compilation cache, in a private folder of the user's cache directory."""

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


def enable_compile_cache() -> Path | None:
    """Turn on jax's persistent compilation cache; call before the first use of jax. Returns its
    folder, or None if it stays off.

    ISOFLOP_COMPILE_CACHE=off turns it off, and JAX_COMPILATION_CACHE_DIR takes precedence. A folder
    that other users can write to is not used, as cached programs are executed.
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
    """A folder name from what jax's own cache key leaves out: a program with instructions that this
    CPU lacks does not run, and one compiled for another number of cores may order its sums
    differently, so that the last bits of a run would depend on who compiled it."""
    key = {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "machine": platform.machine(),
        "instructions": host.instructions(),
        "cores": host.cores(),
    }
    return f"jax-{jax.__version__}-{files.digest_of(key)[:12]}"


def _private(folder: Path) -> Path:
    """`folder`, created if missing, readable by this user alone. Raises StorageError if others can
    write to it or to a parent up to the cache, since they could replace it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for place, others in ((folder, 0o077), (folder.parent, 0o022), (files.cache(), 0o022)):
            status = place.lstat()
            mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if not mine or status.st_mode & others or not place.is_dir() or place.is_symlink():
                raise StorageError(
                    f"{place}: others may write there; expected a folder of mode 0700"
                )
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder
