"""The house keeps its directions: a table of who may import whom, read from the source text."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {
    *("errors", "paths", "plugs", "kinds", "files", "grid", "environment", "check", "cli"),
    *("tables", "rows", "sealed", "journal"),
}
PARTS = {
    *("trees", "models", "data", "tasks", "optim", "sharding", "processes", "records"),
    *("checkpoint", "sinks"),
}
# room -> the rooms of research/ that it may import
MAY = {
    **dict.fromkeys(GROUND, GROUND),
    "models": {"models", "kinds"},
    "data": {"data", "errors", "files", "tables", "kinds"},
    "tasks": {"models", "kinds"},
    "trees": GROUND,
    "optim": {*GROUND, "trees"},
    "sharding": {*GROUND, "trees"},
    "compiled": GROUND,
    "processes": GROUND,
    "watchdog": GROUND,
    "resume": {*GROUND, "run"},
    "lease": {"errors", "files"},
    "records": {*GROUND, "lease"},
    "sinks": GROUND,
    "checkpoint": {*GROUND, "trees", "processes"},
    "accounting": {*GROUND, "models"},
    "ladder": {*GROUND, "models", "accounting"},
    "branch": {*GROUND, "trees", "models", "checkpoint"},
    "run": {*GROUND, "branch", "models", "data", "tasks", "optim", "ladder", "accounting"},
    "step": {"optim", "sharding", "models", "tasks"},
    "export": {*GROUND, "trees", "models", "checkpoint", "records", "branch"},
    "generate": {*GROUND, "trees", "models", "data", "branch"},
    "trunk": {*GROUND, "processes", "checkpoint", "records", "run"},
    "recorder": {*GROUND, "processes", "records", "sinks", "run", "resume", "trunk"},
    "keeper": {*GROUND, *PARTS, "run", "step", "trunk", "recorder"},
    "train": {
        *(*GROUND, *PARTS, "branch", "run", "step", "memory", "trunk", "recorder", "keeper"),
        "watchdog",
    },
    "ensemble": {*GROUND, *PARTS, "run", "step", "recorder", "keeper", "train"},
    "units": {*GROUND, *PARTS, "run", "trunk", "train", "ensemble", "progress"},
    "machines": {"errors"},
    "traced": set(),
    "liveness": {"traced"},
    "memory": {*GROUND, "sharding", "traced", "liveness", "run", "step"},
    "roofline": {"machines", "liveness"},
    "capacity": {
        *(*GROUND, "data", "accounting", "ladder", "sharding", "run"),
        *("machines", "memory", "roofline", "liveness"),
    },
    "exact": {*GROUND, "sharding", "run", "train", "capacity"},
    "progress": GROUND,
    "launch": {"launch", "errors", "environment"},
    "watch": {*GROUND, "lease", "records"},
    "sweep": {
        *(*GROUND, "processes", "run", "lease", "records", "train", "units", "launch", "progress"),
        "watch",
    },
    "plan": GROUND,
    "listing": GROUND,
    "bench": {*GROUND, "accounting", "sharding", "run", "train", "recorder", "machines"},
    "cost": {*GROUND, "accounting", "bench", "sharding", "run", "memory", "train"},
    "verify": {*GROUND, "records", "run", "sweep", "scaling", "plots", "answer_plots"},
    "prepare": {*GROUND, "plan", "cost", "memory", "run", "units", "sweep"},
    "scaling": {*GROUND, "scaling", "records"},
    "plots": {*GROUND, "scaling"},
    "law_flags": GROUND,
    "law_plots": {*GROUND, "scaling", "plots", "answer_plots"},
    "answer_plots": {"scaling", "plots"},
    "summary": {"plots"},
    "charts": {"scaling", "plots"},
    "page": {"scaling", "charts", "summary"},
    "report": {
        *(*GROUND, "scaling", "plots", "law_plots", "answer_plots", "page", "records", "summary"),
    },
}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax"}
NO_JAX = {
    *GROUND,
    "data",
    "lease",
    "launch",
    "records",
    "watch",
    "sinks",
    "progress",
    "plan",
    "machines",
    "listing",
    "scaling",
    "law_flags",
    "law_plots",
    "answer_plots",
    "plots",
    "summary",
    "charts",
    "page",
    "report",
}
DANGEROUS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUN_WHAT_THEY_READ = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.fromregex"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "pandas.read_pickle"),
    *("pd.read_pickle", "runpy.run_path"),
}
# They make and open what must not be opened.
HOSTILE = {"payloads.py", "payloads_data.py", "opener.py", "test_hostile.py"}
FORKED = {"zygote.py"}  # runs commands of the tests in forked processes


def imports(tree):
    """Dotted names of everything that a module imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(room, tree):
    """What a file of `room` imports and may not."""
    for name in imports(tree):
        top, _, rest = name.partition(".")
        if top in ("experiments", "configs", "tests"):
            yield f"{room} imports {name}"
        if top == "research" and rest.partition(".")[0] not in {*MAY[room], "__version__"}:
            yield f"{room} imports {name}"
        if top in HEAVY and room in NO_JAX:
            yield f"{room} imports {name}, and must do without jax"
        if name.startswith("flax") and room != "models":
            yield f"{room} imports {name}; flax is for models/ alone"
        if top in DANGEROUS:
            yield f"{room} imports {name}"


def dangers(tree):
    """Calls that run what they read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in RUN_WHAT_THEY_READ:
                yield called
            for k in node.keywords:
                off = isinstance(k.value, ast.Constant) and not k.value.value
                if k.arg in ("allow_pickle", "shell", "trust_remote_code") and not off:
                    yield f"{called} with {k.arg}"


def research_files():
    return [
        p
        for p in sorted((ROOT / "research").rglob("*.py"))
        if p.name != "__init__.py" or p.parent.name != "research"
    ]


def room_of(path):
    return path.relative_to(ROOT / "research").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", research_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_what_it_may(path):
    tree = ast.parse(path.read_text())
    assert not list(violations(room_of(path), tree))
    assert not list(dangers(tree))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("errors", "import jax"),
        ("data", "def f():\n    import jax.numpy as jnp"),
        ("models", "from research import optim"),
        ("train", "import flax.linen as nn"),
        ("scaling", "from research.models import transformer"),
        ("records", "import pickle"),
        ("sweep", "from experiments import train"),
    ],
)
def test_a_planted_violation_is_seen(room, source):
    assert list(violations(room, ast.parse(source)))


@pytest.mark.parametrize("folder", ["research", "experiments", "configs", "tools", "tests"])
def test_nothing_in_the_project_runs_what_it_reads(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        taken = [name for name in imports(tree) if name.partition(".")[0] in DANGEROUS]
        assert path.name in HOSTILE | FORKED or not [*taken, *dangers(tree)], path


@pytest.mark.parametrize(
    "source",
    [
        *("eval('1')", "np.load(f, allow_pickle=True)", "yaml.load(f)", "torch.load(f)"),
        *("subprocess.run('ls', shell=True)", "subprocess.run(x, shell=flag)", "os.system(x)"),
        *("datasets.load_dataset(x, trust_remote_code=True)",),
    ],
)
def test_a_planted_danger_is_seen(source):
    assert list(dangers(ast.parse(source)))


def test_what_is_off_is_no_danger():
    assert not list(dangers(ast.parse("np.load(f, allow_pickle=False); run(x, shell=False)")))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: p.name)
def test_configs_import_little(path):
    for name in imports(ast.parse(path.read_text())):
        assert name.split(".")[0] in ("ml_collections", "configs") or name == "research.grid"


ENTRIES = [p for p in sorted((ROOT / "experiments").glob("*.py")) if p.name != "__init__.py"]


@pytest.mark.parametrize("path", ENTRIES, ids=lambda p: p.name)
def test_help_is_fast_and_imports_no_jax(path):
    """Half a second is the promise; a loaded machine is given three times that."""
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try:\n    runpy.run_module(sys.orig_argv[-1], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert 'jax' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", code, f"experiments.{path.stem}"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 1.5


@pytest.mark.parametrize("path", ENTRIES, ids=lambda p: p.name)
def test_entry_points_are_thin(path):
    assert len(path.read_text().splitlines()) <= 80
