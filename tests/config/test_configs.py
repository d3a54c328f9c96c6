"""Every shipped config is a test; a resolved config is a fixed point with the same id."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from research.config import validation
from research.config.loading import load_config, validated
from research.config.sweeps import sweep_names, sweep_points
from research.errors import BadInput
from research.runs.schema import NOT_IN_ID
from research.training.make_run import make_run

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").glob("*.py"))
SWEEPS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs" / "sweeps").glob("*.py"))
# What keeps a data set small: the stand-in for what the interpreter or a package ships.
SMALL = {"teacher": {"data.examples": 512, "data.heldout": 64}}


def labeled(corpus):
    """The lines of the corpus, in two classes."""
    path = corpus.with_suffix(".jsonl")
    if not path.exists():
        lines = corpus.read_text().splitlines()
        rows = [{"text": line, "label": "ab"[i % 2]} for i, line in enumerate(lines)]
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def shrunk(path, corpus):
    config, module = load_config(str(path))
    changes = {"eval.examples": 16, **SMALL.get(config["data"]["name"], {})}
    if config["data"]["name"] == "text_classes":
        changes |= {"data.path": str(labeled(corpus)), "data.classes": 2, "data.examples": 64}
    elif config["data"].get("path") == "stdlib":
        changes["data.path"] = str(corpus)
    if config["horizon"]["unit"] == "tokens":
        changes["horizon.amount"] = 5e3
    config, problems = validation.override(config, changes)
    assert not problems
    return config, module


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_config_resolves_to_a_run(path, corpus):
    run = make_run(validated(shrunk(path, corpus)[0]))
    assert run.steps > 0
    assert validation.problems(run.config) == []


ALL_SWEEPS = [(path, name) for path in SWEEPS for name in sweep_names(load_config(str(path))[1])]


@pytest.mark.parametrize(("path", "name"), ALL_SWEEPS, ids=str)
def test_every_point_of_a_sweep_resolves_to_a_run_of_its_own(path, name, corpus):
    points = sweep_points(*shrunk(path, corpus), name)
    runs = [make_run(config) for _, config in points]
    assert len({run.id for run in runs}) == len(runs) > 1


def test_a_shipped_config_is_there_in_any_folder_unless_the_user_has_one(tmp_path, monkeypatch):
    name = "configs/sweeps/lm_isoflop.py"
    shipped = load_config(name)[0]
    monkeypatch.chdir(tmp_path)
    assert load_config(name)[0] == shipped
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("def get_config():\n    return {'seed': 7}\n")
    assert load_config(name)[0] == {"seed": 7}
    with pytest.raises(BadInput, match=r"--config=configs/nothing\.py: no such file"):
        load_config("configs/nothing.py")


def test_an_installed_copy_has_what_configs_read():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    kept = {
        path.relative_to(ROOT)
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    packages = [name.rstrip("*") for name in setup["packages"]["find"]["include"]]
    there = {path.relative_to(ROOT) for name in packages for path in (ROOT / name).rglob("*.*")}
    assert {path for path in there if path.suffix not in (".py", ".pyc")} == kept != set()


def test_a_config_may_have_several_sweeps(corpus):
    assert {"lr", "batch", "sweep"} == {name for path, name in ALL_SWEEPS if "tuning" in path.name}
    assert all((path, "sweep") in ALL_SWEEPS for path in SWEEPS)
    config, module = shrunk("configs/sweeps/lm_tuning.py", corpus)
    assert {"size", "optim.lr"} == set(sweep_points(config, module, "lr")[0][0])
    with pytest.raises(BadInput, match=r"--sweep=rates: .* it has lr, batch, sweep$"):
        sweep_points(config, module, "rates")


def test_the_demo_has_the_ladder_that_it_promises(corpus):
    points = sweep_points(*shrunk("configs/sweeps/lm_params.py", corpus), "sweep")
    facts = [make_run(config).facts for _, config in points]
    sizes = sorted({f["params"] for f in facts})
    assert len(sizes) >= 7
    assert sizes[-1] / sizes[0] >= 30
    assert len({f["tokens"] for f in facts}) == 1
    assert max(sum(f["params"] == n for f in facts) for n in sizes) == 3


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_resolved_config_resolves_to_itself(path, corpus):
    run = make_run(validated(shrunk(path, corpus)[0]))
    again = make_run(validated(json.loads(json.dumps(run.config))))
    assert again.config == run.config
    assert again.id == run.id
    assert again.facts["params"] == run.facts["params"]


CHANGES = {
    "name": "other",
    "mesh.fsdp": 2,
    "save.every": 7,
    "save.keep": 5,
    "log.every": 3,
    "loop.steps_per_dispatch": 4,
    "eval.every": 11,
    "eval.batch": 3,
}


@pytest.mark.parametrize("path", CHANGES)
def test_what_does_not_change_the_meaning_does_not_change_the_id(path, tiny):
    assert any(path == key or path.startswith(f"{key}.") for key in NOT_IN_ID)
    assert make_run(tiny({path: CHANGES[path]})).id == make_run(tiny()).id


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("data.seed", 1),
        ("batch.size", 4),
        ("optim.lr", 0.3),
        ("optim.clip", None),
        ("optim.optimizer.b2", 0.99),
        ("optim.warmup.amount", 0.5),
        ("horizon.amount", 13.0),
        ("model.hidden", 40),
        ("model.norm", "layer"),
        ("data.context", 16),
        ("data.heldout", 0.3),
        ("eval.examples", 8),
    ],
)
def test_what_changes_the_meaning_changes_the_id(path, value, tiny):
    assert make_run(tiny({path: value})).id != make_run(tiny()).id


def test_the_content_of_the_data_counts_and_not_their_place(tiny, corpus, tmp_path):
    moved = shutil.copy(corpus, tmp_path / "moved.txt")
    assert make_run(tiny({"data.path": str(moved)})).id == make_run(tiny()).id
    with open(moved, "a") as file:
        file.write("one line more\n")
    assert make_run(tiny({"data.path": str(moved)})).id != make_run(tiny()).id


def test_equal_horizons_are_one_run(tiny):
    tokens = tiny({"horizon.unit": "tokens", "horizon.amount": 12.0 * 8 * 32})
    assert make_run(tokens).id == make_run(tiny()).id
