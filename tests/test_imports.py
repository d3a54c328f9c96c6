"""The house keeps its directions: a table of who may import whom, read from the source text."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import walls
from tests.walls import INSIDE, NO_JAX, READ_CONFIG, SLACK, WALLS

ROOT = Path(__file__).parents[1]
MAY = {room: set(allowed.split()) for room, (_, allowed) in WALLS.items()}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax"}
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


def targets(module, tree):
    """The modules of research/ that a file imports, as `room` or `room.part`."""
    for name in imports(tree):
        if name.startswith("research.") and name != "research.__version__":
            parts = name.split(".")[1:]
            while parts and not exists("research/" + "/".join(parts)):
                parts.pop()
            yield ".".join(parts)


def exists(place):
    return (ROOT / f"{place}.py").is_file() or (ROOT / place / "__init__.py").is_file()


def permitted(room, target):
    """The entry of the table by which `room` may import `target`, or None."""
    for entry in (target.partition(".")[0], target):
        if entry in MAY[room]:
            return entry
    return None


def without_jax(module):
    return any(module == place or module.startswith(f"{place}.") for place in NO_JAX)


def violations(module, tree):
    """What the file of a module, such as "training.step", imports and may not."""
    room = module.partition(".")[0]
    for target in targets(module, tree):
        if target.partition(".")[0] != room and not permitted(room, target):
            yield f"{module} imports {target}"
        own = target.removeprefix(f"{room}.")
        if module in INSIDE and own != target and own not in INSIDE[module].split():
            yield f"{module} imports {target}"
        reads_config = target.startswith("config") and target != "config.types"
        if room == "training" and reads_config and module not in READ_CONFIG:
            yield f"{module} imports {target}; it may not look into a config"
    for name in imports(tree):
        top = name.partition(".")[0]
        if top in ("experiments", "configs", "tests"):
            yield f"{module} imports {name}"
        if top in HEAVY and without_jax(module):
            yield f"{module} imports {name}, and must do without jax"
        if name.startswith("flax") and room != "models":
            yield f"{module} imports {name}; flax is for models/ alone"
        if top in DANGEROUS:
            yield f"{module} imports {name}"


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


FILES = sorted((ROOT / "research").rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT / "research").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_what_it_may(path):
    tree = ast.parse(path.read_text())
    assert not list(violations(module_of(path), tree))
    assert not list(dangers(tree))


def used():
    """(room, entry of its row) of every import between rooms."""
    out = set()
    for path in FILES:
        module = module_of(path)
        room = module.partition(".")[0]
        for target in targets(module, ast.parse(path.read_text())):
            if module and target.partition(".")[0] != room:
                out.add((room, permitted(room, target)))
    return out


def test_the_table_permits_little_more_than_is_used():
    allowed = {(room, entry) for room, entries in MAY.items() for entry in entries}
    assert len(WALLS) <= 16
    assert len(allowed) <= SLACK * len(used()), sorted(allowed - used())


def test_contributing_shows_the_table():
    page = walls.PAGE.read_text()
    assert walls.with_table(page) == page, "python -m tests.walls"
    stale = page.replace("| may import |", "| imports |")
    assert walls.with_table(stale) != stale
    with pytest.raises(ValueError, match="no block"):
        walls.with_table("# A page")


def graph():
    """Module -> the modules of research/ that it imports, at any depth."""
    out = {}
    for path in FILES:
        module = module_of(path)
        found = set(targets(module, ast.parse(path.read_text())))
        out[module] = {target for target in found if target and target != module}
    return out


def circle(edges):
    """A circle of imports, or None."""
    done, way = set(), []

    def visit(module):
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done or module not in edges:
            return None
        way.append(module)
        found = next(filter(None, map(visit, sorted(edges[module]))), None)
        way.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(edges))), None)


def test_imports_make_no_circle():
    assert circle(graph()) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_rooms_make_no_circle():
    assert circle({room: {entry.partition(".")[0] for entry in MAY[room]} for room in MAY}) is None


def test_every_room_is_in_the_table():
    assert {module_of(path).partition(".")[0] for path in FILES} - {""} == set(WALLS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import jax"),
        ("data", "def f():\n    import jax.numpy as jnp"),
        ("models", "from research.training import optimizers as optim"),
        ("train", "import flax.linen as nn"),
        ("scaling", "from research.models import transformer"),
        ("records", "import pickle"),
        ("sweep", "from experiments import train"),
    ],
)
def test_a_planted_violation_is_seen(module, source):
    assert list(violations(module, ast.parse(source)))


@pytest.mark.parametrize(
    "folder", ["isoflop", "research", "experiments", "configs", "tools", "tests"]
)
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
        assert name.split(".")[0] in ("ml_collections", "configs") or name == "research.config.grid"


ENTRIES = [p for p in sorted((ROOT / "experiments").glob("*.py")) if p.name != "__init__.py"]


HELP_COMPUTES = ("calibrate",)  # whose flags are those of a room that computes


def loaded_by(code):
    """The modules that code loads which the interpreter alone has not."""
    code = (  # multiprocessing gives __main__ a second name
        "import atexit, runpy, sys; before = {*sys.modules, '__mp_main__'}\n"
        f"atexit.register(lambda: print(*{{*sys.modules}} - before, file=sys.stderr))\n{code}"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def too_much(loaded, most, brought=frozenset()):
    """Of what was loaded: what is not the standard library's, nor of ours where it is at most so
    much, nor what an allowed import has brought."""
    ours = {name for name in loaded if name.partition(".")[0] in ("research", "experiments")}
    foreign = {n for n in loaded if n.partition(".")[0] not in sys.stdlib_module_names}
    return foreign - ours - brought | (ours if len(ours) > most else set())


@pytest.fixture(scope="module")
def brought():
    return loaded_by("import numpy, scipy.special")


@pytest.mark.parametrize("path", ENTRIES, ids=lambda p: p.name)
def test_help_loads_little(path, brought):
    """So that it is there at once: its time is that of what it imports."""
    loaded = loaded_by(
        f"sys.argv = ['x', '--help']; runpy.run_module('experiments.{path.stem}', None, '__main__')"
    )
    assert "research.config.cli" in loaded
    computes = path.stem in HELP_COMPUTES
    assert not too_much(loaded, 40, brought if computes else frozenset())


@pytest.mark.parametrize("name", ["jax", "matplotlib", "scipy.stats", "scipy.optimize", "pyarrow"])
def test_what_help_should_not_load_is_seen(name, brought):
    assert too_much({"research", "numpy", name}, 40, brought) == {name}
    assert too_much({"json", "numpy"}, 40) == {"numpy"}
    ours = {f"research.m{k}" for k in range(41)}
    assert too_much(ours, 40) == ours


@pytest.mark.parametrize("path", ENTRIES, ids=lambda p: p.name)
def test_entry_points_are_thin(path):
    lines = path.read_text().splitlines()
    assert sum("import " not in line for line in lines) <= 80
