"""Sets of the Hugging Face hub, and folders like them, through `datasets`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.errors import BadInput, UnsafeFile, first_line
from research.io import files

LARGEST_README = 1 << 20  # bytes
# Of the formats that `datasets` knows, those that hold data alone.
FORMATS = ("json", "parquet", "text", "csv", "arrow", "imagefolder", "webdataset")


def opened(path: str, subset: str | None = None, revision: str | None = None) -> Any:
    """What `datasets` will read of the set `path`, a name on the hub or a folder.

    A README of the set may name any file or address as its data, so all of them must be the set's
    own, in one of FORMATS. Raises UnsafeFile, and whatever `datasets` raises.
    """
    import datasets

    if Path(path).is_dir():
        revision = None
        _check_words(Path(path))
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


def _check_words(folder: Path) -> None:
    """Raise UnsafeFile where what a folder says of itself names data elsewhere: `datasets` asks for
    an address before it can be refused. Raises BadInput where it is no YAML."""
    import yaml

    for name in ("README.md", ".huggingface.yaml"):
        if not (place := folder / name).is_file():
            continue
        words = files.text(place, LARGEST_README, follow=False)
        if name == "README.md":
            words = words.split("\n---", 1)[0].removeprefix("---") if words[:3] == "---" else ""
        try:
            tokens = list(yaml.scan(words, yaml.SafeLoader))
            if any(isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in tokens):
                raise UnsafeFile(f"{place}: holds aliases, which may unfold without an end")
            found = yaml.safe_load(words)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise BadInput(f"{place}: not YAML: {first_line(error)}") from error
        for part in _strings(found.get("configs") if isinstance(found, dict) else None):
            if "://" in part or "::" in part or part.startswith(("/", "~")) or ".." in part:
                raise UnsafeFile(f"{place}: names {part} as its data, which is not its own")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


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
                raise UnsafeFile(f"{place}: not a regular file")
    return sorted(out)
