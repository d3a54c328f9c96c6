"""What a run holds out is compared, by content, with what the runs it started from were trained
on."""

import json
import random
import shutil

import numpy as np
import pytest

from research import data
from research.data import contents
from research.errors import BadInput
from research.io import files
from research.runs.directory import RunDirectory
from research.training import ancestry, heldout_check
from research.training.loop import train_run
from research.training.make_run import make_run

SHORT = {"horizon.amount": 2.0, "save.every": 0}
SEEN = r"^data.heldout: \d+% of what is held out here was trained on by init.run"


def fit(config, workdir):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        train_run(run, directory)
        return directory.path


def prose(seed, lines=3000):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(900)]
    return "".join(" ".join(rng.choices(words, k=9)) + "\n" for _ in range(lines))


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A run on a text of its own, and that text."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "a.txt").write_text(prose(1))
    config = tiny(SHORT | {"data.path": str(folder / "a.txt")})
    return fit(config, folder / "work"), folder / "a.txt"


def child(tiny, start, path, **changes):
    changes = {f"data.{key}": value for key, value in changes.items()}
    return tiny(SHORT | {"init.run": str(start), "data.path": str(path), "seed": 5} | changes)


def test_the_same_share_of_the_same_text_is_held_out(tiny, first):
    start, path = first
    assert make_run(child(tiny, start, path)).start.rule.count("\n") == 0


@pytest.mark.parametrize("change", ["share", "copy", "shifted", "part"])
def test_what_was_trained_on_is_not_held_out(change, tiny, first, tmp_path):
    start, path = first
    text, heldout = path.read_text(), 0.5
    if change == "copy":
        path = shutil.copy(path, tmp_path / "b.txt")
    if change == "shifted":  # no block is what it was
        (path := tmp_path / "c.txt").write_text("of other lines\n" * 40 + text)
        heldout = 0.3
    if change == "part":  # two thirds are of another text
        (path := tmp_path / "d.txt").write_text(prose(7, 2000) + text[: len(text) // 3])
    with pytest.raises(BadInput, match=SEEN):
        make_run(child(tiny, start, path, heldout=heldout))


def test_other_text_is_held_out_whatever_its_share(tiny, first, tmp_path):
    (tmp_path / "b.txt").write_text(prose(2))
    made = make_run(child(tiny, first[0], tmp_path / "b.txt", heldout=0.5))
    assert "held out here" not in made.start.rule


def test_a_little_is_told(tiny, first, tmp_path, caplog):
    start, path = first
    (tmp_path / "b.txt").write_text(prose(2) + path.read_text()[:14_000])
    made = make_run(child(tiny, start, tmp_path / "b.txt", heldout=0.4))
    assert "held out here was trained on by init.run" in made.start.rule
    assert "held out here was trained on by init.run" in caplog.text


def test_a_chain_remembers_its_first_run(tiny, first, tmp_path):
    """The second run never saw the first text, and the first run is gone."""
    start, path = first
    moved = shutil.copytree(start.parent.parent, tmp_path / "gone")
    (tmp_path / "b.txt").write_text(prose(2))
    second = fit(child(tiny, moved / "runs" / start.name, tmp_path / "b.txt"), tmp_path / "work")
    shutil.rmtree(moved)
    assert len(files.read_json(second / "launch.json")["trained_on"]) == 2
    with pytest.raises(BadInput, match=SEEN):
        make_run(child(tiny, second, path, heldout=0.5))
    assert make_run(child(tiny, second, path))  # what the first run held out
    alone = fit(tiny(SHORT | {"data.path": str(tmp_path / "b.txt")}), tmp_path / "alone")
    assert make_run(child(tiny, alone, path, heldout=0.5))  # twin: without the first run


@pytest.mark.parametrize("lost", ["names", "file"])
def test_what_is_not_known_is_told(lost, tiny, first, tmp_path):
    start, path = first
    moved = shutil.copytree(start.parent.parent, tmp_path / "moved")
    run = moved / "runs" / start.name
    if lost == "file":
        shutil.rmtree(moved / "data")
    else:
        launch = json.loads((run / "launch.json").read_text())
        del launch["trained_on"]
        (run / "launch.json").write_text(json.dumps(launch))
    assert "not known" in make_run(child(tiny, run, path, heldout=0.5)).start.rule


@pytest.mark.parametrize("bad", [b"", b"12345", bytes(16)])
def test_a_damaged_file_is_refused(bad, tiny, first, tmp_path):
    start, path = first
    moved = shutil.copytree(start.parent.parent, tmp_path / "moved")
    (file,) = (moved / "data").glob("*.contents")
    file.write_bytes(bad)
    with pytest.raises(BadInput, match="not the contents of a training set"):
        make_run(child(tiny, moved / "runs" / start.name, path))


def test_a_name_that_leads_elsewhere_is_refused(tiny, first, tmp_path):
    start, path = first
    moved = shutil.copytree(start.parent.parent, tmp_path / "moved")
    run = moved / "runs" / start.name
    launch = json.loads((run / "launch.json").read_text()) | {"trained_on": ["../../../etc/a"]}
    (run / "launch.json").write_text(json.dumps(launch))
    with pytest.raises(BadInput, match="expected a name"):
        make_run(child(tiny, run, path))


# Contents.


def documents(n=400, seed=3):
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh ", k=rng.choice([9, 20, 60, 300]))) for _ in range(n)]


BASE = {"context": 64, "heldout": 0.25, "tokenizer": "bytes", "field": "text"}


def test_a_classifier_knows_the_documents_of_its_language_model(tmp_path):
    """Short documents too; the same share holds out the same ones."""
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(documents())]
    (path := tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = data.load("text", path=str(path), vocab=None, **BASE)
    options = {"path": str(path), "label_field": "label", "classes": None, "examples": None}
    for heldout, least, most in ((0.25, 0.0, 0.0), (0.5, 0.35, 0.65)):
        classes = data.load("text_classes", **options, **BASE | {"heldout": heldout})
        raw = ancestry.of_training(model).astype("<u8").tobytes()
        assert least <= heldout_check.share_seen(classes, raw) <= most


def test_what_files_repeat_of_each_other_is_not_taken_for_trained_on(tmp_path):
    """A classifier of few examples does not itself repeat what its large ancestor does."""
    licence = "the licence that one in three of these documents has at its beginning, in full. "
    texts = [licence * (i % 3 == 0) + t for i, t in enumerate(documents(2000))]
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(texts)]
    (path := tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = data.load("text", path=str(path), vocab=None, **BASE)
    options = {"path": str(path), "label_field": "label", "classes": None}
    few, all_of, other = (
        data.load("text_classes", **options, **BASE | {"heldout": heldout}, examples=examples)
        for heldout, examples in ((0.25, 2), (0.25, None), (0.5, 2))
    )
    told_apart, everything = ancestry._told_apart(model), ancestry.of_training(model).tobytes()
    assert heldout_check.share_seen(few, told_apart) == 0
    assert heldout_check.share_seen(few, everything) > 0
    assert heldout_check.share_seen(all_of, everything) == 0
    assert heldout_check.share_seen(other, told_apart) > 0.35


def test_what_is_looked_at_of_less_is_part_of_what_is_looked_at_of_more():
    stream = np.frombuffer("\0".join(documents()).encode(), np.uint8)
    all_of, some = (contents.of_tokens([stream], 0, classes) for classes in (1, 8))
    assert set(some.tolist()) <= set(all_of.tolist())
    assert 0.08 < len(some) / len(all_of) < 0.17
    assert contents.classes_for(contents.MOST - 1) == 1
    assert contents.MOST / 2 <= 10**9 / contents.classes_for(10**9) <= contents.MOST


def test_contents_do_not_depend_on_the_stretches(monkeypatch):
    stream = np.frombuffer("\0".join(documents()).encode(), np.uint8)
    whole = contents.of_tokens([stream], 0, 1)
    monkeypatch.setattr(contents.ngrams, "STRETCH", 1000)
    np.testing.assert_array_equal(contents.of_tokens([stream], 0, 1), whole)
    other = contents.of_tokens([stream[5:]], 0, 1)
    assert 0.9 < np.isin(other, whole).mean() < 1
