"""Nothing of a workdir reaches the page but what this package draws, and text that is escaped."""

import ast
import inspect
import re

import numpy as np
import pytest

from research.errors import BadInput
from research.io import files
from research.report import build, html
from tests.report.test_report import workdir
from tests.scaling.test_scaling import noisy

SCRIPT = "<script>planted()</script>"
SVG = f'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>'
VERIFIED = {
    "params": 200_000,
    "tokens": 4_000_000,
    "budget": 4.8e12,
    "loss": 2.31,
    "measured": 2.33,
    "error": -0.0086,
    "run_interval": [2.2, 2.4],
    "covered": True,
    "n_points": 12,
    "unit": "nats per token",
}


def verified_sweep(path, changes=()):
    """The records of a sweep over sizes and tokens, and what experiments.verify left beside it."""
    rows = [
        {"run": f"r{i}{k}", "params": int(n), "tokens": int(k * n), "flops": 7 * k * n * n,
         "loss": 2.0 + 40 / n**0.4 + 60 / (k * n) ** 0.35}
        for i, n in enumerate(np.geomspace(1e4, 1e5, 4)) for k in (2, 10, 50)
    ]  # fmt: skip
    workdir(path, rows)
    files.make_directory(path / "verify")
    files.write_json(path / "verify" / "verify.json", VERIFIED | dict(changes))
    return path


@pytest.mark.slow
def test_the_verification_is_drawn_from_its_record_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(
        build, "_fit_surfaces", lambda rows, mix: {}
    )  # slow, and not asked about here
    verified_sweep(tmp_path)
    files.make_directory(tmp_path / "figures")
    svg = tmp_path / "figures" / "verify.svg"
    svg.write_text(SVG)
    build.write_report(tmp_path)
    page, drawn = (tmp_path / "report.html").read_text(), svg.read_text()
    assert "planted" not in page
    assert "planted" not in drawn
    assert "Measured: 2.33, inside the interval" in page
    assert drawn[drawn.index("<svg") :] in page
    svg.unlink()
    build.write_report(tmp_path)
    assert svg.read_text() == drawn
    files.write_json(tmp_path / "verify" / "verify.json", VERIFIED | {"run_interval": [None, 2.4]})
    build.write_report(tmp_path)
    assert "95 % interval open to 2.4" in (tmp_path / "report.html").read_text()
    assert svg.read_text() != drawn


@pytest.mark.parametrize(
    "changes",
    [
        {"params": 0},
        {"tokens": "many"},
        {"measured": True},
        {"n_points": SCRIPT},
        {"error": None},
        {"covered": 1},
        {"run_interval": None},
        {"run_interval": [2.2]},
        {"run_interval": [2.2, SCRIPT]},
        {"run_interval": [2.35, 2.4]},
    ],
)
def test_a_malformed_verification_record_is_reported(changes, tmp_path):
    workdir(tmp_path, noisy(0)[:2])
    files.make_directory(tmp_path / "verify")
    path = tmp_path / "verify" / "verify.json"
    files.write_json(path, VERIFIED | changes)
    with pytest.raises(BadInput, match=r"verify\.json: not what experiments.verify writes"):
        build.write_report(tmp_path)
    files.write_json(path, VERIFIED)
    assert build.write_report(tmp_path)["verified"] == VERIFIED  # without a figure: too few runs
    assert "Measured: 2.33" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_no_file_and_no_text_of_a_workdir_is_embedded_as_it_is(tmp_path):
    texts = ("group", "commit", "code", "device_kind", "loss_unit", "flops_convention", "rules")
    texts += ("family", "continued")
    rows = [
        row
        | dict.fromkeys(texts, SCRIPT)
        | {"versions": {SCRIPT: SCRIPT}, "accuracy": i / 20, "gain": i,
           "metrics": [{"name": name, "heading": SCRIPT, "axis": SCRIPT, "shown": ["page"]}
                       for name in ("accuracy", "gain")], "confusion": [[i, 1], [2, 20 - i]],
           "class_names": [SCRIPT, "two"],
           **{f"class_{kind}": [0.25, 0.5] for kind in ("precision", "recall", "f1")}}
        for i, row in enumerate(noisy(0))
    ]  # fmt: skip
    rows[0] |= {"loss": None, "status": "failed"}
    workdir(tmp_path, rows, name=SCRIPT)
    for folder in ("figures", "data", "verify"):
        files.make_directory(tmp_path / folder)
    figures = build.write_report(tmp_path)["files"]
    planted = {name.partition(".")[0] for name in figures if name.endswith("g")} | {"verify"}
    for name in planted | {"chinchilla_contours"}:
        (tmp_path / "figures" / f"{name}.svg").write_text(SVG)
        (tmp_path / "figures" / f"{name}.png").write_text(SVG)
    files.write_json(tmp_path / "data" / "card.json", {SCRIPT: SCRIPT, "text": [SCRIPT, {"a": 1}]})
    words = dict.fromkeys(("unit", "formula", "run", "optimal_params", "law", SCRIPT), SCRIPT)
    files.write_json(tmp_path / "verify" / "verify.json", VERIFIED | words)
    build.write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;planted()" in page
    assert "<script>planted" not in page
    assert page.count("planted()") == len(re.findall(r"(?:&lt;|\\u003c)script[^<]*?planted", page))
    assert {"loss", "metric_accuracy", "metric_gain", "confusion", "curves", "residuals"} <= planted


def test_the_page_can_read_no_file():
    tree = ast.parse(inspect.getsource(html))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert "research.report.style.Drawing" in modules
    assert not modules & {"pathlib.Path", "os", "research.io.files"}
    assert "open" not in names
