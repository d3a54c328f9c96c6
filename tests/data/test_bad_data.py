"""Data that are garbage: empty, short, binary, changed, no text, of ids that there are not. All are
refused on the host, by name and place; nothing that nobody looked at goes to a device."""

import json
import logging
import shutil

import numpy as np
import pytest

from research import data
from research.data import byte_tokenizer, hub, text, token_files, tokenizers
from research.errors import BadInput
from research.sweep.points import read_points, resolve_points, write_points
from research.training.make_run import make_run
from research.training.trainer import host_batches, host_heldout

TEXT = {"context": 16, "heldout": 0.25, "tokenizer": "bytes", "field": "text", "vocab": None}
TABLE = {"target": ["y"], "columns": None, "kind": "numbers", "standardize": True, "heldout": 0.25}
IMAGES = {"heldout": 0.25, "examples": None, "resize": None, "shift": 0, "flip": False}
MIXED = {"weights": [1.0, 1.0]}
HUB = {"subset": None, "split": "train", "documents": None}
CLASSES = {"label_field": "label", "classes": None, "examples": None}
# The binary garbage of the tables below: no text, no table, no image, no archive.
GARBAGE = np.random.default_rng(0).bytes(5000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text._tokens.cache_clear()
    hub._tokens.cache_clear()
    return tmp_path / "cache"


def lines(n=80, seed=0):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefgh é"), rng.integers(40, 200))) for _ in range(n)]


def load(path, **changes):
    """The data set that reads such a file or folder."""
    name = changes.pop("name", None) or {
        "csv": "table",
        "parquet": "table",
        "npz": "images",
        "png": "images",
    }.get(str(path).rpartition(".")[2], "text")
    own = {"table": TABLE, "images": IMAGES}.get(name, TEXT)
    own = own | {"mixture": MIXED, "hub": HUB, "text_classes": CLASSES}.get(name, {})
    own = own | ({"paths": [str(path)] * 2} if name == "mixture" else {"path": str(path)})
    if name == "text_classes":
        own.pop("vocab")
    return data.load(name, **own | changes)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


READERS = [  # file, data set
    *(("a.txt", name) for name in ("text", "mixture")),
    *(("a.jsonl", name) for name in ("text", "mixture", "text_classes")),
    *(("a.csv", "table"), ("a.parquet", "table"), ("a.npz", "images")),
    *(("f/a/0.png", "images"), ("f/train.jsonl", "hub"), ("f/train.txt", "hub")),
    *(("f/train.parquet", "hub"), ("train-images-idx3-ubyte", "images")),
    *(("f/a.txt", "text_classes"), ("a.bin", "text")),
]


@pytest.mark.parametrize(
    "content",
    [b"", b"ten bytes.", GARBAGE, b"\xff\xfe" + GARBAGE[:98]],
    ids=["empty", "short", "garbage", "with a mark"],
)
@pytest.mark.parametrize(("name", "reader"), READERS)
@pytest.mark.fault(
    "R15",
    "data that are empty, too short or garbage",
    "refused by the name of the file, before anything is compiled",
    "0 bytes, ten bytes, random bytes, the same with a mark, to every reader",
)
def test_what_is_empty_short_or_garbage_is_rejected_by_name(name, reader, content, tmp_path):
    if reader == "hub":
        pytest.importorskip("datasets")
    path = written(tmp_path / name, content)
    if reader == "images":
        written(tmp_path / "train-labels-idx1-ubyte", content)
        written(tmp_path / "f" / "b" / "0.png", content)
    given = tmp_path / name.split("/")[0] if "/" in name else path
    changes = {"vocab": 300} if name.endswith(".bin") else {}
    with pytest.raises(BadInput) as error:
        load(given, name=reader, **changes)
    assert all(line.startswith("data.") for line in error.value.problems)
    assert all(str(tmp_path) in line for line in error.value.problems)


def test_short_data_are_reported_with_what_is_needed(tmp_path, tiny):
    path = written(tmp_path / "a.txt", "\n".join(lines(1000)).encode())
    with pytest.raises(BadInput, match=r"tokens; data.context = 9999999 needs at least 10000000"):
        load(path, context=9999999)
    for changes, words in (
        ({"batch.size": 4096}, "batch.size: 4096, but only .* training examples"),
        ({"eval.examples": 4096}, "eval.examples: 4096, but there are .* held-out examples"),
    ):
        with pytest.raises(BadInput, match=words):
            make_run(tiny({"data.path": str(path), "data.heldout": 0.4} | changes))


# Text that is none.

BROKEN = [  # bytes, the first that is no text, in how many places
    (b"\xff\xfe", 0, 2),
    (b"abc\xe9 d", 3, 1),
    ("ä".encode()[:1], 0, 1),
    (b"ab\x00c", 2, 1),
    (b"\xed\xa0\x80", 0, 3),  # half of a pair
    ("a".encode("utf-16-le"), 1, 1),
    (b"\xc0\xaf", 0, 2),  # longer than it need be
]


@pytest.mark.parametrize(("raw", "at", "count"), BROKEN)
@pytest.mark.parametrize("reader", ["text", "mixture", "text_classes"])
@pytest.mark.fault(
    "R16",
    "text that is not UTF-8",
    "an error with the place of the byte; `data.undecodable=replace` takes it, counted",
    "broken bytes in a line of each reader of text",
)
def test_what_is_no_text_is_an_error_with_its_place(raw, at, count, reader, tmp_path, caplog):
    good = "\n".join(
        json.dumps({"text": line, "label": "ab"[i % 2]}, ensure_ascii=False)
        for i, line in enumerate(lines())
    ).encode()
    first = good.index(b'"text": "') + len(b'"text": "')
    path = written(tmp_path / "a.jsonl", good[:first] + raw + good[first:])
    with pytest.raises(BadInput, match=rf"byte {first + at} is .*data.undecodable=replace"):
        load(path, name=reader)
    if 0 in raw and reader == "text":  # as a file of text alone, too
        plain = written(tmp_path / "b.txt", b"ab\x00c")
        with pytest.raises(BadInput, match="byte 2 is 0"):
            load(plain)
    with caplog.at_level(logging.WARNING):
        made = load(path, name=reader, undecodable="replace")
    files = 2 if reader == "mixture" else 1
    assert f"{count} places are not UTF-8" in caplog.text
    assert made.card()["undecodable"] == f"{count * files} places became U+FFFD"
    clean = written(tmp_path / "c.jsonl", good)
    assert "undecodable" not in load(clean, name=reader, undecodable="replace").card()
    assert load(clean, name=reader, undecodable="replace").digest == load(clean, name=reader).digest


def test_replacing_is_no_other_run_where_nothing_is_replaced(tiny):
    strict, replacing = make_run(tiny()), make_run(tiny({"data.undecodable": "replace"}))
    assert strict.id == replacing.id


@pytest.mark.fault(
    "R16",
    "any of the 256 bytes, as text",
    "the byte tokenizer gives all of them back",
    "each of them",
)
def test_the_byte_tokenizer_gives_all_bytes_back(tmp_path):
    every = bytes(range(256))
    made = byte_tokenizer.Tokenizer()
    assert made.decode(made.encode(every)) == every
    letters = "".join(map(chr, [*range(1, 0xD800, 7), 0xFFFD, 0x1F600]))
    assert made.decode(made.encode(letters)).decode() == letters
    with pytest.raises(BadInput, match="token 256: expected ids below 256"):
        made.decode([256])
    rows = [json.dumps({"text": f"{i} {letters}"}) for i in range(20)]
    split = load(written(tmp_path / "a.jsonl", "\n".join(rows).encode()))
    for part in (split.train, split.heldout):
        assert made.decode(part.tokens).split(b"\0")[0].decode().endswith(letters)


def test_bytes_of_a_column_are_no_text(tmp_path):
    pytest.importorskip("datasets")
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    (tmp_path / "f").mkdir()
    table = pyarrow.table({"text": pyarrow.array([b"\xff" + t.encode() for t in lines()])})
    parquet.write_table(table, tmp_path / "f" / "train.parquet")
    with pytest.raises(BadInput, match=r"data.field: 'text' of document 1 .* is not text"):
        load(tmp_path / "f", name="hub")


def test_half_of_a_pair_is_rejected_in_a_stream(monkeypatch):
    monkeypatch.setattr(hub, "_rows", lambda *_: iter([{"text": "a"}, {"text": "b\ud800"}]))
    with pytest.raises(BadInput, match=r"document 2 of f: character 1 is not valid Unicode"):
        list(hub._documents("f", "", {"field": "text"}))


# Ids that there are not.


def ids(path, values, kind=np.uint16):
    np.array(values, np.int64).astype(kind).tofile(path)
    return path


SOUND = list(np.random.default_rng(0).integers(1, 300, 400))


@pytest.mark.parametrize(
    ("values", "kind", "vocab", "words"),
    [
        ([*SOUND[:7], 300, *SOUND], np.uint16, 300, "id 300 at position 7, .* has 300, 0 to 299"),
        ([*SOUND, -1], np.uint16, 300, "id 65535 at position 400"),
        ([*SOUND, -1], np.uint32, 70_000, "id 4294967295 at position 400"),
        ([2**31 - 1, *SOUND], np.uint32, 70_000, "id 2147483647 at position 0"),
        ([*SOUND, 70_000], np.uint32, 70_000, "id 70000 at position 400, .* 0 to 69999"),
        (SOUND, np.uint16, 70_000, r"id \d+ at position 0"),  # written in a type that is too small
        (SOUND[:399], np.uint16, 70_000, "798 bytes is not a whole number of uint32"),
        (SOUND, np.uint32, 300, "every second id is 0, so .* wider numbers; expected uint16"),
        (SOUND, np.int64, 70_000, "every second id is 0, so .* wider numbers; expected uint32"),
        ([v % 256 for v in SOUND], np.uint8, 300, r"id \d+ at position"),
    ],
    ids=str,
)
@pytest.mark.fault(
    "R17",
    "ids that the vocabulary does not have",
    "an error with the id and its position, on the host",
    "V, -1, 2^31 - 1, numbers of other widths",
)
def test_ids_out_of_range_are_reported_with_their_place(values, kind, vocab, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        load(ids(tmp_path / "a.bin", values, kind), vocab=vocab)


def test_sound_ids_are_taken_and_an_array_with_a_header_is_not(tmp_path):
    for kind, vocab in ((np.uint16, 300), (np.uint32, 70_000)):
        made = load(ids(tmp_path / "a.bin", SOUND, kind), vocab=vocab)
        assert len(made.train.tokens) + len(made.heldout.tokens) == len(SOUND)
    np.save(tmp_path / "b.npy", np.array(SOUND, np.uint16))
    shutil.move(tmp_path / "b.npy", tmp_path / "b.bin")
    with pytest.raises(BadInput, match=r"is a .npy file; expected its array.tofile"):
        load(tmp_path / "b.bin", vocab=65_536)


class Wrong(byte_tokenizer.Tokenizer):
    """A tokenizer whose last id is one that it says there is not."""

    vocab, json, digest = 300, '{"wrong": 1}', "wrong"

    def encode_each(self, documents):
        return [np.array([1, 2, 300], np.uint32) for _ in documents]

    def encode_documents(self, documents):
        return np.concatenate(self.encode_each(documents))


@pytest.mark.parametrize("reader", ["text", "mixture", "hub", "text_classes"])
@pytest.mark.fault(
    "R17",
    "a tokenizer that gives ids that there are not",
    "an error with the id and its position",
    "one whose last id is one too large, in every reader",
)
def test_a_tokenizer_that_gives_ids_that_there_are_not_is_rejected(reader, tmp_path, monkeypatch):
    if reader == "hub":
        pytest.importorskip("datasets")
    rows = [json.dumps({"text": t, "label": "ab"[i % 2]}) for i, t in enumerate(lines())]
    path = written(tmp_path / "f" / "train.jsonl", "\n".join(rows).encode())
    written(tmp_path / "t.json", b"{}")
    monkeypatch.setattr(tokenizers, "read", lambda path: Wrong())
    with pytest.raises(BadInput, match=r"^data.tokenizer: id 300 at position 2, .* 0 to 299"):
        load(path.parent if reader == "hub" else path, name=reader, tokenizer=f"{tmp_path}/t.json")


@pytest.mark.fault(
    "R17",
    "labels or pixels out of range",
    "an error that says what they hold",
    "wrong types, shapes, values, NaN",
)
def test_labels_and_pixels_out_of_range_are_rejected(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8)
    for y, words in (
        (np.arange(60) % 3 - 1.0, "y holds float64; expected integer labels"),
        (np.zeros(60, int), "1 classes; expected at least 2"),
        (np.arange(59) % 3, r"y has shape \[59\]"),
    ):
        np.savez(tmp_path / "a.npz", x=x, y=y)
        with pytest.raises(BadInput, match=words):
            load(tmp_path / "a.npz")
    for value in (-1.0, 256.0, np.nan, np.inf):
        bad = x.astype(float)
        bad[3, 2, 1] = value
        np.savez(tmp_path / "a.npz", x=bad, y=np.arange(60) % 3)
        with pytest.raises(BadInput, match="x holds float64 from"):
            load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 3 - 1)  # any integers name classes
    assert set(load(tmp_path / "a.npz").train.rows(np.arange(9))["targets"]) <= {0, 1, 2}


@pytest.mark.parametrize(("value", "words"), [("1e30", r"holds 1e\+30 in row 3"), ("nan", "row 3")])
def test_numbers_that_no_float32_holds_are_rejected(value, words, tmp_path):
    rows = [f"{i},{i * i}" for i in range(60)]
    rows[2] = f"{value},4"
    with pytest.raises(BadInput, match=words):
        load(written(tmp_path / "a.csv", "\n".join(["x,y", *rows]).encode()))


# What is between the check and the device.


def corpora(tmp_path):
    """Data sets whose ids are mapped, and the file of each that is mapped."""
    made = load(ids(tmp_path / "a.bin", SOUND, np.uint16), vocab=300)
    yield made, tmp_path / "a.bin"
    document = "\n".join(json.dumps({"text": line}) for line in lines()).encode()
    path = written(tmp_path / "f" / "train.jsonl", document)
    yield (
        load(path, tokenizer="bpe", vocab=270),
        next((tmp_path / "cache/tokens").glob("*/train.bin")),
    )


@pytest.mark.fault(
    "R15",
    "data that change while they are in use",
    "an error that names the file, before its ids are used",
    "a mapped file replaced, cut, written to",
)
def test_a_mapped_file_that_changes_is_noticed_before_its_ids_are_used(tmp_path):
    pytest.importorskip("tokenizers")
    for made, path in corpora(tmp_path):
        before = made.train.rows(np.arange(2))["inputs"]
        whole = path.read_bytes()
        copy = written(path.with_suffix(".new"), whole[: len(whole) // 2])
        copy.rename(path)  # another file takes its name: this one stays as it was
        np.testing.assert_array_equal(made.train.rows(np.arange(2))["inputs"], before)
    for damage in ("cut", "written"):
        (tmp_path / damage).mkdir()
        made, path = next(corpora(tmp_path / damage))
        with open(path, "r+b") as file:
            file.truncate(10) if damage == "cut" else file.write(b"\xff\xff")
        with pytest.raises(BadInput, match=r"a.bin: was written to while it is in use"):
            made.train.rows(np.arange(2))


@pytest.mark.parametrize("part", ["train", "heldout"])
@pytest.mark.fault(
    "R17",
    "an id out of range in a batch, whatever was checked before",
    "no batch with it reaches a device",
    "ids in memory changed after the check",
)
def test_an_id_that_comes_later_reaches_no_device(part, corpus, tiny, tmp_path):
    """Whatever the file system says of a file: every batch is looked at."""
    run = make_run(tiny())
    windows = run.data.train if part == "train" else run.data.heldout
    tokens = np.array(windows.tokens, np.uint16)
    changed = windows.corpus._replace(**{part: tokens})
    object.__setattr__(windows, "corpus", changed)
    host_batches(run, 0, 1, 1)
    tokens[:] = 256
    with pytest.raises(BadInput, match=rf"{part} tokens: id 256 at position \d+, .* 0 to 255"):
        host_batches(run, 0, 1, 1) if part == "train" else host_heldout(run, 1)


@pytest.mark.fault(
    "R15",
    "data that changed since the launch",
    "a worker refuses them",
    "a line added between launch and worker",
)
def test_a_worker_rejects_other_data_than_those_of_the_launch(tiny, corpus, tmp_path):
    path = shutil.copy(corpus, tmp_path / "c.txt")
    config = tiny({"data.path": str(path)})
    points = resolve_points([({}, config)], tmp_path)
    file = write_points(points, tmp_path)
    assert [p.run.id for p in read_points(file, tmp_path)[0]] == [p.run.id for p in points]
    with open(path, "a") as more:
        more.write("one line more\n")
    with pytest.raises(BadInput, match=r"data: not what it was at the launch of --sweep="):
        read_points(file, tmp_path)


@pytest.mark.fault(
    "R15",
    "a flipped bit in the cache of token ids",
    "seen, and the ids are regenerated",
    "twenty seeded bits",
)
def test_a_flipped_bit_in_the_cache_is_mended(tmp_path, cache):
    pytest.importorskip("tokenizers")
    rows = "\n".join(json.dumps({"text": line}) for line in lines()).encode()
    path = written(tmp_path / "a.jsonl", rows)
    made = load(path, tokenizer="bpe", vocab=270)
    first = np.array(made.train.tokens)
    (file,) = (cache / "tokens").glob("*/train.bin")
    raw = bytearray(file.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(raw), 20):
        raw[at] ^= 1
        written(file.with_suffix(".new"), raw).rename(file)
        assert token_files.find(file.parent.name) is None
    text._tokens.cache_clear()
    again = load(path, tokenizer="bpe", vocab=270)
    assert again.digest == made.digest
    np.testing.assert_array_equal(again.train.tokens, first)
