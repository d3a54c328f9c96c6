"""Runs that W&B and MLflow stored on this disk are rows of a table, without a server."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from research.errors import BadInput
from research.tables import table, tracker_runs

WRITE_WANDB = """
import sys, wandb
for i in range(3):
    run = wandb.init(mode="offline", dir=sys.argv[1], project="p", name="twin" if i else "one",
                     config={"model": {"params": 10 ** (6 + i)}, "lr": 1e-3}, id=f"id{i}",
                     settings={"console": "off", "silent": True})
    for step in range(400):
        run.log({"eval/loss": 4.0 - step / 400, "tokens": step * 100, "text": "x" * 200})
    run.finish(exit_code=int(i == 1))
"""
WRITE_MLFLOW = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
group = client.create_experiment("ladder", artifact_location=sys.argv[2])
for i, state in enumerate(("FINISHED", "KILLED", "FINISHED")):
    run = client.create_run(group, run_name="twin" if i else "one").info.run_id
    client.log_param(run, "params", 10 ** (6 + i))
    for step in range(3):
        client.log_metric(run, "loss", 4.0 - step - i / 10, step=step)
    client.set_terminated(run, state)
"""


def write(code, *arguments):
    """Runs code that writes a store, in a process of its own."""
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false", "MLFLOW_ALLOW_FILE_STORE": "1",
                   "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}  # fmt: skip
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment,
                   capture_output=True, timeout=300, cwd=arguments[-1])  # fmt: skip


@pytest.fixture(scope="module")
def wandb_folder(tmp_path_factory):
    pytest.importorskip("wandb", reason="the extra `track` is not installed")
    folder = tmp_path_factory.mktemp("wandb")
    write(WRITE_WANDB, folder)
    return folder


def test_offline_runs_of_wandb_are_rows(wandb_folder):
    rows = table.read_runs(f"wandb:{wandb_folder}", {"params": "model.params", "loss": "eval/loss"})
    assert [row["run"] for row in rows] == ["one", "twin id1", "twin id2"]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert [row["params"] for row in rows] == [1e6, 1e7, 1e8]
    assert {(row["loss"], row["tokens"]) for row in rows} == {(4.0 - 399 / 400, 39900)}
    kept, dropped = table.usable_rows(rows, ["params", "tokens", "loss"])
    assert len(kept) == 2
    assert dropped == [{"run": "twin id1", "reason": "failed"}]
    below = table.read_runs(f"wandb:{wandb_folder}/wandb")
    assert [row["run"] for row in below] == [row["run"] for row in rows]


def test_a_run_of_wandb_that_was_killed_is_unfinished(wandb_folder, tmp_path):
    for path in wandb_folder.rglob("run-id2.wandb"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-2000])
    (row,) = table.read_runs(f"wandb:{tmp_path}")
    assert row["status"] == "unfinished"
    assert row["eval/loss"] < 3.1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no record", "not a record of W&B"), (None, "no run-….wandb there")],
)
def test_what_is_no_run_of_wandb_is_refused(content, words, tmp_path):
    pytest.importorskip("wandb", reason="the extra `track` is not installed")
    if content:
        (tmp_path / "run-1.wandb").write_bytes(content)
    with pytest.raises(BadInput, match=words):
        table.read_runs(f"wandb:{tmp_path}")
    with pytest.raises(BadInput, match="no such folder"):
        table.read_runs(f"wandb:{tmp_path / 'none'}")


@pytest.mark.parametrize("kind", ["database", "files"])
def test_a_store_of_mlflow_is_rows_and_is_not_changed(kind, tmp_path):
    pytest.importorskip("mlflow", reason="the extra `track` is not installed")
    stored = tmp_path / "mlflow.db" if kind == "database" else tmp_path / "mlruns"
    uri = f"sqlite:///{stored}" if kind == "database" else stored.as_uri()
    write(WRITE_MLFLOW, uri, (tmp_path / "artifacts").as_uri(), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))}
    for place in (stored, tmp_path):
        rows = sorted(table.read_runs(f"mlflow:{place}"), key=lambda row: row["params"])
        assert [row["params"] for row in rows] == ["1000000", "10000000", "100000000"]
        assert [row["loss"] for row in rows] == pytest.approx([2.0, 1.9, 1.8])
        assert rows[0]["run"] == "one"
        assert rows[1]["run"].startswith("twin ")
        kept, dropped = table.usable_rows(rows, ["params", "loss"])
        assert len(kept) == 2
        assert dropped[0]["reason"] == "KILLED"
    assert {p: p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))} == before


def test_what_is_no_store_of_mlflow_is_refused(tmp_path):
    pytest.importorskip("mlflow", reason="the extra `track` is not installed")
    (tmp_path / "x.db").write_bytes(b"no database")
    (tmp_path / "y.db").write_bytes(b"SQLite format 3\x00" + bytes(200))
    for place, words in (
        ("none", "no such file or folder"),
        ("", "neither mlflow.db nor the experiments of a file store"),
        ("x.db", "not a database of SQLite"),
        ("y.db", "not a store of MLflow"),
    ):
        with pytest.raises(BadInput, match=words):
            table.read_runs(f"mlflow:{tmp_path / place}")


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(tracker_runs, "importlib", types.SimpleNamespace(import_module=absent))
    (tmp_path / "run-1.wandb").write_bytes(b":W&B")
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\x00")
    for source in ("wandb", "mlflow"):
        with pytest.raises(BadInput, match=rf"the package {source}.*pip install -e '.*\[track\]'"):
            table.read_runs(f"{source}:{tmp_path}")


def test_a_folder_whose_name_begins_so_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("wandb:x.csv").write_text("params,loss\n1,2\n")
    assert table.read_runs("wandb:x.csv") == [{"params": "1", "loss": "2"}]
