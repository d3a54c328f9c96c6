"""Safe access to data sets of the Hugging Face hub, and folders like them, through `datasets`.

What is refused here names the key of the config, data.path.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.errors import BadInput, UnsafeFile, first_line
from research.io import files, links

LARGEST_README = 1 << 20  # bytes
# Of the formats that `datasets` knows, those that hold data alone.
FORMATS = ("json", "parquet", "text", "csv", "arrow", "imagefolder", "webdataset")


def load_safe_builder(path: str, subset: str | None = None, revision: str | None = None) -> Any:
    """The `datasets` builder of the data set `path`, a name on the hub or a local folder.

    A data set's README may name any file or URL as its data, so all of them must belong to the data
    set itself and be in one of FORMATS. Raises UnsafeFile if not, and whatever `datasets` raises.
    """
    import datasets

    if Path(path).is_dir():
        revision = None
        _check_readme(Path(path))
    builder = datasets.load_dataset_builder(path, subset, revision=revision)
    modules = [base.__module__.split(".") for base in type(builder).__mro__]
    packaged = [name[-1] for name in modules if name[:2] == ["datasets", "packaged_modules"]]
    kind = packaged[0] if packaged else "code"
    if kind not in FORMATS:
        raise UnsafeFile(f"data.path: {path}: {kind} is not among the formats {', '.join(FORMATS)}")
    for name in (str(f) for part in (builder.config.data_files or {}).values() for f in part):
        if Path(path).is_dir():
            links.check_inside(path, name, "data.path")
        elif not name.startswith(f"hf://datasets/{path}@") or ".." in name.split("/"):
            raise UnsafeFile(f"data.path: {path}: names {name} as its data, which is not its own")
    return builder


def _check_readme(folder: Path) -> None:
    """Raise UnsafeFile if the metadata of a folder names data outside it, before `datasets` could
    open the URL. Raises BadInput if the metadata is not YAML."""
    import yaml

    for name in ("README.md", ".huggingface.yaml"):
        if not (place := folder / name).is_file():
            continue
        try:
            words = files.text(place, LARGEST_README, follow=False)
        except UnsafeFile as error:
            raise UnsafeFile(f"data.path: {error}") from error
        if name == "README.md":
            words = words.split("\n---", 1)[0].removeprefix("---") if words[:3] == "---" else ""
        try:
            metadata = yaml.safe_load(words)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise BadInput(f"data.path: {place}: not YAML: {first_line(error)}") from error
        for part in _strings(metadata.get("configs") if isinstance(metadata, dict) else None):
            if "://" in part or "::" in part or part.startswith(("/", "~")) or ".." in part:
                raise UnsafeFile(
                    f"data.path: {place}: names {part} as its data, which is not its own"
                )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def check_folder(path: str) -> list[Path]:
    """All files below the folder that data.path names, sorted. Raises UnsafeFile, naming that key,
    for a symlink that leads out of it, and for anything that is not a regular file or folder."""
    out = []
    for folder, below, names in os.walk(path):
        for name in (*below, *names):
            place = Path(folder, name)
            if place.is_symlink():
                links.check_inside(path, place, "data.path")
            if place.is_file():
                out.append(place)
            elif not place.is_dir():
                raise UnsafeFile(f"data.path: {place}: not a regular file")
    return sorted(out)
