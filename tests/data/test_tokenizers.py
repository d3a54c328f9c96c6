"""Tokenizers: exact, trained once on what may be trained on, and told when they are broken. Token
files: mapped, whole, built once."""

import hashlib
import json
import random
import stat
import sys
import threading

import numpy as np
import pytest

from research import data
from research.data import byte_tokenizer, sampling, subwords, text, token_files, tokenizers
from research.errors import BadInput
from research.io import files

pytest.importorskip("tokenizers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    text._tokens.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def trainings(monkeypatch):
    """How often a tokenizer was trained: a list that grows."""
    calls, real = [], subwords.train_bpe
    monkeypatch.setattr(subwords, "train_bpe", lambda *a: calls.append(a) or real(*a))
    return calls


def documents(n=80, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(60)]
    return [" ".join(rng.choices(words, k=rng.randint(30, 90))) for _ in range(n)]


def raw(n=80, seed=0):
    return [document.encode() for document in documents(n, seed)]


def jsonl(path, texts):
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return path


def load(path, **changes):
    text._tokens.cache_clear()  # what the process remembers is not what the cache holds
    options = {"context": 16, "heldout": 0.25, "tokenizer": "bpe", "field": "text", "vocab": 320}
    return data.load("text", path=str(path), **options | changes)


HARD = [
    "a  b\t\tc \n\n  d's I'll 12345 x_y__z",
    "naïve Ωmega 漢字 🙂‍🙂 \u0301",
    "".join(map(chr, range(256))),
    "before <|endoftext|> after",
    " " * 5000 + "x" + "\n" * 5000,
    "",
]


@pytest.mark.parametrize("hard", HARD)
def test_bpe_gives_the_text_back_to_the_byte(hard):
    made = subwords.trained_bpe(400, raw())
    ids = made.encode(hard)
    assert made.decode(ids) == hard.encode()
    assert made.separator not in ids
    for cut in range(0, len(ids), 1 + len(ids) // 20):  # even where a token is a part of a letter
        assert made.decode(ids[:cut]) + made.decode(ids[cut:]) == hard.encode()


def test_bpe_merges_what_is_frequent():
    made, documents = subwords.trained_bpe(400, raw()), raw()
    ids = made.encode_documents(documents)
    assert len(ids) < 0.6 * sum(map(len, documents))
    assert (ids == made.separator).sum() == len(documents) - 1
    assert made.vocab == 400 > ids.max()


def test_a_saved_json_is_the_same_tokenizer():
    made = subwords.trained_bpe(400, raw())
    again = tokenizers.from_json(made.json)
    probe = documents(1, seed=9)[0]
    np.testing.assert_array_equal(again.encode(probe), made.encode(probe))
    assert (again.vocab, again.separator, again.digest) == (400, made.separator, made.digest)
    other = subwords.trained_bpe(401, raw())
    assert other.digest != made.digest


@pytest.mark.parametrize("kept", ["", "bytes"])
def test_without_a_saved_json_the_tokenizer_is_bytes(kept):
    made = tokenizers.from_json(kept)
    assert made.decode(made.encode("naïve")) == "naïve".encode()
    assert (made.vocab, made.separator, list(made.encode("ab"))) == (256, 0, [97, 98])
    with pytest.raises(BadInput, match="token 256: expected ids below 256"):
        made.decode([97, 256])


def test_a_token_that_there_is_not_is_reported():
    with pytest.raises(BadInput, match="token 400: expected ids below 400"):
        subwords.trained_bpe(400, raw()).decode([1, 400])


def test_tiktoken_gives_the_ids_of_tokenizers(corpus):
    pytest.importorskip("tiktoken")
    lines = [*corpus.read_bytes().splitlines()[:500], *(hard.encode() for hard in HARD)]
    made = subwords.trained_bpe(600, lines)
    ids = made.encode_each(lines)
    assert made._fast is not None
    for fast, slow in zip(ids, made._slowly([line.decode() for line in lines])):
        np.testing.assert_array_equal(fast, slow)


def test_an_encoder_that_differs_is_not_used(monkeypatch):
    pytest.importorskip("tiktoken")
    made, real = subwords.trained_bpe(400, raw()), subwords._tiktoken

    def swapped(spec):
        merges = spec["model"]["merges"]
        a, b = ("".join(merges[k]) for k in (0, 1))
        vocab = spec["model"]["vocab"]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        merges[0], merges[1] = merges[1], merges[0]
        return real(spec)

    monkeypatch.setattr(subwords, "_tiktoken", swapped)
    assert swapped(json.loads(made.json)) is not None
    ids = made.encode_each(raw())
    assert made._fast is None
    for document, found in zip(documents(), ids):
        np.testing.assert_array_equal(found, made.encode(document))


@pytest.mark.parametrize("change", ["normalizer", "order", "prefix"])
def test_what_tiktoken_cannot_do_is_left_to_tokenizers(change):
    pytest.importorskip("tiktoken")
    spec = json.loads(subwords.trained_bpe(400, raw()).json)
    assert subwords._tiktoken(spec) is not None
    if change == "normalizer":
        spec["normalizer"] = {"type": "Lowercase"}
    elif change == "order":
        spec["model"]["merges"].reverse()
    else:
        spec["pre_tokenizer"]["add_prefix_space"] = True
    assert subwords._tiktoken(spec) is None


def test_without_tiktoken_the_ids_are_the_same(monkeypatch):
    made = subwords.trained_bpe(400, raw())
    quick = made.encode_documents(raw())
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    slow = tokenizers.from_json(made.json)
    np.testing.assert_array_equal(slow.encode_documents(raw()), quick)
    assert slow._fast is None


def test_without_tokenizers_the_way_to_get_it_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(subwords.trained_bpe(300, raw()).json)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    corpus = jsonl(tmp_path / "a.jsonl", documents())
    for name, vocab in (("bpe", 320), (str(path), None)):
        with pytest.raises(BadInput, match=r"^data.tokenizer: .*pip install -e '.*\[text\]'"):
            load(corpus, tokenizer=name, vocab=vocab)
    assert load(corpus, tokenizer="bytes", vocab=None).facts["vocab"] == 256


def test_a_tokenizer_is_trained_once(tmp_path, trainings):
    path = jsonl(tmp_path / "a.jsonl", documents())
    first, again = load(path), load(path)
    assert len(trainings) == 1
    assert first.tokenizer == again.tokenizer
    assert first.digest == again.digest
    load(jsonl(tmp_path / "b.jsonl", documents()[::-1]))
    assert len(trainings) == 1  # the order of the documents is no matter
    other = load(jsonl(tmp_path / "c.jsonl", documents(seed=1)))
    assert len(trainings) == 2
    assert other.tokenizer != first.tokenizer
    load(path, vocab=321)
    assert len(trainings) == 3


def test_a_damaged_cache_is_rebuilt(tmp_path, cache, trainings):
    path = jsonl(tmp_path / "a.jsonl", documents())
    first = load(path)
    (kept,) = (cache / "tokenizers").glob("*.json")
    kept.write_text(kept.read_text()[:1000])
    assert load(path).tokenizer == first.tokenizer
    assert len(trainings) == 2


def test_a_tokenizer_sees_training_documents_alone(tmp_path, trainings):
    texts = documents()
    held = [sampling.is_heldout(hashlib.sha256(t.encode()).digest(), 0.25) for t in texts]
    assert 5 < sum(held) < 50
    more = [
        d
        for d in documents(40, seed=5)
        if sampling.is_heldout(hashlib.sha256(d.encode()).digest(), 0.25)
    ]
    first = load(jsonl(tmp_path / "a.jsonl", texts))
    other = load(jsonl(tmp_path / "b.jsonl", [*texts, *more]))
    assert len(trainings) == 1
    assert other.tokenizer == first.tokenizer
    assert len(other.heldout.tokens) > len(first.heldout.tokens)
    fewer = load(
        jsonl(tmp_path / "c.jsonl", texts[: held.index(False)] + texts[held.index(False) + 1 :])
    )
    assert len(trainings) == 2
    assert fewer.tokenizer != first.tokenizer


def test_of_a_large_corpus_a_sample_is_looked_at(monkeypatch, trainings):
    monkeypatch.setattr(subwords, "TRAINED_ON", 5000)
    subwords.trained_bpe(300, raw())
    assert 3000 < sum(len(t) for t in trainings[0][1]) <= 5000


def spec(vocab, **changes):
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model} | changes)


@pytest.mark.parametrize("name", ["</s>", "[SEP]", "<eos>", "<|endoftext|>"])
def test_a_foreign_tokenizer_separates_by_its_own_token(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(spec({"[UNK]": 0, name: 7, "a": 3}, pre_tokenizer={"type": "Whitespace"}))
    made = tokenizers.read(str(path))
    assert (made.separator, made.vocab) == (7, 8)
    assert list(made.encode_documents([b"a a", b"b"])) == [3, 3, 7, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json: invalid type"),
        ("{}", "not a tokenizer.json"),
        ("[" * 100_000, "not a tokenizer.json"),
        (b"\xff\xfe", "not a tokenizer.json: not UTF-8"),
        (json.dumps({"version": "1.0", "model": {"type": "Evil"}}), "not a tokenizer.json"),
        (spec({"[UNK]": 0, "a": 1}), "is in the vocabulary; add one of them"),
        (spec({"[UNK]": 0, "</s>": 4_000_000_000}), "ids up to 4000000000; expected"),
        (spec({}), "expected 1 to|not a tokenizer.json"),
    ],
)
def test_a_broken_tokenizer_is_reported(content, words, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=rf"^data.tokenizer: .*({words})"):
        tokenizers.read(str(path))


def test_a_huge_tokenizer_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(subwords.trained_bpe(300, raw()).json)
    assert tokenizers.read(str(path)).vocab == 300
    monkeypatch.setattr(tokenizers, "LARGEST_FILE", 1000)
    with pytest.raises(BadInput, match="expected at most 1000"):
        tokenizers.read(str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab": None}, "^data.vocab: None; bpe needs 257 to"),
        ({"vocab": 256}, "^data.vocab: 256; bpe needs 257 to"),
        ({"vocab": 2**40}, "bpe needs 257 to"),
        ({"vocab": 30_000}, "^data.vocab: 30000, but the training text gives no more than"),
        ({"tokenizer": "bytes"}, "^data.vocab: only for .bin files and bpe"),
        ({"tokenizer": "no.json"}, "^data.tokenizer: no.json: no such file; expected bytes"),
        ({"tokenizer": "."}, "^data.tokenizer: .: no such file"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_reported(changes, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        load(jsonl(tmp_path / "a.jsonl", documents()), **changes)


def test_the_vocabulary_of_a_file_is_its_own(tmp_path):
    path, corpus = tmp_path / "tokenizer.json", jsonl(tmp_path / "a.jsonl", documents())
    path.write_text(subwords.trained_bpe(300, raw()).json)
    assert load(corpus, tokenizer=str(path), vocab=None).facts["vocab"] == 300
    assert load(corpus, tokenizer=str(path), vocab=300).facts["vocab"] == 300
    with pytest.raises(BadInput, match=r"^data.vocab: 301, but .* has 300 tokens"):
        load(corpus, tokenizer=str(path), vocab=301)


def test_ids_of_a_bin_may_name_their_tokenizer(tmp_path):
    made, path = subwords.trained_bpe(300, raw()), tmp_path / "tokenizer.json"
    path.write_text(made.json)
    ids = tmp_path / "a.bin"
    made.encode_documents(raw()).astype(np.uint16).tofile(ids)
    kept = load(ids, tokenizer=str(path), vocab=None)
    assert kept.facts["vocab"] == 300
    assert kept.tokenizer == made.json
    assert load(ids, tokenizer="bytes", vocab=300).tokenizer == ""
    for name, vocab, words in (("bpe", 300, "not for ids"), (str(path), 301, "has 300 tokens")):
        with pytest.raises(BadInput, match=words):
            load(ids, tokenizer=name, vocab=vocab)


def pairs(n=80):
    return [(k % 4 == 0, d) for k, d in enumerate(raw(n))]


@pytest.mark.parametrize("vocab", [256, 257, 65_536, 65_537])
def test_token_files_are_mapped_in_the_smallest_type(vocab, monkeypatch):
    made = byte_tokenizer.Tokenizer()
    made.vocab = vocab
    monkeypatch.setattr(tokenizers, "from_json", lambda _: made)
    found = token_files.store("key", made, pairs())
    assert isinstance(found.train, np.memmap)
    size = {256: 1, 257: 2, 65_536: 2, 65_537: 4}[vocab]
    assert found.train.dtype == found.heldout.dtype == np.dtype(f"u{size}")
    for side, ids in ((False, found.train), (True, found.heldout)):
        expected = made.encode_documents([d for held, d in pairs() if held == side])
        np.testing.assert_array_equal(ids, expected)
    assert not found.train.flags.writeable


@pytest.mark.parametrize("batch", [1, 700, 1 << 20])
def test_token_files_do_not_depend_on_the_batches(batch, monkeypatch):
    made = subwords.trained_bpe(400, raw())
    monkeypatch.setattr(token_files, "BATCH", batch)
    found = token_files.store(f"key{batch}", made, pairs())
    train = [d for held, d in pairs() if not held]
    held = [d for held, d in pairs() if held]
    np.testing.assert_array_equal(found.train, made.encode_documents(train))
    assert found.bytes_per_token == len(b"\0".join(held)) / len(found.heldout)
    monkeypatch.setattr(token_files, "BATCH", 1 << 20)
    assert found.digest == token_files.store("other", made, pairs()).digest
    assert found.digest != token_files.store("less", made, pairs()[1:]).digest


@pytest.mark.parametrize("damage", ["short", "ids", "facts", "absent"])
def test_damaged_token_files_are_built_anew(damage, cache):
    made = subwords.trained_bpe(400, raw())
    first = np.array(token_files.store("key", made, pairs()).train)
    folder = cache / "tokens" / "key"
    if damage == "short":
        (folder / "train.bin").write_bytes(b"\1\0")
    elif damage == "ids":
        ids = first.copy()
        ids[-1] = 400
        (folder / "train.bin").write_bytes(ids.tobytes())
    elif damage == "facts":
        (folder / "facts.json").write_text("{}")
    else:
        (folder / "heldout.bin").unlink()
    assert token_files.find("key") is None
    np.testing.assert_array_equal(token_files.store("key", made, pairs()).train, first)
    assert token_files.find("key") is not None


def test_builders_at_once_do_not_disturb_each_other(cache):
    made, found = byte_tokenizer.Tokenizer(), []
    barrier = threading.Barrier(4)

    def build():
        barrier.wait()
        found.append(token_files.store("key", made, pairs()))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for tokens in found:
        np.testing.assert_array_equal(tokens.train, found[0].train)
    assert sorted(p.name for p in (cache / "tokens").iterdir()) == [".lock", "key"]


def test_a_builder_that_fails_leaves_nothing(cache):
    def failing():
        yield from pairs()
        raise BadInput("the stream ended")

    with pytest.raises(BadInput, match="the stream ended"):
        token_files.store("key", byte_tokenizer.Tokenizer(), failing())
    assert token_files.find("key") is None
    assert not list((cache / "tokens").iterdir())


def test_the_cache_is_the_users_alone(cache, tmp_path, monkeypatch):
    files.cache("tokens")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.delenv("ISOFLOP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache("tokens") == tmp_path / "xdg" / "isoflop" / "tokens"
    assert stat.S_IMODE((tmp_path / "xdg" / "isoflop").stat().st_mode) == 0o700


# What a tokenizer loses, and how many bytes its tokens are.


def built(model, trainer, **parts):
    """The JSON of a tokenizer trained on `raw()` by the library, with a separator."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(model)
    for name, part in parts.items():
        setattr(made, name, part)
    made.train_from_iterator(documents(), trainer)
    return made.to_str()


def sentencepiece(**options):
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    return built(
        models.BPE(unk_token="<unk>", **options),
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<unk>", "</s>", *(f"<0x{k:02X}>" for k in range(256))],
            show_progress=False,
        ),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
        normalizer=normalizers.Sequence([]),
        decoder=decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
        ),
    )


def words_only(lower):
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    return built(
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer(special_tokens=["[UNK]", "[SEP]"], show_progress=False),
        pre_tokenizer=pre_tokenizers.Split(" ", "isolated"),
        normalizer=normalizers.Lowercase() if lower else normalizers.Sequence([]),
    )


TEXTS = {"plain": lambda t: t, "upper": str.upper, "strange": lambda t: t.replace("a", "ä漢")}
COUNTED = {  # tokenizer, text: whether bits per byte mean anything
    ("bpe", "plain"): True,
    ("bpe", "upper"): True,
    ("bpe", "strange"): True,
    ("sentencepiece", "plain"): True,
    ("sentencepiece", "strange"): True,
    ("lower", "upper"): False,
    ("words", "upper"): False,
}


@pytest.mark.parametrize(("kind", "text_of"), COUNTED)
def test_bytes_are_counted_where_the_text_comes_back_and_only_there(
    kind, text_of, tmp_path, caplog
):
    texts = [TEXTS[text_of](t) for t in documents()]
    path, file = jsonl(tmp_path / "a.jsonl", texts), tmp_path / "tokenizer.json"
    if kind != "bpe":
        make = {
            "sentencepiece": lambda: sentencepiece(byte_fallback=True),
            "lower": lambda: words_only(True),
            "words": lambda: words_only(False),
        }
        file.write_text(make[kind]())
    options = {} if kind == "bpe" else {"tokenizer": str(file), "vocab": None}
    made = load(path, **options)
    known = COUNTED[kind, text_of]
    assert (made.count_bytes is not None) == known
    assert ("does not come back" in caplog.text) != known
    if not known:
        assert "bits per byte are not reported" in caplog.text
        return
    tokens = made.heldout.tokens.astype(np.int64)
    reader = made.heldout.corpus.tokenizer
    cuts = np.flatnonzero(tokens == reader.separator)
    held = [t for t in texts if sampling.is_heldout(hashlib.sha256(t.encode()).digest(), 0.25)]
    assert len(held) == len(cuts) + 1
    # Every document after the first, with the separator before it, to the byte.
    for document, start, end in zip(held[1:], cuts, [*cuts[1:], len(tokens)], strict=True):
        inputs, targets = tokens[start - 1 : end - 1], tokens[start:end]
        assert made.count_bytes(inputs, targets) == len(document.encode()) + 1
    # Twin: by the average of all held-out text, as it was once done, no document is right.
    ratio = made.heldout.corpus.bytes_per_token
    assert any(abs(ratio * (b - a) - len(d) - 1) > 5 for d, a, b in zip(held[1:], cuts, cuts[1:]))


def test_what_is_lost_is_a_share_of_the_text():
    """One line of many is lost: told, and the rest is counted."""
    made = subwords.Subwords(sentencepiece(byte_fallback=False))
    lines = [*documents(), "of letters 漢 that have no token"]
    whole = " ".join(lines)
    lost, miscounted, example = made.losses([whole.encode()], [made.encode(whole)])
    assert lost > 0
    assert miscounted == 0
    assert example[0] != example[1]
    good = documents()[0].encode()
    assert made.losses([good], [made.encode(good)]) == (0, 0, [])
