"""Images of classes: digits that packages ship, arrays, IDX files, folders, the Hugging Face hub.

Dimensions: N images, B batch, H height, W width, C channels.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from research.config.types import NonNegativeInt, OpenUnit, PositiveInt
from research.data import image_files
from research.data.labels import interleave_classes
from research.data.sampling import is_heldout, splitmix64
from research.errors import BadInput
from research.io import files


@dataclass(frozen=True)
class Images:
    """The subset `chosen` of `pixels` (uint8 [N, H, W, C]) and `labels` [N], standardized with
    `mean_C` and `scale_C`; `shift` and `flip` say how training images are augmented."""

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
            pixels = augment(pixels, draw, self.shift, self.flip)
        inputs = (pixels / np.float32(255) - self.mean_C) / self.scale_C
        return {"inputs": inputs, "targets": self.labels[at]}


def augment(pixels: np.ndarray, draw: np.ndarray, shift: int, flip: bool) -> np.ndarray:
    """Random translations by up to `shift` pixels along each axis, padded with black, and with
    `flip` random horizontal flips of `pixels` [B, H, W, C]: a pure function of `draw` [B]."""
    if shift:
        B, H, W, _ = pixels.shape
        move_Bx2 = (
            splitmix64(draw[:, None] + np.array([1, 2], np.uint64)) % np.uint64(2 * shift + 1)
        ).astype(int)
        row_BxH = move_Bx2[:, :1] + np.arange(H)
        column_BxW = move_Bx2[:, 1:] + np.arange(W)
        padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        pixels = padded[np.arange(B)[:, None, None], row_BxH[:, :, None], column_BxW[:, None, :]]
    if flip:
        mirrored_B = splitmix64(draw) >> np.uint64(63) == 1
        pixels = np.where(mirrored_B[:, None, None, None], pixels[:, :, ::-1], pixels)
    return pixels


def load(
    *,
    path: str,
    heldout: OpenUnit | None,
    examples: PositiveInt | None,
    resize: PositiveInt | None,
    shift: NonNegativeInt,
    flip: bool,
) -> dict[str, object]:
    """The fields of a `Dataset` of images and their classes.

    `path` is a name of SOURCES; a `.npz` with arrays as in ARRAYS; a folder with the files of MNIST
    (train-images-idx3-ubyte, …, or .gz), or the file of images alone; a folder with one folder of
    .png or .jpg files for each class (perhaps below train/ and test/); or hub:NAME, through
    `datasets`. Pixels have 8 bits; gray images among colored ones become colored.

    About the share `heldout` of the images, chosen by the hash of their pixels, is never trained
    on; a test part that the data come with is not looked at then. none: it is what is held out. A
    training image that equals a held-out one is dropped. `examples` trains on that many, as
    balanced over the classes as they allow; fewer are always among more. `resize` makes all images
    squares of that side. In training, images are moved by up to `shift` pixels, and mirrored with
    probability 1/2 if `flip`. The mean and standard deviation that are taken out of each channel
    are those of all training images, whatever `examples`.

    Raises BadInput for what is missing, damaged, too large or not of one shape.
    """
    split = _split(path, image_files.stamp(path), heldout, resize)
    pixels, labels, train, evaluated, keys, names, mean_C, scale_C = split
    _, H, W, C = pixels.shape
    if shift >= min(H, W):
        raise BadInput(
            f"data.shift: {shift} pixels, but the images are "
            f"{image_files.describe_sides(pixels.shape)}"
        )
    if examples is not None:
        train = _balanced_subset(path, train, labels, keys, len(names), examples)
    digest = files.digest(
        *(array[part].tobytes() for part in (train, evaluated) for array in (keys, labels)),
        *(array.tobytes() for array in (mean_C, scale_C)),
        repr((H, W, C, shift, flip)).encode(),
    )
    whole = Images(pixels, labels, train, mean_C, scale_C, shift, flip)
    card = {
        "source": image_files.SOURCES.get(path, path),
        "digest": digest,
        "train_examples": len(train),
        "heldout_examples": len(evaluated),
        "classes": len(names),
        "image_shape": f"{H} x {W} x {C}",
        "augmentation": f"shift by up to {shift} pixels" + (", flip" if flip else ""),
    }
    return {
        "train": whole,
        "heldout": Images(pixels, labels, evaluated, mean_C, scale_C),
        "targets": "classes",
        "facts": {
            "image_shape": (H, W, C),
            "classes": len(names),
            "outputs": len(names),
            "features": H * W * C,
        },
        "digest": digest,
        "load_set": functools.partial(load_set, like=whole, names=names),
        "unique_tokens": len(train),
        "notes": {"class_names": list(names)},
        "contents": functools.partial(_contents, keys, {"train": train, "heldout": evaluated}),
        "card": lambda: dict(card),
    }


def load_set(path: str, data: Mapping[str, Any], like: Images, names: Sequence[str]) -> Images:
    """All images of another source, its test part too, scaled and numbered as those of `like`.
    Raises BadInput."""
    source = image_files.read(path)
    pixels, _ = _read_pixels(path, source.parts, data["resize"])
    own, of = _number_classes(path, [part.labels for part in source.parts], source.names)
    if unknown := [name for name in of if name not in names]:
        raise BadInput(f"data.path: {path} has a class {unknown[0]!r:.50} of no training image")
    if pixels.shape[1:] != like.pixels.shape[1:]:
        sides = map(image_files.describe_sides, (pixels.shape, like.pixels.shape))
        raise BadInput(f"data.path: {path}: images are {', expected '.join(sides)}")
    numbers = np.array([names.index(name) for name in of], own.dtype)[own]
    return Images(pixels, numbers, np.arange(len(own)), like.mean_C, like.scale_C)


def _contents(
    keys: np.ndarray, numbers: Mapping[str, np.ndarray], part: str, classes: int
) -> np.ndarray:
    from research.data.row_contents import of_digests

    return of_digests([key.tobytes() for key in keys[numbers[part]]], classes)


class Split(NamedTuple):
    """All images in one array, the numbers of those to train on and of those held out, and a
    SHA-256 [N, 32] of the pixels of each; mean and standard deviation of the training pixels."""

    pixels: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    evaluated: np.ndarray
    keys: np.ndarray
    names: tuple[str, ...]
    mean_C: np.ndarray
    scale_C: np.ndarray


@functools.lru_cache(maxsize=2)  # a sweep asks for every point
def _split(path: str, stamp: object, heldout: float | None, resize: int | None) -> Split:
    source = image_files.read(path)
    if heldout is None and len(source.parts) < 2:
        raise BadInput(f"data.heldout: none, but {path} has no test part; give a share")
    parts = source.parts if heldout is None else source.parts[:1]
    pixels, hashes = _read_pixels(path, parts, resize)
    labels, names = _number_classes(path, [part.labels for part in parts], source.names)
    if heldout is None:
        side = np.arange(len(labels)) >= len(parts[0].labels)
    else:  # by the hash of the pixels as they came, so that it is one split at every size
        side = np.array([is_heldout(h, heldout) for h in hashes])
    keys = np.stack([np.frombuffer(_hash(image), np.uint8) for image in pixels])
    heldout_keys = {key.tobytes() for key in keys[side]}
    repeated = np.array([key.tobytes() in heldout_keys for key in keys])
    train, evaluated = np.flatnonzero(~side & ~repeated), np.flatnonzero(side)
    if not len(train) or not len(evaluated):
        raise BadInput(
            f"data.heldout: {len(labels)} images of {path} leave {len(train)} to train on and "
            f"{len(evaluated)} held out"
        )
    if missing := sorted(set(range(len(names))) - set(labels[train].tolist())):
        raise BadInput(f"data.heldout: class {names[missing[0]]!r} of {path} has no training image")
    for array in (pixels, labels, train, evaluated, keys):
        array.setflags(write=False)
    return Split(pixels, labels, train, evaluated, keys, names, *_channel_statistics(pixels, train))


def _read_pixels(
    path: str, parts: list[image_files.Part], resize: int | None
) -> tuple[np.ndarray, list[bytes]]:
    """The images of all parts, uint8 [N, H, W, C], and the hash of each before resizing."""
    n = sum(len(part.labels) for part in parts)
    if resize is not None and n * resize**2 > image_files.MOST_BYTES:
        raise BadInput(
            f"data.resize: {resize} makes {n} images {n * resize**2 / 1e9:.3g} GB of pixels, more "
            f"than {image_files.MOST_BYTES / 1e9:.1f}"
        )
    out, hashes = np.empty((n, 0, 0, 0), np.uint8), []
    for part in parts:
        for i, image in enumerate(part.images):
            hashes.append(_hash(image))
            image = image if resize is None else _resize(image, resize)
            if len(hashes) == 1:
                out = image_files.allocate_pixels(path, (n, *image.shape))
            if image.shape[:2] != out.shape[1:3]:
                raise BadInput(
                    f"data.path: {path}: {part.where(i)} is "
                    f"{image_files.describe_sides((0, *image.shape))}, the first is "
                    f"{image_files.describe_sides(out.shape)}; data.resize makes all of one size"
                )
            if image.shape[2] > out.shape[3]:  # the first color after gray ones
                gray, out = out, image_files.allocate_pixels(path, (n, *image.shape))
                out[:] = gray
            out[len(hashes) - 1] = image
    return out, hashes


def _hash(image: np.ndarray) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    """`image` at side x side, by Pillow's bilinear filter, which antialiases when shrinking."""
    from PIL import Image

    gray = image.shape[2] == 1
    resized = Image.fromarray(image[..., 0] if gray else image)
    resized = np.asarray(resized.resize((side, side), Image.Resampling.BILINEAR))
    return resized[..., None] if gray else resized


def _number_classes(
    path: str, labels: list[np.ndarray], names: list[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of all parts as int32 from 0 on, [N], and the names of the classes."""
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


def _channel_statistics(pixels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _balanced_subset(
    path: str, train: np.ndarray, labels: np.ndarray, keys: np.ndarray, classes: int, n: int
) -> np.ndarray:
    """The numbers of n training images, equally many of each class as far as there are, chosen
    within a class by the hash of the image."""
    if n < classes:
        raise BadInput(f"data.examples: {n} are fewer than the {classes} classes of {path}")
    if n > len(train):
        raise BadInput(f"data.examples: {n}, but {path} has {len(train)} to train on")
    # The split took the smallest hashes away; the largest are there whatever its share.
    by_hash = np.array(sorted(train.tolist(), key=lambda i: keys[i].tobytes(), reverse=True))
    return np.sort(by_hash[interleave_classes(labels[by_hash])][:n])
