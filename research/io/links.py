"""Links in folders from elsewhere."""

import os
from pathlib import Path

from research.errors import UnsafeFile


def check_inside(
    folder: str | os.PathLike[str], path: str | os.PathLike[str], what: str = ""
) -> None:
    """Raise UnsafeFile if `path` leads out of `folder`, by a link, naming `what` asked for it, such
    as a key of a config."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UnsafeFile(
            f"{what and what + ': '}{path}: leads out of {folder}; give a copy of what it leads to"
        )
