"""A report is made again where anything that decides it has changed, and only there."""

import json
import os
from pathlib import Path

import pytest

from research.io import files, source
from research.report import build, reuse, text
from research.runs.table import read_table
from tests.report.test_report import workdir
from tests.scaling.test_scaling import noisy


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A workdir with its report, and a function that asks for it again: (words, times made). What
    is written stands for a report: the page has the losses."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    made = []

    def write_report(runs, out=None, **how):
        made.append(1)
        page = Path(out or runs) / "report.html"
        figure = files.make_directory(page.parent / "figures") / "loss.png"
        figure.write_text("figure")
        page.write_text(f"{how} {[row['loss'] for row in read_table(runs)]}")
        return {"files": {"report": page, "loss.png": figure}, "how": how}

    monkeypatch.setattr(build, "write_report", write_report)
    monkeypatch.setattr(text, "text_summary", lambda result: f"words {result['how']}")
    place = workdir(tmp_path / "w", noisy(0))

    def report(out=None, **how):
        made.clear()
        return reuse.written_report(place, out, **how), len(made)

    first, times = report()
    assert times == 1
    return place, report, first


def test_a_real_report_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    place = workdir(tmp_path / "w", noisy(0))
    words = reuse.written_report(place)
    assert "L(N) = E + A / N^alpha" in words
    monkeypatch.delattr(build, "write_report")
    assert reuse.written_report(place) == words


def test_what_is_not_asked_for_makes_no_other_report(swept):
    _, report, first = swept
    assert report(against=None, mix=False, where=None) == (first, 0)
    assert report(mix=True)[1] == 1


def append(path):
    with open(path, "a") as file:
        file.write(json.dumps({"step": 101, "tokens": 10_100, "loss": 1.0}) + "\n")


def other_result(place):
    path = place / "runs" / "r8" / "result.json"
    result = json.loads(path.read_text())
    result.pop("digest", None)
    path.unlink()
    files.write_json(path, files.digested({**result, "loss": result["loss"] * 1.01}))


def disguised(place):
    """Written in place, of the same size and with the time it had."""
    path = place / "runs" / "r3" / "metrics.jsonl"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"3.0", b"2.0", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


CHANGES = {
    "a record in place": disguised,
    "a record": lambda place: append(place / "runs" / "r3" / "metrics.jsonl"),
    "a result": other_result,
    "a record of a ladder's run": lambda place: append(
        files.make_directory(place / "verify" / "runs" / "r9") / "metrics.jsonl"
    ),
    "a run is removed": lambda place: os.rename(place / "runs" / "r8", place / "gone"),
    "the page": lambda place: (place / "report.html").write_text("another"),
    "a figure": lambda place: (place / "figures" / "loss.png").unlink(),
    "a card": lambda place: files.write_json(
        files.make_directory(place / "data") / "card.json", {"source": "text"}
    ),
    "what is remembered": lambda place: [
        path.write_text("{") for path in (place.parent / "cache" / "reports").iterdir()
    ],
}


def test_a_report_of_nothing_new_is_not_made_again(swept):
    place, report, first = swept
    before = (place / "report.html").stat().st_mtime_ns
    assert report() == (first, 0)
    assert (place / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_report_makes_it_again(change, swept):
    place, report, _ = swept
    page = (place / "report.html").read_text()
    CHANGES[change](place)
    assert report()[1] == 1
    assert (place / "figures" / "loss.png").exists()
    if change in ("the page", "a figure", "what is remembered"):
        assert (place / "report.html").read_text() == page
    assert report()[1] == 0


def test_an_earlier_sweep_that_is_launched_again_makes_it_again(swept):
    """What it reports are the runs of the last launch, whose file was there already."""
    place, report, _ = swept
    folder = files.make_directory(place / "sweeps")
    for seconds, name in enumerate(("earlier", "later"), 1):
        (folder / f"{name}.json").write_text("{}")
        os.utime(folder / f"{name}.json", (seconds, seconds))
    assert report()[1] == 1
    os.utime(folder / "later.json", (9, 9))  # which was the newest already
    assert report()[1] == 0
    os.utime(folder / "earlier.json")
    assert report()[1] == 1


def test_other_code_and_other_questions_make_it_again(swept, monkeypatch, tmp_path):
    _, report, _ = swept
    assert report(against="tokens")[1] == 1
    assert report(out=tmp_path / "o")[1] == 1
    assert (tmp_path / "o" / "report.html").exists()
    assert report()[1] == 1  # the question before has overwritten the page
    monkeypatch.setattr(source, "library", lambda: source.Library({"a.py": "0" * 12}, frozenset()))
    assert report()[1] == 1


def test_a_workdir_cannot_bring_a_report_of_its_own(swept, monkeypatch, tmp_path):
    """What a stranger hands on with the workdir is not taken for what was written here."""
    place, report, _ = swept
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "other user"))
    (place / "report.html").write_text("<script>planted()</script>")
    assert report()[1] == 1
    assert "planted" not in (place / "report.html").read_text()


def test_without_a_cache_every_report_is_made(swept, monkeypatch, tmp_path):
    _, report, first = swept
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "file" / "cache"))
    assert report() == (first, 1)
