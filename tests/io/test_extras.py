"""How what is optional is installed: Isoflop is in no index of packages."""

import importlib.metadata
import shlex
import tomllib
from pathlib import Path

import pytest

from research.io import extras

ROOT = Path(__file__).parents[2]
REQUIRES = [
    "numpy>=2",
    'wandb>=0.23; extra == "track"',
    "jax[cuda13]; sys_platform == 'linux' and extra == 'cuda'",
    'ray>=2.60; extra == "ray"',
]


def test_a_checkout_installs_extras_from_itself(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    *pip, what = shlex.split(extras.install_command("track", "ray"))
    assert pip == ["pip", "install", "-e"]
    place, _, asked = what.removesuffix("]").partition("[")
    assert Path(place) == ROOT
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*asked.split(",")} == {"track", "ray"} <= optional["optional-dependencies"].keys()
    monkeypatch.chdir(ROOT)
    assert extras.install_command("track") == "pip install -e '.[track]'"


def test_an_installed_copy_installs_what_its_extras_require(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "research" / "io" / "extras.py"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    words = extras.install_command("track", "cuda")
    assert shlex.split(words) == ["pip", "install", "wandb>=0.23", "jax[cuda13]"]

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert extras.install_command("track") == "pip install '.[track]' in a checkout"


@pytest.mark.parametrize("pattern", ["research/**/*.py", "experiments/*.py", "docs/*.md", "*.md"])
def test_nobody_is_sent_to_an_index(pattern):
    pages = [path for path in ROOT.glob(pattern) if path.name != "CHANGELOG.md"]
    assert pages
    found = [path.name for path in pages if "install isoflop" in path.read_text().replace("'", "")]
    assert not found
