"""Windows, the order of the examples, the split, and every bad file."""

import random

import numpy as np
import pytest

from research import data
from research.data import ngrams, text
from research.errors import BadInput


def load(path, **changes):
    options = {"context": 16, "heldout": 0.25, "tokenizer": "bytes", "field": "text", "vocab": None}
    return data.load("text", path=str(path), **options | changes)


def documents(n=60, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh \n", k=rng.randint(100, 400))) for _ in range(n)]


def jsonl(path, texts):
    import json

    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return path


def test_targets_are_inputs_one_later_and_every_token_is_predicted_once(corpus):
    split = load(corpus).train
    rows = split.rows(np.arange(len(split)))
    np.testing.assert_array_equal(rows["inputs"][:, 1:], rows["targets"][:, :-1])
    predicted = rows["targets"].reshape(-1)
    np.testing.assert_array_equal(predicted, split.tokens[1 : 1 + len(predicted)])
    assert len(split.tokens) - 1 - len(predicted) < 16


def test_bytes_come_back_as_they_were(tmp_path):
    texts = ["".join(map(chr, range(1, 256))) * 3 + str(i) for i in range(20)]
    made = load(jsonl(tmp_path / "a.jsonl", texts))
    parts = [bytes(split.tokens).split(b"\x00") for split in (made.train, made.heldout)]
    assert sorted(p.decode() for part in parts for p in part) == sorted(texts)


def test_the_split_follows_the_content_and_not_its_place(tmp_path):
    texts = documents()
    one = load(jsonl(tmp_path / "a.jsonl", texts))
    other = load(jsonl(tmp_path / "b.jsonl", texts[::-1]))
    sets = [set(bytes(d.heldout.tokens).split(b"\x00")) for d in (one, other)]
    assert sets[0] == sets[1]
    assert not sets[0] & set(bytes(one.train.tokens).split(b"\x00"))
    assert 0.1 < len(sets[0]) / len(texts) < 0.45
    more = load(jsonl(tmp_path / "c.jsonl", texts), heldout=0.6)
    assert len(more.heldout.tokens) > len(one.heldout.tokens)


def test_repeated_documents_are_dropped(tmp_path):
    texts = documents()
    once, twice = (load(jsonl(tmp_path / f"{k}.jsonl", texts * k)) for k in (1, 2))
    assert once.digest == twice.digest
    assert once.unique_tokens == twice.unique_tokens == len(once.train.tokens)
    assert once.digest != load(jsonl(tmp_path / "x.jsonl", documents(seed=1))).digest


def test_a_plain_file_is_split_at_line_ends(corpus):
    made = load(corpus)
    blocks = text._balanced_blocks(corpus.read_bytes(), 0.25)
    assert b"".join(blocks) == corpus.read_bytes()
    assert all(block.endswith(b"\n") for block in blocks[:-1])
    assert made.unique_tokens + len(made.heldout.tokens) == corpus.stat().st_size + len(blocks) - 2


def test_a_changed_file_is_read_again(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", documents())
    before = load(path).digest
    jsonl(path, documents(61))
    assert load(path).digest != before


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_overlap_is_that_of_a_count(n):
    rng = np.random.default_rng(n)
    train, held = (rng.integers(0, 3, size, np.uint8) for size in (400, 300))
    held[50:150] = train[100:200]
    grams = {bytes(train[i : i + n]) for i in range(len(train) - n + 1)}
    counted = np.mean([bytes(held[i : i + n]) in grams for i in range(len(held) - n + 1)])
    assert ngrams.overlap(train, held, n) == pytest.approx(counted)
    assert ngrams.overlap(train, held[:50] + 10, n) == 0
    assert ngrams.overlap(train, held[: n - 1], n) is None  # which says nothing
    assert ngrams.overlap(train[: n - 1], held, n) == 0


def test_a_short_text_is_compared_whole_with_a_long_one():
    """Of which only a share of the runs of tokens could be remembered."""
    train = np.random.default_rng(0).integers(0, 200, 5 << 20, np.uint8)
    for start in (0, 1000, 4_500_000):
        held = np.concatenate([train[start : start + 40], train[start : start + 31][::-1]])
        assert ngrams.overlap(train, held, 32) == 9 / 40
    assert ngrams.overlap(train, train[: 1 << 20], 32) == 1  # a sample of both


def test_token_files_are_mapped_and_their_ids_checked(tmp_path):
    path = tmp_path / "t.bin"
    ids = np.random.default_rng(0).integers(0, 1000, 5000)
    ids.astype(np.uint16).tofile(path)
    made = load(path, vocab=1000)
    assert made.facts == {"vocab": 1000, "context": 16}
    assert isinstance(made.train.tokens, np.memmap)
    np.testing.assert_array_equal(np.concatenate([made.train.tokens, made.heldout.tokens]), ids)
    wide = tmp_path / "w.bin"
    ids.astype(np.uint32).tofile(wide)
    assert (load(wide, vocab=70_000).train.tokens == made.train.tokens).all()
    with pytest.raises(BadInput, match=r"id \d+ at position \d+, .*data.vocab\) has 990"):
        load(path, vocab=990)
    assert load(path, vocab=int(ids.max()) + 1).facts["vocab"] == ids.max() + 1
    with pytest.raises(BadInput, match=f"id {ids.max()} at position"):
        load(path, vocab=int(ids.max()))


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.txt", b"", {}, "0 training tokens"),
        ("a.txt", b"ten bytes.", {}, "needs at least 17"),
        ("a.txt", b"x" * 100 + b"\xff\xfe", {}, "byte 100 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"tekst": "b"}', {}, "line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": 3}', {}, "line 1"),
        ("a.jsonl", b"not json", {}, "line 1"),
        ("a.jsonl", b"[" * 100_000, {}, "line 1"),
        ("a.bin", b"\0" * 999, {"vocab": 256}, "999 bytes is not a whole number of uint16"),
        ("a.bin", b"", {"vocab": 256}, "0 bytes is not a whole number"),
        ("a.bin", b"\0" * 1000, {}, "data.vocab: none"),
        ("a.txt", b"a" * 1000, {"vocab": 300}, "data.vocab: only for .bin"),
        ("a.csv", b"a,b", {}, "expected stdlib, packages, or a .txt"),
    ],
)
def test_bad_files_are_reported(name, content, options, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        load(path, **options)


def test_a_missing_file_and_a_folder_are_reported(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        load(tmp_path / "no.txt")
    with pytest.raises(BadInput, match="directory"):
        load(tmp_path)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BadInput, match="directory"):
        load(tmp_path / "folder.txt")


def test_the_card_says_what_a_report_needs(corpus):
    made = load(corpus)
    card = made.card()
    assert card["train_tokens"] == made.unique_tokens
    assert card["digest"] == made.digest
    assert 0 <= card["overlap"] <= 1


@pytest.mark.parametrize("size", [20_000, 93_000, 200_000, 556_000, 3_000_000])
@pytest.mark.parametrize("heldout", [0.05, 0.125, 0.5])
def test_of_a_small_text_the_share_is_held_out_that_was_asked_for(size, heldout, corpus):
    words = corpus.read_bytes().split(b"\n")
    rng = np.random.default_rng(0)
    raw = b"\n".join(words[i] for i in rng.integers(len(words), size=size // 40))[:size]

    def off(blocks):
        held = sum(map(len, text.split(blocks, heldout)[1]))
        return abs(held / size - heldout) / heldout

    blocks = text._balanced_blocks(raw, heldout)
    assert b"".join(blocks) == raw
    assert off(blocks) <= text.TOLERANCE + 0.01
    if size == 20_000:  # twin: in blocks of 16 kB a share is a matter of luck
        assert off(text._blocks(raw, text.BLOCK)) > 0.25


def test_of_a_large_text_the_blocks_do_not_depend_on_the_share(monkeypatch):
    raw = b"".join(b"line %d\n" % k for k in range(20_000))
    monkeypatch.setattr(text, "SMALL", len(raw))
    assert text._balanced_blocks(raw, 0.01) == text._blocks(raw, text.BLOCK)
    monkeypatch.setattr(text, "SMALL", len(raw) + 1)
    assert text._balanced_blocks(raw, 0.01) != text._blocks(raw, text.BLOCK)
