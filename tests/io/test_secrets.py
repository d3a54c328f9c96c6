"""What is written is for its user alone, and no secret of the environment is in it."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from research.errors import BadInput
from research.io import files, host
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from tests.conftest import TINY

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_aSecretOfTheHub",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfi",
    "DATABASE_PASSWORD": "correct horse battery",
}
SHOWN = {"ISOFLOP_TEST_NOTE": "what is no secret"}  # the twin: this one would be found


def found_in(folder, values):
    """The names of those values that are in some file below `folder`."""
    raw = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    return {name for name, value in values.items() if value.encode() in raw}


def others_may(folder):
    """What below `folder` others than its owner may read, write or list."""
    return [p for p in [folder, *folder.rglob("*")] if p.lstat().st_mode & 0o077]


CONFIG = """
from configs import lm_transformer

def get_config():
    return lm_transformer.get_config()

def sweep(config):
    return [{"seed": k} for k in range(2)] + [{"optim.lr": 1e30}]
"""


def flags(workdir, corpus, tmp_path):
    """Those of a sweep of two runs and one that diverges."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    every = {**TINY, "data.path": corpus, "eval.every": 6, "save.every": 6}
    words = [f"--config.{k}={'none' if v is None else v}" for k, v in every.items()]
    return [f"--config={path}", f"--workdir={workdir}", *words]


def test_a_sweep_writes_no_secret_and_nothing_for_others(corpus, tmp_path, monkeypatch, capfd):
    from experiments import sweep

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "research.config.stop_signal.StopSignal",
        lambda *_, **__: contextlib.nullcontext(lambda: False),
    )
    old = os.umask(0o022)
    try:
        files.keep_private()  # as every command does
        code = sweep.main([*flags(tmp_path / "work", corpus, tmp_path), "--executor=inline"])
    finally:
        os.umask(old)
    assert code == 1  # one has diverged
    assert {r["status"] for r in read_table(tmp_path / "work")} == {"done", "diverged"}
    assert (tmp_path / "work" / "table.csv").exists()
    assert not [name for name, value in SECRETS.items() if value in "".join(capfd.readouterr())]
    assert not found_in(tmp_path, SECRETS)
    assert not others_may(tmp_path / "work")
    assert not others_may(tmp_path / "cache")


@pytest.mark.slow
def test_workers_and_trackers_write_no_secret(corpus, tmp_path):
    for package in ("tensorboardX", "wandb", "mlflow"):
        pytest.importorskip(package)
    more = ("--executor=local", "--workers=2", "--config.log.trackers=tensorboard,wandb,mlflow")
    argv = [sys.executable, "-m", "experiments.sweep", *flags(tmp_path / "work", corpus, tmp_path)]
    places = {"HOME": str(tmp_path / "home"), "ISOFLOP_CACHE": str(tmp_path / "cache")}
    env = {**os.environ, **SECRETS, **places, "ISOFLOP_SHARED": "1"}
    out = subprocess.run(
        [*argv, *more], env=env, capture_output=True, text=True, umask=0o022, check=False
    )
    assert out.returncode == 1, out.stderr
    assert (tmp_path / "work" / "wandb").is_dir()
    assert not [name for name, value in SECRETS.items() if value in out.stdout + out.stderr]
    assert not found_in(tmp_path, SECRETS)
    assert others_may(tmp_path / "work")  # the twin of the test above, by ISOFLOP_SHARED


def test_a_search_would_find_them(tmp_path):
    for name, value in {**SECRETS, **SHOWN}.items():
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_text(f"x{value}y")
    assert found_in(tmp_path, {**SECRETS, **SHOWN}) == {*SECRETS, *SHOWN}


RAISES = """
import logging, os, sys
from research.config import cli
from research.errors import BadInput

def main(argv):
    words = "refused: " + os.environ["HF_TOKEN"] + " " + os.environ["ISOFLOP_TEST_NOTE"]
    logging.getLogger("research.any").warning("%s", words)
    raise {"typed": BadInput, "io": OSError, "other": RuntimeError}[argv[0]](words)

cli.run(main)
"""


@pytest.mark.parametrize("kind", ["typed", "io", "other"])
def test_messages_logs_and_tracebacks_name_a_secret_and_do_not_tell_it(kind):
    argv, env = [sys.executable, "-c", RAISES, kind], {**os.environ, **SECRETS, **SHOWN}
    out = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert out.returncode == {"typed": 2, "io": 74, "other": 1}[kind]
    assert out.stderr.count("refused: [HF_TOKEN] what is no secret") >= 2
    assert SECRETS["HF_TOKEN"] not in out.stdout + out.stderr


def test_the_note_of_a_failed_attempt_contains_no_secret(tmp_path, monkeypatch):
    for name, value in {**SECRETS, **SHOWN}.items():
        monkeypatch.setenv(name, value)
    with RunDirectory(tmp_path, "r0") as directory:
        directory.write_once("config.json", {})
        directory.record_failure(" ".join(["refused", *SECRETS.values(), *SHOWN.values()]))
    noted = json.loads((directory.path / "attempts" / "1.json").read_text())["reason"]
    assert noted == " ".join(["refused", *(f"[{name}]" for name in SECRETS), *SHOWN.values()])


def test_short_values_and_other_names_stay(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "short")
    monkeypatch.setenv("SOME_PLACE", "a longer value")
    assert host.redact_secrets("short a longer value") == "short a longer value"


WRITES = """
import sys
from pathlib import Path
from research.config import cli
from research.io import files

def main(argv):
    files.write_json(Path(argv[0]) / "file.json", {})
    files.make_directory(Path(argv[0]) / "folder")

cli.run(main)
"""


@pytest.mark.parametrize(("shared", "mode"), [("", 0o600), ("1", 0o644)])
def test_commands_write_for_their_user_alone_unless_told(shared, mode, tmp_path):
    env = {**os.environ, "ISOFLOP_SHARED": shared}
    argv = [sys.executable, "-c", WRITES, str(tmp_path)]
    subprocess.run(argv, env=env, umask=0o022, check=True)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2


def test_a_library_keeps_the_umask_of_its_caller(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_json(tmp_path / "file.json", {})
    finally:
        os.umask(old)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o640
    with pytest.raises(BadInput):
        files.read_json(tmp_path / "none.json")
