"""The page is whole, self-contained and escaped, and says what is missing."""

import re
import xml.dom.minidom

import numpy as np
import pytest

from research import plots, records, report
from research.errors import BadInput
from tests.test_scaling import noisy


def workdir(path, rows, name="a sweep"):
    for row in rows:
        with records.RunDirectory(path, row["run"]) as directory:
            directory.once("config.json", {})
            for step in range(0, 100, 10):
                directory.append(step=step, tokens=step * 100, train_loss=3.0 - step / 100)
            directory.append(step=100, tokens=10_000, loss=row["loss"] or 1.0)
            facts = {"name": name, "tokens": 10_000, "flops": 1e12, "seed": 0, "lr": 0.01} | row
            if row.get("status", "done") in ("done", "diverged"):
                directory.finish({"status": "done", "reason": "", **facts})
            else:
                directory.once(
                    "launch.json", {"facts": {k: v for k, v in facts.items() if k != "status"}}
                )
                directory.fail("RuntimeError: <b>fire</b>")
    return path


def test_a_sweep_gives_a_page_with_its_figures_fit_and_table(tmp_path):
    result = report.write(workdir(tmp_path, noisy(0)))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "was predicted as" in page
    assert "r8" in page
    for name in ("loss", "curves", "residuals"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        xml.dom.minidom.parse(str(tmp_path / "figures" / f"{name}.svg"))
    text = report.text_summary(result)
    assert "L(N) = E + A / N^alpha" in text
    assert str(tmp_path / "report.html") in text


def test_the_page_fetches_nothing(tmp_path):
    report.write(workdir(tmp_path, noisy(0)))
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", page)
    assert "<script" not in page
    assert "@import" not in page
    assert page.count("url(") == page.count("url(#")
    assert len(page) < 2e6


def test_what_comes_from_records_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    rows = noisy(0)
    rows[0] |= {"loss": None, "status": "failed"}
    report.write(workdir(tmp_path, rows, name=evil))
    page = (tmp_path / "report.html").read_text()
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert "<b>fire" not in page


def test_missing_runs_come_first(tmp_path):
    rows = noisy(0)
    rows[0] |= {"loss": None, "status": "failed"}
    result = report.write(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    assert page.index("Run r0 is failed") < page.index("<svg")
    assert result["fit"]["dropped"] == [{"run": "r0", "reason": "failed"}]


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_runs_are_shown_without_a_law(tmp_path, count):
    result = report.write(workdir(tmp_path, noisy(0)[:count]))
    assert result["fit"] is None
    assert "no law" in report.text_summary(result)
    assert "No law was fitted" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "fit.json").exists()


def test_no_runs_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no directory"):
        report.write(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(BadInput, match="no runs yet"):
        report.write(tmp_path)


def test_the_same_records_give_the_same_files(tmp_path):
    pages = []
    for name in ("a", "b"):
        report.write(workdir(tmp_path / name, noisy(0)))
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]
    report.write(workdir(tmp_path / "c", noisy(1)))
    assert (tmp_path / "c" / "report.html").read_bytes() != pages[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950"), (14_160, "14.2k"), (999_999, "1M"), (1.2e9, "1.2B"), (3.5e14, "3.5e14")],
)
def test_quantities_read_as_people_write_them(value, text):
    assert plots.quantity(value) == text


def test_smoothing_keeps_a_constant_and_has_no_bias_at_the_start():
    np.testing.assert_allclose(plots._smooth(np.full(50, 2.0)), 2.0)
    assert plots._smooth(np.arange(50.0))[0] == 0
