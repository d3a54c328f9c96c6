"""Text by other names: subwords, mixtures, sets of the hub, labeled text."""

import hashlib
import json
import random
import sys

import numpy as np
import pytest

from research import data
from research.data import (
    hub,
    ngrams,
    sampling,
    standard_library,
    subwords,
    text,
    token_files,
    tokenizers,
)
from research.data.mixture_sampling import CYCLE
from research.errors import BadInput


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub._tokens.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def stores(monkeypatch):
    """How often token files were written: a list that grows."""
    calls, real = [], token_files.store
    monkeypatch.setattr(token_files, "store", lambda *a: calls.append(a) or real(*a))
    return calls


def documents(n=80, seed=0, letters="abcdefgh"):
    rng = random.Random(seed)
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(60)]
    return [" ".join(rng.choices(words, k=rng.randint(30, 90))) for _ in range(n)]


def jsonl(path, texts, **more):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": t} | more) for t in texts))
    return path


def is_heldout(document, share=0.25):
    return sampling.is_heldout(hashlib.sha256(document.encode()).digest(), share)


BASE = {"context": 16, "heldout": 0.25, "tokenizer": "bytes", "field": "text", "vocab": None}
BPE = {"tokenizer": "bpe", "vocab": 320}


def within(reader, ids):
    """The text of ids, a separator as one byte."""
    return reader.decode(ids).replace(subwords.END.encode(), b"\0")


def mixed(paths, weights, **changes):
    return data.load("mixture", paths=[*map(str, paths)], weights=weights, **BASE | changes)


def from_hub(path, **changes):
    options = {"subset": None, "split": "train", "documents": None}
    return data.load("hub", path=str(path), **BASE | options | changes)


def classified(path, **changes):
    options = {"label_field": "label", "classes": None, "examples": None}
    options = {k: v for k, v in BASE.items() if k != "vocab"} | options
    return data.load("text_classes", path=str(path), **options | changes)


def parts(split, separator=b"\x00"):
    return set(bytes(split.tokens).split(separator))


# Subwords.


def test_windows_of_subwords_hold_the_documents(tmp_path):
    pytest.importorskip("tokenizers")
    texts = documents()
    made = data.load("text", path=str(jsonl(tmp_path / "a.jsonl", texts)), **BASE | BPE)
    reader = tokenizers.from_json(made.tokenizer)
    for split, held in ((made.train, False), (made.heldout, True)):
        found = reader.decode(split.tokens).split(subwords.END.encode())
        assert found == [t.encode() for t in texts if is_heldout(t) == held]
    assert isinstance(made.train.tokens, np.memmap)
    assert made.facts == {"vocab": 320, "context": 16}
    assert made.unique_tokens == len(made.train.tokens)
    rows = made.batch(0, 3, 8)
    assert rows["inputs"].dtype == np.int32
    np.testing.assert_array_equal(rows["inputs"][:, 1:], rows["targets"][:, :-1])


def test_bytes_per_token_is_that_of_the_held_out_text(tmp_path):
    pytest.importorskip("tokenizers")
    path = jsonl(tmp_path / "a.jsonl", documents())
    made = data.load("text", path=str(path), **BASE | BPE)
    plain = data.load("text", path=str(path), **BASE)
    ratio = made.heldout.corpus.bytes_per_token
    assert ratio == len(plain.heldout.tokens) / len(made.heldout.tokens)
    assert 1.5 < ratio < 6
    assert plain.heldout.corpus.bytes_per_token == 1
    assert made.digest != plain.digest
    card = made.card()
    assert card["tokenizer"] == "bpe, 320 tokens"
    assert card["bytes_per_token"] == round(ratio, 4)
    assert card["train_tokens"] == made.unique_tokens < plain.unique_tokens


def test_token_files_are_used_again_and_changed_text_is_not(tmp_path, stores):
    pytest.importorskip("tokenizers")
    path = jsonl(tmp_path / "a.jsonl", documents())
    for _ in range(2):
        text._tokens.cache_clear()
        made = data.load("text", path=str(path), **BASE | BPE)
    assert len(stores) == 1
    jsonl(path, documents(81))
    assert data.load("text", path=str(path), **BASE | BPE).digest != made.digest
    assert len(stores) == 2


def test_a_letter_is_not_cut_by_the_blocks_of_a_file(tmp_path):
    rng = random.Random(0)
    line = "".join(rng.choices("äöüß漢字a", k=90_000))
    (tmp_path / "a.txt").write_text(line)
    found, _ = text.documents(str(tmp_path / "a.txt"), "text", 0.25)
    assert len(found) > 3
    assert "".join(block.decode() for block in found) == line
    assert max(map(len, found)) <= 2 * text.BLOCK


@pytest.mark.parametrize("stretch", [33, 100, 1000])
def test_overlap_does_not_depend_on_the_stretches(stretch, monkeypatch):
    rng = np.random.default_rng(0)
    train, held = (rng.integers(0, 500, size, np.uint16) for size in (900, 700))
    held[50:400] = train[100:450]
    whole = ngrams.overlap(train, held, 32)
    assert whole == pytest.approx((350 - 31) / (700 - 31))
    monkeypatch.setattr(ngrams, "STRETCH", stretch)
    assert ngrams.overlap(train, held, 32) == whole


# Mixtures.


@pytest.fixture
def sources(tmp_path):
    """Three files in which the first letters differ, so that a window tells its source."""
    letters = ("abcdefgh", "ijklmnop", "qrstuvwx")
    return [
        jsonl(tmp_path / f"{k}.jsonl", documents(n, k, letters[k]))
        for k, n in enumerate((120, 60, 30))
    ]


def shares(windows):
    """Of the letters in windows, the share of every source."""
    letters = windows[(windows >= ord("a")) & (windows <= ord("x"))]
    counts = np.bincount((letters - ord("a")) // 8, minlength=3)
    return counts / counts.sum()


def test_sources_are_drawn_by_their_weights(sources):
    weights = [3.0, 0.5, 1.5]
    made = mixed(sources, weights)
    lengths = [length for length, _ in made.mixture]
    seen = np.concatenate([made.batch(1, step, 64)["inputs"] for step in range(CYCLE // 64)])
    first = {bytes(row.astype(np.uint8)): k for k, row in origin(made, lengths)}
    counts = np.bincount([first[bytes(row.astype(np.uint8))] for row in seen], minlength=3)
    np.testing.assert_allclose(counts / CYCLE, np.array(weights) / 5, atol=1 / CYCLE)
    assert abs(counts / CYCLE - np.array(lengths) / sum(lengths)).max() > 0.02


def origin(made, lengths):
    """(source, window) of all training windows."""
    rows = made.train.rows(np.arange(len(made.train)))["inputs"]
    return zip(np.repeat(np.arange(len(lengths)), lengths), rows)


def test_an_epoch_of_a_source_visits_each_window_once(sources):
    made = mixed(sources, [1.0, 1.0, 2.0])
    lengths = [length for length, _ in made.mixture]
    last = {bytes(row) for source, row in origin(made, lengths) if source == 2}
    assert len(last) == lengths[2]
    seen = [bytes(row) for step in range(30) for row in made.batch(0, step, 64)["inputs"]]
    visited = [row for row in seen if row in last]
    n = lengths[2]
    assert len(visited) > 2 * n
    assert set(visited[:n]) == set(visited[n : 2 * n]) == last
    assert visited[:n] != visited[n : 2 * n]


def test_a_mixture_is_a_function_of_seed_and_step(sources):
    made, again = (mixed(sources, [1.0, 2.0, 3.0]) for _ in range(2))
    for step in (5, 0, 700):
        np.testing.assert_array_equal(
            made.batch(2, step, 16)["inputs"], again.batch(2, step, 16)["inputs"]
        )
    assert (made.batch(2, 5, 16)["inputs"] != made.batch(3, 5, 16)["inputs"]).any()


def test_what_is_held_out_is_in_proportion_to_the_weights(sources):
    weights = [1.0, 1.0, 2.0]
    made = mixed(sources, weights)
    rows = made.heldout.rows(np.arange(len(made.heldout)))
    np.testing.assert_allclose(shares(rows["inputs"]), [0.25, 0.25, 0.5], atol=0.01)
    single = [data.load("text", path=str(p), **BASE) for p in sources]
    assert len(made.heldout) >= 2 * len(single[2].heldout) - 3
    assert (
        abs(shares(mixed(sources, [2.0, 1.0, 1.0]).heldout.rows(np.arange(40))["inputs"])[0] - 0.25)
        > 0.1
    )
    known = {bytes(r) for s in single for r in s.heldout.rows(np.arange(len(s.heldout)))["inputs"]}
    assert {bytes(row) for row in rows["inputs"]} <= known
    np.testing.assert_array_equal(rows["inputs"][:, 1:], rows["targets"][:, :-1])


def test_a_document_of_two_sources_is_on_one_side(tmp_path):
    both = documents(60, 1)
    paths = [
        jsonl(tmp_path / f"{k}.jsonl", [*documents(60, 7 + k), *both][:: 1 - 2 * k])
        for k in range(2)
    ]
    made = mixed(paths, [1.0, 1.0])
    assert len([t for t in both if is_heldout(t)]) > 5
    train = set().union(*(parts(windows) for windows in made.train.parts))
    held = set().union(*(parts(chosen.windows) for chosen in made.heldout.parts))
    assert not train & held
    assert {t.encode() for t in both if is_heldout(t)} <= held
    assert {t.encode() for t in both if not is_heldout(t)} <= train


def test_a_mixture_has_one_tokenizer(sources):
    pytest.importorskip("tokenizers")
    made = mixed(sources, [1.0, 1.0, 1.0], **BPE)
    reader = tokenizers.from_json(made.tokenizer)
    for k, windows in enumerate(made.train.parts):
        first = reader.decode(windows.tokens).split(subwords.END.encode())[0].decode()
        assert first in [json.loads(line)["text"] for line in sources[k].read_text().splitlines()]
    singles = [data.load("text", path=str(p), **BASE | BPE).tokenizer for p in sources]
    assert made.tokenizer not in singles
    total = 0
    for side in made.heldout.parts:  # the bytes of the windows themselves, source by source
        rows = side.rows(np.arange(len(side)))
        counted = made.count_bytes(rows["inputs"], rows["targets"])
        assert counted == sum(len(within(reader, targets)) for targets in rows["targets"])
        total += counted
    assert 1.3 < total / (len(made.heldout) * BASE["context"]) < 6


def test_the_tokens_of_a_mixture_are_counted_by_source(sources):
    made = mixed(sources, [1.0, 2.0, 3.0])
    singles = [data.load("text", path=str(p), **BASE) for p in sources]
    assert made.unique_tokens == sum(s.unique_tokens for s in singles)
    assert made.notes["sources"] == [
        {"path": str(p), "weight": w, "unique_tokens": s.unique_tokens}
        for p, w, s in zip(sources, (1.0, 2.0, 3.0), singles)
    ]
    card = made.card()
    assert all(
        f"{p} (weight {w:.3g}, " in card["source"] for p, w in zip(sources, (1 / 6, 1 / 3, 0.5))
    )
    assert card["train_tokens"] == made.unique_tokens
    json.dumps(card)
    assert made.digest != mixed(sources, [1.0, 2.0, 4.0]).digest
    assert made.digest == mixed(sources, [1.0, 2.0, 3.0]).digest


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        (["0.jsonl"], [1.0, 2.0], "^data.weights: 2 for 1 data.paths"),
        ([], [], "^data.weights: 0 for 0"),
        (["no.txt"], [1.0], r"^data.paths: .*no.txt: No such file"),
        (["a.bin"], [1.0], r"^data.paths: .*a.bin: token ids cannot be mixed"),
        (["0.jsonl", "short.txt"], [1.0, 1.0], r"^data.paths: .*short.txt: \d+ training tokens"),
    ],
)
def test_a_bad_mixture_is_reported(names, weights, words, sources, tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(1000))
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(BadInput, match=words):
        mixed([tmp_path / name for name in names], weights)


# Sets of the hub.


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("datasets")
    return jsonl(tmp_path / "set" / "train.jsonl", documents()).parent


def test_a_folder_is_read_as_its_files_are(folder):
    streamed = from_hub(folder)
    whole = data.load("text", path=str(folder / "train.jsonl"), **BASE)
    for side in ("train", "heldout"):
        tokens = [getattr(made, side).tokens for made in (streamed, whole)]
        np.testing.assert_array_equal(*tokens)
    assert isinstance(streamed.train.tokens, np.memmap)
    assert streamed.notes == whole.notes
    assert streamed.unique_tokens == whole.unique_tokens


def test_subwords_of_a_folder_are_those_of_its_files(folder):
    pytest.importorskip("tokenizers")
    streamed = from_hub(folder, **BPE)
    whole = data.load("text", path=str(folder / "train.jsonl"), **BASE | BPE)
    assert streamed.tokenizer == whole.tokenizer
    assert streamed.digest == whole.digest
    np.testing.assert_array_equal(streamed.heldout.tokens, whole.heldout.tokens)
    assert from_hub(folder, tokenizer="bpe", vocab=330).digest != whole.digest


def test_a_parquet_folder_is_read_too(folder, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows").mkdir()
    table = pyarrow.table({"body": documents(), "n": list(range(80))})
    pyarrow.parquet.write_table(table, tmp_path / "rows" / "train.parquet")
    made = from_hub(tmp_path / "rows", field="body")
    assert made.digest == from_hub(folder).digest


def test_the_tokenizer_of_a_stream_sees_its_beginning_alone(folder, monkeypatch):
    pytest.importorskip("tokenizers")
    seen, real = [], tokenizers.choose
    monkeypatch.setattr(subwords, "TRAINED_ON", 6000)
    monkeypatch.setattr(
        tokenizers, "choose", lambda n, v, d: seen.extend(d := list(d)) or real(n, v, d)
    )
    made = from_hub(folder, tokenizer="bpe", vocab=300)
    train = [t.encode() for t in documents() if not is_heldout(t)]
    assert seen == train[: len(seen)]
    assert 6000 <= sum(map(len, seen)) < 7000 < sum(map(len, train))
    reader = tokenizers.from_json(made.tokenizer)
    assert reader.decode(made.train.tokens).split(subwords.END.encode()) == train


def test_a_set_is_read_once(folder, stores):
    first = from_hub(folder)
    hub._tokens.cache_clear()
    assert from_hub(folder).digest == first.digest
    assert len(stores) == 1
    jsonl(folder / "train.jsonl", documents(81))
    assert from_hub(folder).digest != first.digest
    assert len(stores) == 2
    from_hub(folder, documents=50)
    assert len(stores) == 3


def test_repeats_are_dropped_and_documents_are_the_first(folder):
    once = from_hub(folder)
    jsonl(folder / "train.jsonl", [*documents(), *documents()])
    assert from_hub(folder).digest == once.digest
    some = from_hub(folder, documents=50)
    assert parts(some.train) | parts(some.heldout) == {t.encode() for t in documents()[:50]}
    assert "first 50 documents" in some.card()["source"]


def test_the_code_of_a_set_is_not_run(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(BadInput, match=r"^data.path: .*evil: cannot be loaded: .*scripts"):
        from_hub(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "tset"}, "^data.split: 'tset': .* has train"),
        ({"subset": "no"}, "^data.path: .*cannot be loaded: BuilderConfig 'no' not found"),
        ({"field": "txt"}, "^data.field: 'txt' of document 1 .* is not text; there are text"),
        ({"documents": 3}, r"^data.path: .*\d+ (training|held-out) tokens"),
        ({"tokenizer": "bpe"}, "^data.vocab: None; bpe needs"),
        ({"path": "owner/none"}, "^data.path: owner/none: not in the cache, and the hub does not"),
        ({"path": "/no/such"}, "^data.path: /no/such: no folder, and no name of a set"),
    ],
)
def test_a_bad_set_is_reported(changes, words, folder):
    with pytest.raises(BadInput, match=words):
        from_hub(**{"path": folder, "heldout": 0.05 if "documents" in changes else 0.25} | changes)


def test_a_damaged_file_is_reported(folder):
    with (folder / "train.jsonl").open("a") as file:
        file.write("\nnot json")
    with pytest.raises(BadInput, match=r"^data.path: .*cannot be"):
        from_hub(folder)


def test_an_empty_folder_and_a_missing_package_are_reported(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="the folder is empty"):
        from_hub(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"^data.path: .*pip install -e '.*\[text\]'"):
        from_hub(folder)


def test_a_prepared_set_needs_no_network(folder, monkeypatch, stores):
    """The hub is played by a folder: its commit by a word, its files by those of the folder."""
    asked, real = [], hub.hub_access.load_safe_builder
    monkeypatch.setattr(hub, "_commit", lambda path: "c0ffee")
    monkeypatch.setattr(
        hub.hub_access,
        "load_safe_builder",
        lambda path, subset, revision: asked.append((path, revision)) or real(str(folder), subset),
    )
    first = from_hub("owner/set")
    assert asked == [("owner/set", "c0ffee")]
    hub._tokens.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("ISOFLOP_CACHE", str(folder.parent / "cache"))
    monkeypatch.setattr(hub, "_commit", offline)
    assert from_hub("owner/set").digest == first.digest
    assert "revision c0ffee" in first.card()["source"]
    with pytest.raises(BadInput, match="not in the cache, and the hub does not give it: no net"):
        from_hub("owner/set", documents=7)


def offline(path):
    raise ConnectionError("no network")


# Labeled text.


def labeled(path, sizes, seed=0):
    rows = []
    for k, (label, n) in enumerate(sizes.items()):
        rows += [{"text": t, "label": label} for t in documents(n, seed + k)]
    random.Random(0).shuffle(rows)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_windows_hold_their_document_and_its_class(tmp_path):
    made = classified(labeled(tmp_path / "a.jsonl", {"b": 40, "a": 30}))
    assert made.targets == "classes"
    assert made.facts == {"vocab": 256, "context": 16, "classes": 2, "pad": 0}
    assert made.notes == {"class_names": ["a", "b"]}
    assert made.tokens_per_example == 1
    expected = {
        (is_heldout(t), k, t.encode()[i : i + 16].ljust(16, b"\0"))
        for k, n, seed in ((1, 40, 0), (0, 30, 1))
        for t in documents(n, seed)
        for i in range(0, len(t), 16)
    }
    found = set()
    for held, split in ((False, made.train), (True, made.heldout)):
        rows = split.rows(np.arange(len(split)))
        assert rows["inputs"].dtype == rows["targets"].dtype == np.int32
        assert rows["inputs"].shape == (len(split), 16)
        windows = rows["inputs"].astype(np.uint8)
        found |= {(held, int(k), bytes(w)) for w, k in zip(windows, rows["targets"])}
    assert found == expected


def test_what_a_language_model_holds_out_is_held_out_here(tmp_path):
    path = labeled(tmp_path / "a.jsonl", {"b": 40, "a": 30})
    held = parts(data.load("text", path=str(path), **BASE).heldout)
    made = classified(path)
    starts = {d[:16] for d in held}
    windows = made.heldout.rows(np.arange(len(made.heldout)))["inputs"].astype(np.uint8)
    assert starts <= {bytes(w) for w in windows}
    windows = made.train.rows(np.arange(len(made.train)))["inputs"].astype(np.uint8)
    assert not starts & {bytes(w) for w in windows}


def test_fewer_examples_are_a_balanced_part_of_more(tmp_path):
    path = labeled(tmp_path / "a.jsonl", {"a": 60, "b": 20, "c": 20})
    whole = classified(path)
    for n in (10, 30, 300):
        made = classified(path, examples=n)
        rows = made.train.rows(np.arange(n))
        first = whole.train.rows(np.arange(n))
        np.testing.assert_array_equal(rows["inputs"], first["inputs"])
        counts = np.bincount(rows["targets"], minlength=3)
        assert counts.max() - counts.min() <= 1
        assert len(made.train) == made.unique_tokens == n
        assert len(made.heldout) == len(whole.heldout)
        assert made.digest == whole.digest
    assert np.ptp(np.bincount(whole.train.classes)) > 100
    lines = path.read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join(lines[::-1]))
    other = classified(tmp_path / "b.jsonl", examples=30).train.rows(np.arange(30))
    np.testing.assert_array_equal(other["inputs"], whole.train.rows(np.arange(30))["inputs"])


def test_a_document_of_two_classes_is_dropped(tmp_path):
    path = labeled(tmp_path / "a.jsonl", {"a": 40, "b": 40})
    before = len(classified(path).train) + len(classified(path).heldout)
    twin = documents(1, 0)[0]
    path.write_text(path.read_text() + "\n" + json.dumps({"text": twin, "label": "b"}))
    made = classified(path)
    assert before - len(made.train) - len(made.heldout) == -(-len(twin) // 16)
    again = json.dumps({"text": documents(2, 0)[1], "label": "a"})
    path.write_text(path.read_text() + "\n" + again)  # a repeat within its class is no matter
    assert classified(path).digest == made.digest


def test_folders_and_numbers_name_the_classes(tmp_path):
    for label, k in (("one", 0), ("two", 1)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i, document in enumerate(documents(40, k)):
            (tmp_path / "set" / label / f"{i}.txt").write_text(document)
    inner = classified(tmp_path / "set")
    assert inner.notes["class_names"] == ["one", "two"]
    for label, k in (("one", 0), ("two", 1)):
        jsonl(tmp_path / "files" / f"{label}.jsonl", documents(40, k))
    flat = classified(tmp_path / "files")
    assert len(flat.train) == len(inner.train)
    assert set(map(bytes, flat.train.windows)) == set(map(bytes, inner.train.windows))
    numbers = classified(labeled(tmp_path / "a.jsonl", {0: 40, 1: 40}))
    assert numbers.notes["class_names"] == ["0", "1"]
    assert set(map(bytes, numbers.train.windows)) == set(map(bytes, inner.train.windows))
    before = inner.digest
    (tmp_path / "set" / "one" / "0.txt").write_text(documents(1, 99)[0])
    assert classified(tmp_path / "set").digest != before


def test_the_largest_packages_are_the_classes_of_the_standard_library():
    made = classified("stdlib", classes=4, context=64, heldout=0.125)
    names = made.notes["class_names"]
    assert len(names) == made.facts["classes"] == 4
    assert names == sorted(names)
    sizes = {}
    for place, source in standard_library.sources():
        sides = sizes.setdefault(place.parts[0], [0, 0]) if len(place.parts) > 1 else [0, 0]
        sides[is_heldout(source.decode(), 0.125)] += len(source)
    usable = [name for name in sizes if all(sizes[name]) and name.isidentifier()]
    assert names == sorted(sorted(usable, key=lambda name: -sum(sizes[name]))[:4])
    assert set(np.unique(made.heldout.classes)) == set(range(4))
    json.dumps(made.card())


def test_a_classifier_reads_with_the_tokenizer_of_its_language_model(tmp_path):
    pytest.importorskip("tokenizers")
    path = labeled(tmp_path / "a.jsonl", {"a": 40, "b": 40})
    model = data.load("text", path=str(path), **BASE | BPE)
    kept = tmp_path / "tokenizer.json"
    kept.write_text(model.tokenizer)
    made = classified(path, tokenizer=str(kept))
    reader = tokenizers.from_json(model.tokenizer)
    assert made.facts == {"vocab": 320, "context": 16, "classes": 2, "pad": reader.separator}
    assert made.tokenizer == model.tokenizer
    known = {t.encode() for k in range(2) for t in documents(40, k)}
    for row in made.train.windows:
        assert any(reader.decode(row[row != reader.separator]) in document for document in known)
    assert made.digest != classified(path).digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "bpe"}, "^data.tokenizer: bpe: a classifier needs the tokenizer of"),
        ({"tokenizer": "no.json"}, "^data.tokenizer: no.json: no such file"),
        ({"examples": 10**6}, r"^data.examples: 1000000, but .* gives \d+ training windows"),
        ({"classes": 1}, "^data.classes: 1; .* has 2 classes .* at least 2"),
        ({"classes": 3}, "^data.classes: 3; .* has 2 classes"),
        ({"label_field": "lable"}, r"line 1: .* 'lable' \(data.label_field\)"),
        ({"field": "txt"}, r"line 1: .* 'txt' \(data.field\)"),
        ({"heldout": 0.001}, "^data.path: .*class '.' has no document to train on or none held"),
        ({"path": "no.jsonl"}, "^data.path: no.jsonl: No such file"),
        ({"path": "README.md"}, "^data.path: README.md: expected stdlib, a folder or a .jsonl"),
    ],
)
def test_bad_labelled_text_is_reported(changes, words, tmp_path):
    path = labeled(tmp_path / "a.jsonl", {"a": 20, "b": 20})
    with pytest.raises(BadInput, match=words):
        classified(**{"path": path} | changes)


def test_a_folder_without_classes_is_reported(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match=r"the folder holds no \.txt or \.jsonl files"):
        classified(tmp_path / "none")
