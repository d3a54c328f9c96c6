"""A prediction is written before its run is trained, is not changed, and is compared."""

import json

import numpy as np
import pytest

from experiments import verify as command
from research.config import validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.io import files
from research.report import build
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.sweep import verify

pytestmark = pytest.mark.usefixtures("barely_optimized")

BUDGET = 3e10


@pytest.fixture
def swept(tmp_path, corpus):
    """The records of a sweep whose losses follow a law, and the file that its launch left."""
    for i, n in enumerate(np.geomspace(1e4, 1e5, 4)):
        for k in (2, 10, 50):
            with RunDirectory(tmp_path, f"r{i}{k}") as directory:
                directory.write_once("config.json", {})
                loss = 2.0 + 40 / n**0.4 + 60 / (k * n) ** 0.35
                facts = {"params": int(n), "tokens": int(k * n), "flops": 7 * k * n * n}
                facts |= {"optimizer": "adamw", "loss": loss}
                directory.write_result({"status": "done", "reason": "", **facts})
    config, _ = load_config("configs/lm_transformer.py")
    changes = {"data.path": str(corpus), "data.context": 32, "eval.examples": 64, "eval.every": 0}
    config, problems = validation.override(config, changes)
    assert not problems
    files.make_directory(tmp_path / "sweeps")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    points = [{"run": name, "config": validated(config)} for name in names]
    files.write_json(tmp_path / "sweeps" / "a.json", {"points": points})
    return tmp_path


def test_the_prediction_stands_before_the_run_and_is_not_changed(swept, monkeypatch):
    made, config = verify.predict(swept, BUDGET)
    path = swept / "verify" / "prediction.json"
    written = path.read_bytes()
    assert not (swept / "verify" / "runs").exists()
    low, high = made["run_interval"]
    assert low < made["loss"] < high
    assert 6 * made["params"] * made["tokens"] == pytest.approx(BUDGET, rel=0.05)
    assert made["params"] == pytest.approx(made["optimal_params"], rel=0.5)
    # Other runs, and so another law, do not change what was said.
    with RunDirectory(swept, "late") as directory:
        directory.write_once("config.json", {})
        facts = {"params": 50_000, "tokens": 500_000, "flops": 1e11, "loss": 1.0}
        directory.write_result({"status": "done", "reason": "", **facts})
    assert verify.predict(swept, None) == (made, config)
    assert path.read_bytes() == written
    with pytest.raises(BadInput, match="another"):
        verify.predict(swept, 2 * BUDGET)


@pytest.mark.slow
def test_the_command_trains_the_run_once_and_shows_both(swept, capsys):
    assert command.main([f"--runs={swept}", f"--flops={BUDGET}"]) == 0
    said = capsys.readouterr().out
    assert "is predicted to have a loss of" in said
    assert "Measured: " in said
    found = json.loads((swept / "verify" / "verify.json").read_text())
    (row,) = read_table(swept / "verify")
    assert row["loss"] == found["measured"]
    assert (row["params"], row["tokens"]) == (found["params"], found["tokens"])
    low, high = found["run_interval"]
    assert found["covered"] == (low <= found["measured"] <= high)
    assert found["error"] == pytest.approx(found["loss"] / found["measured"] - 1)
    page = (swept / "report.html").read_text()
    assert "Verified optimum" in page
    assert f"{found['measured']:.4g}" in page
    before = (swept / "verify" / "runs" / row["run"] / "result.json").stat().st_mtime_ns
    command.main([f"--runs={swept}"])
    assert (swept / "verify" / "runs" / row["run"] / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_cannot_be_verified_is_reported(swept, tmp_path):
    with pytest.raises(BadInput, match="--flops"):
        command.main([f"--runs={swept}", "--flops=-1"])
    for path in (swept / "sweeps").iterdir():
        path.unlink()
    with pytest.raises(BadInput, match="no sweep was launched"):
        verify.predict(swept, None)
    build.write_report(swept)
    assert "Verified optimum" not in (swept / "report.html").read_text()


def test_the_law_is_that_of_the_runs_that_are_comparable_with_the_first_point(swept):
    rows = read_table(swept)
    assert verify.law(swept)[1] == ""
    for row in rows:  # as many runs of another optimizer, with half of the loss
        name = f"z{row['run']}"
        with RunDirectory(swept, name) as directory:
            directory.write_once("config.json", {})
            facts = {**row, "optimizer": "muon", "loss": row["loss"] / 2}
            directory.write_result({k: v for k, v in facts.items() if "." not in k})
    sweep = files.read_json(swept / "sweeps" / "a.json")
    sweep["points"] += [{**p, "run": f"z{p['run']}"} for p in sweep["points"]]
    files.write_json(swept / "sweeps" / "a.json", sweep)
    fit, group = verify.law(swept)
    assert {row["run"][0] for row in fit.parts.fitted} == {"r"}
    assert group == "adamw"
    sweep["points"].reverse()
    files.write_json(swept / "sweeps" / "a.json", sweep)
    fit, group = verify.law(swept)
    assert {row["run"][0] for row in fit.parts.fitted} == {"z"}
    assert group == "muon"
