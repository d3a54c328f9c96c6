"""Nothing of a workdir reaches the page but what this package draws, and text that is escaped."""

import ast
import inspect
import re

import numpy as np
import pytest

from research.errors import BadInput
from research.io import files
from research.report import (
    answer,
    build,
    captions,
    elements,
    html,
    methods,
    page_assets,
    warning_groups,
)
from research.runs.directory import RunDirectory
from tests.report.test_report import workdir
from tests.scaling.test_scaling import noisy

SCRIPT = "<script>planted()</script>"
SVG = f'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>'
RUNG = {
    "ratio": 10.0,
    "budget": 4.8e12,
    "params": 200_000,
    "tokens": 4_000_000,
    "steps": 100,
    "epochs": 0.5,
    "curve": {"share": [0.1, 1.0], "loss": [3.0, 2.3], "sd": [0.1, 0.05]},
    "loss": 2.31,
    "interval": [2.25, 2.37],
    "run_interval": [2.2, 2.4],
    "parts": {"noise": 0.01, "parameters": 0.02, "law": 0.01, "floor": 0.005},
    "slope": -0.05,
    "run": "larger",
    "found": "new",
    "config": {},
}
REGISTRATION = {
    "rungs": [RUNG],
    "rows": [{"run": "r", "params": 1e4, "tokens": 1e5, "loss": 3.0}],
    "line": [{"budget": c, "loss": 3.0 / c**0.01, "interval": [2.0, None]} for c in (6e9, 7e12)],
    "law": "auto",
    "laws": [{"law": "chinchilla", "weight": 1.0}],
    "fit": "ab" * 32,
    "table": "cd" * 32,
    "group": "",
    "unit": "nats per token",
    "n_points": 12,
    "time": "2026-01-01T00:00:00+00:00",
    "code": {"commit": "0123456789abcdef"},
}


def write_registration(path, changes=(), of_rung=()):
    files.make_directory(path / "verify")
    document = REGISTRATION | {"rungs": [RUNG | dict(of_rung)]} | dict(changes)
    files.write_json(path / "verify" / "registration.json", files.digested(document))


def verified_sweep(path):
    """The records of a sweep over sizes and tokens, and what experiments.verify left beside it."""
    rows = [
        {"run": f"r{i}{k}", "params": int(n), "tokens": int(k * n), "flops": 7 * k * n * n,
         "loss": 2.0 + 40 / n**0.4 + 60 / (k * n) ** 0.35}
        for i, n in enumerate(np.geomspace(1e4, 1e5, 4)) for k in (2, 10, 50)
    ]  # fmt: skip
    workdir(path, rows)
    write_registration(path)
    with RunDirectory(path / "verify", "larger") as directory:
        directory.write_once("config.json", {})
        for step in range(0, 100, 10):
            directory.append(step=step, tokens=step, train_loss=3.0 - step / 150)
        facts = {"params": 200_000, "tokens": 4_000_000, "loss": 2.33}
        directory.write_result({"status": "done", "reason": "", **facts})
    return path


@pytest.mark.slow
def test_the_verification_is_drawn_from_its_record_alone(tmp_path, monkeypatch):
    none = methods.Methods()  # slow, and not asked about here
    monkeypatch.setattr(methods, "fit_methods", lambda groups, *args: dict.fromkeys(groups, none))
    verified_sweep(tmp_path)
    files.make_directory(tmp_path / "figures")
    svg = tmp_path / "figures" / "ladder.svg"
    svg.write_text(SVG)
    build.write_report(tmp_path)
    page, drawn = (tmp_path / "report.html").read_text(), svg.read_text()
    assert "planted" not in page
    assert "planted" not in drawn
    assert "1 of 1 rungs measured lie inside the interval that was registered" in page
    assert ">2.330<" in page
    forecasts = (tmp_path / "figures" / "forecasts.svg").read_text()
    assert forecasts[forecasts.index("<svg") :] in page
    assert drawn[drawn.index("<svg") :] in page
    svg.unlink()
    build.write_report(tmp_path)
    assert svg.read_text() == drawn
    write_registration(tmp_path, of_rung={"run_interval": [None, 2.32]})
    build.write_report(tmp_path)
    assert "open to 2.320" in (tmp_path / "report.html").read_text()
    assert "0 of 1 rungs measured lie inside" in (tmp_path / "report.html").read_text()
    assert svg.read_text() != drawn


@pytest.mark.parametrize(
    ("of_rung", "changes"),
    [
        ({"params": 0}, {}),
        ({"tokens": "many"}, {}),
        ({"loss": True}, {}),
        ({"ratio": -3.0}, {}),
        ({"slope": 0.05}, {}),
        ({"found": 1}, {}),
        ({"steps": 0.5}, {}),
        ({"curve": [1.0]}, {}),
        ({"curve": {"share": [0.1], "loss": [3.0, 2.3], "sd": [0.1]}}, {}),
        ({"curve": {"share": [1.0, 0.1], "loss": [3.0, 2.3], "sd": [0.1, 0.1]}}, {}),
        ({"run": "../elsewhere"}, {}),
        ({"parts": {"noise": 0.1}}, {}),
        ({"run_interval": None}, {}),
        ({"run_interval": [2.2]}, {}),
        ({"run_interval": [2.2, SCRIPT]}, {}),
        ({"run_interval": [2.35, 2.4]}, {}),
        ({}, {"n_points": SCRIPT}),
        ({}, {"rows": []}),
        ({}, {"line": [{"budget": 1.0}]}),
        ({}, {"time": None}),
        ({}, {"code": "x"}),
        ({}, {"laws": [1]}),
        ({}, {"laws": [{"law": "chinchilla", "weight": SCRIPT}]}),
    ],
)
def test_a_malformed_registration_is_reported(of_rung, changes, tmp_path):
    workdir(tmp_path, noisy(0)[:2])
    write_registration(tmp_path, changes, of_rung)
    with pytest.raises(BadInput, match=r"registration\.json: not what isoflop verify writes"):
        build.write_report(tmp_path)


def test_rungs_that_are_not_trained_or_diverged_are_shown_as_that(tmp_path):
    workdir(tmp_path, noisy(0)[:2])
    write_registration(tmp_path)
    (rung,) = build.write_report(tmp_path)["rungs"]
    assert rung["measured"] is None
    page = (tmp_path / "report.html").read_text()
    assert "not trained" in page
    with RunDirectory(tmp_path / "verify", "larger") as directory:
        directory.write_once("config.json", {})
        directory.write_result({"status": "diverged", "reason": "loss is nan"})
    build.write_report(tmp_path)
    assert "diverged: loss is nan" in (tmp_path / "report.html").read_text()


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
    planted = {name.partition(".")[0] for name in figures if name.endswith("g")} | {"ladder"}
    for name in planted | {"chinchilla_contours"}:
        (tmp_path / "figures" / f"{name}.svg").write_text(SVG)
        (tmp_path / "figures" / f"{name}.png").write_text(SVG)
    files.write_json(tmp_path / "data" / "card.json", {SCRIPT: SCRIPT, "text": [SCRIPT, {"a": 1}]})
    words = dict.fromkeys(("unit", "law", "group", "time", "fit", "table", SCRIPT), SCRIPT)
    words |= {"code": {"commit": SCRIPT}, "laws": [{"law": SCRIPT, "weight": 1.0}]}
    write_registration(tmp_path, words, {"optimal_params": SCRIPT})
    build.write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;planted()" in page
    assert "<script>planted" not in page
    assert page.count("planted()") == len(re.findall(r"(?:&lt;|\\u003c)script[^<]*?planted", page))
    assert {"loss", "metric_accuracy", "metric_gain", "confusion", "curves", "residuals"} <= planted


def names_and_modules(module):
    """The names that a module uses, and what it imports."""
    tree = ast.parse(inspect.getsource(module))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return names, modules


def test_the_page_can_read_no_file():
    assert "research.report.style.Drawing" in names_and_modules(html)[1]
    for module in (html, elements, answer, warning_groups, captions, page_assets):
        names, modules = names_and_modules(module)
        assert not modules & {"pathlib.Path", "os", "research.io.files"}
        assert "open" not in names
    assert "research.io.files" in names_and_modules(build)[1], "the twin: what writes it can"
