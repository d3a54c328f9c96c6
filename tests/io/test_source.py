"""Which code ran: digests of files, the commit, how the working tree differs from it, and the
config file with what it imports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research.config.loading import load_config
from research.errors import BadInput
from research.io import git, git_diff, source

ROOT = Path(__file__).parents[2]
STEP, REPORT = "research/training/step.py", "research/report/html.py"
IDENTITY = {
    f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
READ = "import json; from research.io import source; print(json.dumps(source.describe()))"


def run_git(folder, *args):
    how = {"env": os.environ | IDENTITY, "check": True, "capture_output": True, "text": True}
    return subprocess.run(["git", "-C", folder, *args], **how).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A committed copy of the library."""
    folder = tmp_path / "checkout"
    for name in source.PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run_git(tmp_path, "init", "-q", folder)
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "all")
    return folder


def described(folder, code=READ, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def edit(folder, path, text="\n# edited\n"):
    (folder / path).write_text((folder / path).read_text() + text)


def test_the_code_is_what_training_loads_and_the_source_is_all(checkout):
    first, _ = described(checkout)
    assert first["commit"] == run_git(checkout, "rev-parse", "HEAD")
    assert not first["diff"]
    edit(checkout, REPORT)
    second, _ = described(checkout)
    assert second["code"] == first["code"]
    assert second["source"] != first["source"]
    assert second["commit"] == first["commit"] + "+"
    edit(checkout, STEP)
    third, _ = described(checkout)
    assert third["code"] not in (first["code"], "")


def test_training_may_load_what_it_imports_and_nothing_above_it():
    training = source.library().training
    loaded = {STEP, "research/models/gru.py", "research/runs/checkpoint.py", "research/io/files.py",
              "research/config/schema.py", "research/__init__.py"}  # fmt: skip
    assert loaded <= training
    rooms = {path.split("/")[1] for path in training}
    assert not rooms & {"report", "scaling", "planning", "sweep", "launch", "inference"}
    assert not any(path.startswith("experiments") for path in training)
    assert {REPORT, "experiments/train.py"} <= source.library().files.keys()


WRITE = f"""
import json, sys
from pathlib import Path
from research.config.loading import load_config
from research.io import source
load_config(sys.argv[1] if sys.argv[1:] else "mine/config.py")
source.write(Path("w"))
{READ}
"""


def test_the_difference_is_kept_without_secrets_and_names_what_is_untracked(checkout):
    edit(checkout, STEP, "\napi_key = 'abcdefghijkl'\nnote = 'what is no secret'\n")
    edit(checkout, STEP, "hub = 'hf_abcdefghijklmnop'\nplace = 'https://me:mypassword@host/x'\n")
    edit(checkout, STEP, "given = 'correct horse battery'\n")
    (checkout / "research" / "new.py").write_text("x = 1\n")
    (checkout / "mine").mkdir()
    (checkout / "mine" / "helper.py").write_text("WIDTH = 8\n")
    config = "import helper\n\ndef get_config():\n    return {'width': helper.WIDTH}\n"
    (checkout / "mine" / "config.py").write_text(config)
    (checkout / "mine" / "unused.py").write_text("")
    found, _ = described(checkout, WRITE, DATABASE_PASSWORD="correct horse battery")
    text = (checkout / "w" / "code" / found["diff"]).read_text()
    for secret in ("abcdefghijkl", "hf_abc", "mypassword", "correct horse"):
        assert secret not in text, secret
    assert "what is no secret" in text  # the twin: what is not taken out is there
    assert "api_key = '[removed]'" in text
    assert "[DATABASE_PASSWORD]" in text
    for name in ("research/new.py", "mine/config.py", "mine/helper.py"):
        assert f"?? {name}" in text
    assert "unused.py" not in text
    assert found["config_files"].keys() == {"mine/config.py", "mine/helper.py"}
    assert f"?? mine/config.py {found['config_files']['mine/config.py']}" in text
    listed = json.loads((checkout / "w" / "code" / f"{found['source']}.json").read_text())
    assert listed["files"].keys() >= {STEP, "research/new.py"}


def test_what_a_config_imports_changes_its_digest(checkout):
    (checkout / "mine").mkdir()
    (checkout / "mine" / "helper.py").write_text("WIDTH = 8\n")
    config = "import helper\n\ndef get_config():\n    return {'width': helper.WIDTH}\n"
    (checkout / "mine" / "config.py").write_text(config)
    first, _ = described(checkout, WRITE)
    assert described(checkout, WRITE)[0] == first
    edit(checkout, "mine/helper.py")
    second, _ = described(checkout, WRITE)
    changed = {k for k, v in second["config_files"].items() if first["config_files"][k] != v}
    assert changed == {"mine/helper.py"}


def test_the_difference_is_bounded(checkout):
    edit(checkout, STEP, "\n" + "x = 1\n" * (git_diff.LARGEST // 6))
    found, _ = described(checkout, WRITE.replace("load_config(", "len("))
    text = (checkout / "w" / "code" / found["diff"]).read_text()
    assert git_diff.LARGEST < len(text) < git_diff.LARGEST + 100
    assert text.rstrip().endswith("more characters were not kept")
    short = "x" * git_diff.LARGEST
    assert git_diff.bounded(short) == short


def test_a_checkout_that_git_refuses_says_why_the_commit_is_unknown(checkout, tmp_path):
    fake = tmp_path / "bin"
    fake.mkdir()
    words = "fatal: detected dubious ownership in repository at"
    (fake / "git").write_text(f"#!/bin/sh\necho \"{words} '$2'\" >&2\nexit 128\n")
    (fake / "git").chmod(0o755)
    found, said = described(checkout, PATH=f"{fake}:{os.environ['PATH']}")
    assert found["commit"].startswith(f"unknown (git: {words}")
    assert "the commit is unknown" in said
    assert len(found["code"]) == source.DIGITS
    found, _ = described(checkout, PATH=str(tmp_path))
    assert found["commit"] == "unknown (git: No such file or directory)"
    shutil.rmtree(checkout / ".git")  # as an installed copy
    found, said = described(checkout)
    assert found["commit"] == ""
    assert not said
    assert len(found["code"]) == source.DIGITS


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_git_itself_refuses_the_checkout_of_another_user(checkout):
    for path in (checkout, checkout / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(subprocess.CalledProcessError):
        git.run(checkout, "rev-parse", "HEAD")
    commit, diff = git.describe(checkout, [], {})
    assert commit.startswith("unknown (git: fatal: detected dubious ownership")
    assert not diff


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.modle.width = 3", "AttributeError"),
        ("config.size = 1 + 'a word'", "TypeError"),
        ("config.size = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_an_error_in_a_config_names_its_own_file_and_line(tmp_path, line, words):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import lm_transformer\n\n\ndef get_config():\n"
        f"    config = lm_transformer.get_config()\n    {line}\n    return config\n"
    )
    with pytest.raises(BadInput, match=words) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{path}:6: ")


def test_an_error_of_a_helper_names_the_helper(tmp_path):
    (tmp_path / "failing_helper.py").write_text("def width():\n    return {}['none']\n")
    path = tmp_path / "mine.py"
    path.write_text("import failing_helper\n\n\ndef get_config():\n    failing_helper.width()\n")
    with pytest.raises(BadInput, match="KeyError") as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{tmp_path / 'failing_helper.py'}:2: ")
