"""Arrays in files of the format safetensors: alone, or in the parts of a folder as Hugging Face
`transformers` writes it. No such file holds code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import BadInput, Damaged, UnsafeFile, first_line
from research.io import files, host, links
from research.io.extras import install_command

ALONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PART = "model-{:05d}-of-{:05d}.safetensors"
LARGEST_PART = 5_000_000_000  # bytes of the arrays in one file, unless one array has more
KINDS = {"F16": np.float16, "F32": np.float32}  # beside BF16, which numpy has not


def save(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
    """The content of a file. Raises BadInput where the library is not there."""
    library = _library().numpy
    return library.save({k: np.ascontiguousarray(x) for k, x in arrays.items()}, dict(about))


def load(raw: bytes, what: object) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises Damaged, beginning with `what`, where it is none."""
    library = _library().numpy
    try:
        return library.load(raw)
    except Exception as error:  # of a library in another language
        raise Damaged(f"{what}: {first_line(error)}") from error


def parts(
    arrays: Mapping[str, np.ndarray], about: Mapping[str, str], largest: int = LARGEST_PART
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a folder, one at a time: ALONE, or parts of at most `largest`
    bytes and their INDEX."""
    groups, size = [[]], 0
    for name, array in arrays.items():
        if groups[-1] and size + array.nbytes > largest:
            groups, size = [*groups, []], 0
        groups[-1].append(name)
        size += array.nbytes
    if len(groups) == 1:
        yield ALONE, save(arrays, about)
        return
    where: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        where |= dict.fromkeys(group, name := PART.format(number, len(groups)))
        yield name, save({key: arrays[key] for key in group}, about)
    total = {"total_size": sum(array.nbytes for array in arrays.values())}
    yield INDEX, files.indented({"metadata": total, "weight_map": where}).encode()


def load_folder(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of ALONE, or of all parts where it is not there, as float32. Raises BadInput where
    there are none or of another type, UnsafeFile and Damaged as `load`."""
    names = [ALONE]
    if (folder / INDEX).exists() and not (folder / ALONE).exists():  # as transformers chooses
        where = files.parse(member(folder, INDEX, 64 << 20), folder / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(n, str) for n in where.values()):
            raise BadInput(f"{folder / INDEX}: its weight_map does not name files")
        names = sorted(set(where.values()))
    out: dict[str, np.ndarray] = {}
    for name in names:
        found = _as_float32(member(folder, name, host.memory()), folder / name)
        if twice := sorted(found.keys() & out.keys()):
            raise BadInput(f"{folder / name}: holds {twice[0]:.80}, as another part does")
        out |= found
    return out


def member(folder: Path, name: str, limit: int) -> bytes:
    """A file of a folder that somebody else may have made. It may be a link only as in the cache of
    Hugging Face, whose snapshots/<commit> lead to the blobs beside it. Raises BadInput where it is
    not there, UnsafeFile."""
    if Path(name).name != name:
        raise UnsafeFile(f"{folder}: names the file {name!r:.80}, expected one beside it")
    own = folder.resolve()
    root = own.parents[1] if own.parent.name == "snapshots" else own
    links.check_inside(root, own / name)
    try:
        return files.read((own / name).resolve(), limit, follow=False)
    except OSError as error:
        raise BadInput(f"{folder / name}: {error.strerror}") from error


def _as_float32(raw: bytes, what: object) -> dict[str, np.ndarray]:
    """Exactly: bfloat16 is the upper half of a float32."""
    try:
        found = _library().deserialize(raw)
    except Exception as error:  # as above
        raise Damaged(f"{what}: {first_line(error)}") from error
    out = {}
    for name, view in found:
        kind, shape, data = view["dtype"], view["shape"], bytes(view["data"])
        if kind == "BF16":
            wide = np.frombuffer(data, "<u2").astype("<u4") << 16
            out[name] = wide.view(np.float32).reshape(shape)
        elif kind in KINDS:
            out[name] = np.frombuffer(data, KINDS[kind]).astype(np.float32).reshape(shape)
        elif kind not in ("BOOL", "U8"):  # masks, of which nothing is learned
            raise BadInput(f"{what}: {name:.80} is of type {kind}; expected F32, F16 or BF16")
    return out


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise BadInput(
            f"an export needs the package safetensors; {install_command('export')}"
        ) from error
    return safetensors
