"""The console script `isoflop`: the entry points under one name, from any directory."""

import os
import pkgutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS
from research.config import validation
from research.config.loading import load_config
from research.io import host

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "numpy", "scipy", "matplotlib", "pyarrow", "rich")
# Their flags are those of a room that computes.
HELP_NEEDS = {name: {"numpy", "scipy"} for name in ("fit", "calibrate")}
OWN_CONFIG = """
import sizes_of_mine

def get_config():
    raise RuntimeError(f"loaded with {sizes_of_mine.SIZES}")
"""
OWN_SWEEP = """
from research.config import grid

def get_config():
    return BASE

def sweep(config):
    return grid.values("model.width", [4, 8])
"""


def isoflop(name, *flags, cwd, **environment):
    return subprocess.run(
        [*host.command(name), *flags],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


@pytest.fixture
def elsewhere(tmp_path):
    """A working directory whose own folders have the names of ours."""
    for name in ("research", "experiments", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('a stranger: {name}')")
    return tmp_path


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A function: what may be imported -> a PYTHONPATH on which all else that is slow raises."""

    def path(*allowed):
        folder = tmp_path_factory.mktemp("poisoned")
        for name in {*HEAVY} - {*allowed}:
            (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')")
        return str(folder)

    return path


def test_every_entry_point_is_a_command_and_help_says_what_it_does(elsewhere, poisoned):
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert set(COMMANDS) == {name for name in files if not name.startswith("_")}
    done = isoflop("--help", cwd=elsewhere, PYTHONPATH=poisoned())
    assert done.returncode == 0, done.stderr
    listed = dict(
        line.split(None, 1) for line in done.stdout.partition("commands:")[2].splitlines() if line
    )
    assert list(listed) == list(COMMANDS)
    assert listed["train"] == "Train one run of a config, or resume it."
    assert all(len(f"  {about}") < 112 and about.endswith(".") for about in listed.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_needs_no_numpy_and_names_the_script(name, elsewhere, poisoned):
    path = poisoned(*HELP_NEEDS.get(name, ()))
    done = isoflop(name, "--help", cwd=elsewhere, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert f"usage: isoflop {name} " in done.stdout
    assert "python -m" not in done.stdout


def test_the_poison_of_the_tests_above_works(poisoned):
    code = [sys.executable, "-c", "import numpy"]
    done = subprocess.run(code, capture_output=True, text=True, env={"PYTHONPATH": poisoned()})
    assert "numpy was imported" in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trian", "trian: no such command; did you mean 'train'?"),
        ("xyz", "expected one of init, train, "),
    ],
)
def test_an_unknown_command_is_exit_2(name, words, elsewhere):
    done = isoflop(name, cwd=elsewhere)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_folders_of_the_working_directory_hide_ours_from_m_alone(elsewhere):
    assert isoflop("table", "--help", cwd=elsewhere).returncode == 0
    by_module = [sys.executable, "-m", "experiments.table", "--help"]
    done = subprocess.run(by_module, capture_output=True, text=True, cwd=elsewhere)
    assert "a stranger: experiments" in done.stderr


@pytest.mark.parametrize("path", ["configs/lm_gpt2.py", "configs/sweeps/mlp_params.py"])
def test_a_shipped_config_is_read_by_its_path_from_anywhere(path, tmp_path):
    done = isoflop(
        *("sweep", f"--config={ROOT / path}", "--workdir=w", "--sweep=other"), cwd=tmp_path
    )
    assert done.returncode == 2
    assert "--sweep=other: the config has no function other()" in done.stderr, done.stderr


def test_a_config_of_ones_own_imports_what_lies_beside_it(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.py").write_text(OWN_CONFIG)
    (tmp_path / "mine" / "sizes_of_mine.py").write_text("SIZES = (1, 2)")
    done = isoflop("train", "--config=mine/config.py", "--workdir=w", cwd=tmp_path)
    assert "RuntimeError: loaded with (1, 2)" in done.stderr


def test_the_package_has_every_folder_and_its_script():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert callable(pkgutil.resolve_name(project["project"]["scripts"]["isoflop"]))
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == [
        "isoflop*",
        "research*",
        "experiments*",
        "configs*",
    ]
    for folder in {path.parent for path in (ROOT / "research").rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), folder  # or the search passes it over


@pytest.mark.slow
def test_an_installed_copy_sweeps_with_workers_outside_a_checkout(elsewhere):
    place, source = elsewhere / "venv", elsewhere / "source"
    listed = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-co",
        "--exclude-standard",
        "research",
        "isoflop",
    ]
    names = subprocess.run(
        [*listed, "experiments", "pyproject.toml", "README.md", "LICENSE"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in names.stdout.splitlines():  # a build writes into its folder
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    venv.create(place, with_pip=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--no-deps", str(source)]
    built = subprocess.run(pip, capture_output=True, text=True)
    if built.returncode and "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("the build needs setuptools from a package index")
    assert built.returncode == 0, built.stderr
    (packages,) = (place / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(ours))
    changes = {"size": None, "model.width": 4, "data.examples": 512, "data.heldout": 64}
    changes |= {"horizon.unit": "steps", "horizon.amount": 20.0, "eval.batch": 64}
    small, problems = validation.override(
        load_config(str(ROOT / "configs/mlp_teacher.py"))[0], changes
    )
    assert not problems
    config = elsewhere / "mine.py"
    config.write_text(f"{OWN_SWEEP}\nBASE = {small!r}\n")
    command = [str(place / "bin" / "isoflop")]

    def run(*flags):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = run("sweep", f"--config={config}", "--workdir=w", "--workers=2")
    ask = "import isoflop; print(isoflop.load('w')['status'])"
    asked = subprocess.run(
        [place / "bin" / "python", "-P", "-c", ask], capture_output=True, text=True, cwd=elsewhere
    )
    assert "'done', 'done'" in asked.stdout, asked.stderr
    assert "trained 2 runs" in out
    assert "2 runs" in run("table", "--runs=w")
    assert "examples/s" in run("plan", f"--config={config}", "--devices=8")
    run("train", f"--config={config}", "--workdir=t", "--num_processes=2")
    records = [path.read_text() for path in elsewhere.rglob("result.json")]
    assert len(records) == 3
    assert all('"commit": ""' in text and '"isoflop": "0.1.0"' in text for text in records)


@pytest.mark.slow
def test_make_setup_installs_the_command(elsewhere, tmp_path):
    lock, folder = tmp_path / "none.lock", tmp_path / "made"
    lock.write_text("")
    environment = os.environ | {"LOCK": lock, "VENV": folder, "PYTHON": sys.executable}
    version = ".".join(map(str, sys.version_info[:3]))
    asked = [folder / "bin" / "python", "-P", "-c", "import isoflop; print(isoflop.__file__)"]
    # An environment without command or packages gets them; else nothing is to be done.
    for lost in ("bin/isoflop", "bin/isoflop", ".linked"):
        (folder / lost).unlink(missing_ok=True)
        made = ["sh", str(ROOT / "tools" / "setup.sh"), version]
        subprocess.run(made, env=environment, check=True, capture_output=True)
        for flags, words in ((["--help"], "isoflop COMMAND"), (["trian", "x"], "")):
            command = [folder / "bin" / "isoflop", *flags]
            done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
            assert done.returncode == (2 if flags[1:] else 0), done.stderr
            assert words in done.stdout
        place = subprocess.run(asked, cwd=elsewhere, capture_output=True, text=True)
        assert place.stdout.strip() == str(ROOT / "isoflop" / "__init__.py"), place.stderr
