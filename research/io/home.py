"""A home for who has none, as in some containers."""

import contextlib
import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


@functools.cache
def substitute_home() -> Path:
    """A folder of this user alone, below that of temporary files."""
    folder = Path(tempfile.gettempdir()) / f"isoflop-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode != stat.S_IFDIR | 0o700:
        folder = Path(tempfile.mkdtemp(prefix="isoflop-"))  # another user has taken the name
    log.warning("no home that can be written to: caches are in %s", folder)
    return folder
