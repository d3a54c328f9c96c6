"""Sets of the Hugging Face hub, and folders like them, through `datasets`."""

import os
from pathlib import Path
from typing import Any

from research import files
from research.errors import UnsafeFile

# Of the formats that `datasets` knows, those that hold data alone.
FORMATS = ("json", "parquet", "text", "csv", "arrow", "imagefolder", "webdataset")


def opened(path: str, subset: str | None = None, revision: str | None = None) -> Any:
    """What `datasets` will read of the set `path`, a name on the hub or a folder.

    A README of the set may name any file or address as its data, so all of them must be the set's
    own, in one of FORMATS. Raises UnsafeFile, and whatever `datasets` raises.
    """
    import datasets

    revision = None if Path(path).is_dir() else revision
    builder = datasets.load_dataset_builder(path, subset, revision=revision)
    rooms = [base.__module__.split(".") for base in type(builder).__mro__]
    own = [room[-1] for room in rooms if room[:2] == ["datasets", "packaged_modules"]]
    kind = own[0] if own else "code"
    if kind not in FORMATS:
        raise UnsafeFile(f"{path}: {kind} is not among the formats {', '.join(FORMATS)}")
    for name in (str(f) for found in (builder.config.data_files or {}).values() for f in found):
        if Path(path).is_dir():
            files.check_inside(path, name)
        elif not name.startswith(f"hf://datasets/{path}@") or ".." in name.split("/"):
            raise UnsafeFile(f"{path}: names {name} as its data, which is not its own")
    return builder


def check_folder(path: str) -> list[Path]:
    """All files below a folder, sorted. Raises UnsafeFile for one that leads out of it, and for
    what is no file."""
    out = []
    for folder, below, names in os.walk(path):
        for name in (*below, *names):
            place = Path(folder, name)
            if place.is_symlink():
                files.check_inside(path, place)
            if place.is_file():
                out.append(place)
            elif not place.is_dir():
                raise UnsafeFile(f"{place}: is no plain file")
    return sorted(out)
