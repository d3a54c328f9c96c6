"""A bad config is refused with its path and value, all problems at once; a good one passes."""

import ast
import contextlib
import copy
import inspect
import math
import pkgutil
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.config import registry, schema, validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.io import files

ROOT = Path(__file__).parents[2]
SIZED = {"size": None, "model.width": 64, "model.depth": 2, "model.heads": 4}
SIZED |= {"model.kv_heads": 4, "model.hidden": 128}


def base():
    return load_config("configs/lm_transformer.py")[0]


def set_(config, path, value):
    *parents, last = path.split(".")
    for key in parents:
        config = config[key]
    config[last] = value


def with_(changes):
    config = base()
    for path, value in changes.items():
        set_(config, path, value)
    return config


BAD = [
    ({"sizee": 3}, "sizee: no such key; did you mean 'size'?"),
    ({"optim.learning_rate": 1e-3}, "optim.learning_rate: no such key"),
    ({"model.widht": 3}, "did you mean 'model.width'?"),
    ({"optim.lr": "1e-3"}, "optim.lr: '1e-3' is of type str; expected a finite number above 0"),
    ({"optim.lr": True}, "optim.lr: True is of type bool"),
    ({"optim.lr": None}, "optim.lr: None is none"),
    ({"optim.lr": [1e-3]}, "optim.lr: [0.001] is of type list"),
    ({"optim.lr": math.nan}, "optim.lr: nan is out of range"),
    ({"optim.lr": math.inf}, "optim.lr: inf is out of range"),
    ({"optim.lr": -1.0}, "optim.lr: -1.0 is out of range"),
    ({"optim.lr": 0}, "optim.lr: 0 is out of range"),
    ({"optim.lr_rule": "muP"}, "optim.lr_rule: 'muP' is unknown; expected one of constant"),
    ({"optim.clip": 0.0}, "optim.clip: 0.0 is out of range"),
    ({"optim.optimizer.name": "adamv"}, "did you mean 'adam'?"),
    ({"optim.optimizer.b1": 1.0}, "optim.optimizer.b1: 1.0 is out of range"),
    ({"optim.optimizer.b2": -0.1}, "optim.optimizer.b2: -0.1 is out of range"),
    ({"optim.optimizer.eps": 0.0}, "optim.optimizer.eps: 0.0"),
    ({"optim.optimizer.weight_decay": -1e-9}, "optim.optimizer.weight_decay"),
    ({"optim.schedule.name": "liner"}, "optim.schedule.name: 'liner' is unknown"),
    ({"optim.schedule.final": 1.0}, "optim.schedule.final: 1.0 is out of range"),
    ({"optim.warmup.unit": "epochs"}, "optim.warmup.unit: 'epochs' is unknown"),
    ({"optim.warmup.amount": "10%"}, "optim.warmup.amount: '10%'"),
    ({"horizon.unit": "token"}, "did you mean 'tokens'?"),
    ({"horizon.amount": 0.0}, "horizon.amount: 0.0 is out of range"),
    ({"batch.size": 4.0}, "batch.size: 4.0 is of type float; expected a whole number"),
    ({"batch.size": 0}, "batch.size: 0 is out of range"),
    ({"batch.size": False}, "batch.size: False is of type bool"),
    ({"data.seed": -1}, "data.seed: -1 is out of range"),
    ({"seed": 1.5}, "seed: 1.5 is of type float"),
    ({"seed": 2**60}, "seed: 1152921504606846976 is out of range"),
    ({"size": -3e5}, "size: -300000.0 is out of range"),
    ({"model.width": 64}, "model.width: 64 is given, but `size` (300000.0) fills it"),
    ({"size": None}, "size: none, so model.width"),
    (SIZED | {"model.heads": 3}, "model.heads: 3 does not divide model.width = 64"),
    (SIZED | {"model.kv_heads": 3}, "model.kv_heads: 3 does not divide model.heads = 4"),
    (SIZED | {"model.depth": 0}, "model.depth: 0 is out of range"),
    ({"model.norm": "rmsnorm"}, "model.norm: 'rmsnorm' is unknown; expected one of rms, layer"),
    (
        {"model.tie_embeddings": "yes"},
        "model.tie_embeddings: 'yes' is of type str; expected true or false",
    ),
    ({"model.dtype": "float16"}, "model.dtype: 'float16' is unknown"),
    ({"model.name": "transfomer"}, "did you mean 'transformer'?"),
    ({"model.name": 3}, "model.name: 3 is of type int"),
    ({"model": "transformer"}, "model: is a section; expected its keys"),
    ({"model": {}}, "model: is a section"),
    ({"loop": None}, "loop: is a section; expected its keys, such as loop.steps_per_dispatch"),
    ({"batch.size": {"a": 1}}, "batch.size: missing"),
    ({"data.name": "txt"}, "did you mean 'text'?"),
    ({"data.path": 3}, "data.path: 3 is of type int; expected text"),
    ({"data.heldout": 1.0}, "data.heldout: 1.0 is out of range"),
    ({"data.heldout": 0.0}, "data.heldout: 0.0 is out of range"),
    ({"data.tokenizer": 3}, "data.tokenizer: 3 is of type int; expected text"),
    (
        {"log.trackers": "wandb"},
        "log.trackers: 'wandb' is of type str; expected a list, each one of",
    ),
    ({"log.trackers": ["tensorbord"]}, "did you mean 'tensorboard'?"),
    ({"init.what": "weights"}, "init.what: 'weights' is unknown; expected one of params"),
    ({"optim.ema": 1.0}, "optim.ema: 1.0 is out of range"),
    ({"mesh.data": 0}, "mesh.data: 0 devices"),
    ({"mesh.data": -2}, "mesh.data: -2 devices"),
    ({"mesh.fsdp": -1}, "mesh: more than one axis is -1"),
    ({"eval.examples": 0}, "eval.examples: 0 is out of range"),
    ({"save.keep": 0}, "save.keep: 0 is out of range"),
    ({"loop.steps_per_dispatch": 0}, "loop.steps_per_dispatch: 0 is out of range"),
    ({"loop.steps_per_dispatch": "all"}, "expected a whole number of at least 1, or auto"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=lambda x: str(x)[:50])
def test_a_bad_config_is_rejected_by_path_and_value(changes, words):
    problems = validation.problems(with_(changes))
    assert any(words in line for line in problems), problems


def test_all_errors_are_reported_together():
    changes = {path: value for bad, _ in BAD[3:10] + BAD[24:26] for path, value in bad.items()}
    changes |= {"model.width": 64, "nonsense": 1, "mesh.fsdp": -1}
    problems = validation.problems(with_(changes))
    for path in ("optim.lr", "batch.size", "model.width", "nonsense", "mesh"):
        assert sum(line.startswith(f"{path}:") for line in problems) == 1, path


def test_good_configs_have_no_problems():
    assert validation.problems(base()) == []
    assert validation.problems(with_(SIZED)) == []
    assert validation.problems(with_({"model.depth": 3})) == []  # the size fills the rest
    for steps in (1, "auto"):
        assert validation.problems(with_({"loop.steps_per_dispatch": steps})) == []


@pytest.mark.parametrize("path", sorted(schema.schema(base())))
def test_every_field_refuses_a_value_of_another_type_and_its_absence(path):
    config = with_(SIZED)
    set_(config, path, ["nonsense"])
    assert any(line.startswith(path) for line in validation.problems(config))
    config = with_(SIZED)
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    section.pop(last, None)
    found = validation.problems(config)
    if schema.schema(base())[path].absent:  # in older configs
        assert found == []
    else:
        assert any(path in line or path.split(".")[0] in line for line in found)


def test_whole_numbers_in_float_fields_become_floats():
    config = validation.coerce(with_({"optim.lr": 1, "optim.warmup.amount": 0}))
    assert repr(config["optim"]["lr"]) == "1.0"
    assert repr(config["batch"]["size"]) == "4"


def test_minus_zero_is_zero():
    configs = [validation.coerce(with_({"optim.warmup.amount": x})) for x in (0.0, -0.0, 0.25)]
    first, second, other = (files.canonical(config) for config in configs)
    assert first == second != other
    assert files.canonical(with_({"optim.warmup.amount": -0.0})) != first


def test_another_plug_takes_its_own_keys():
    config, problems = validation.override(base(), {"optim.schedule.name": "constant"})
    assert not problems
    assert config["optim"]["schedule"] == {"name": "constant"}
    assert validation.problems(config) == []
    config, _ = validation.override(base(), {"optim.schedule.name": "wsd"})
    assert validation.problems(config)[0].startswith("optim.schedule.decay: missing")
    changes = {"optim.schedule.decay": 0.2, "optim.schedule.name": "wsd"}
    assert validation.problems(validation.override(base(), changes)[0]) == []


def test_override_does_not_touch_its_argument():
    before = base()
    after = copy.deepcopy(before)
    validation.override(after, {"optim.lr": 3.0})
    assert before == after


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.sampled_from([*schema.schema(base()), "model", "optim", "x"]), VALUES))
def test_no_mutation_of_a_config_raises_anything_but_bad_input(changes):
    config = base()
    for path, value in changes.items():
        try:
            set_(config, path, value)
        except (TypeError, KeyError):
            continue  # its section has been replaced
    assert all(isinstance(line, str) for line in validation.problems(config))
    with contextlib.suppress(BadInput):
        validated(config)


def test_the_plugs_are_read_as_their_code_says():
    from research import data, models
    from research.training import optimizers as optim
    from research.training import schedules, tasks

    for table, (file, name) in zip(
        (models.MODELS, data.DATASETS, tasks.TASKS, optim.OPTIMIZERS, schedules.SCHEDULES),
        schema.PLUGS.values(),
        strict=True,
    ):
        rows = registry.table(file, name)
        assert list(rows) == list(table)
        for key, (file, definition) in rows.items():
            entry = table[key]
            made = pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
            assert made.__name__ == definition
            assert Path(inspect.getfile(inspect.unwrap(made))) == file
    fields = registry.fields(*registry.table("models/__init__.py", "MODELS")["transformer"])
    transformer = pkgutil.resolve_name(models.MODELS["transformer"])
    assert list(fields) == list(transformer.__dataclass_fields__)
    assert fields["norm"].choices == ("rms", "layer")


def test_a_plug_table_is_a_literal(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ROOT", tmp_path / "research")
    for row, words in [
        ('"research.models.gru:GRU"', None),
        ('"research.models.gru.GRU"', "a row must be"),
        ("print('gru')", "a row must be"),
    ]:
        file = tmp_path / f"{abs(hash(row))}.py"
        file.write_text(f'ROWS = {{"gru": {row}}}')
        if words is None:
            found = (tmp_path / "research" / "models" / "gru.py", "GRU")
            assert registry.table(str(file), "ROWS") == {"gru": found}
        else:
            with pytest.raises(TypeError, match=words):
                registry.table(str(file), "ROWS")


def defaults_of_readers(tree):
    """Calls of `.get` with a default on what looks like a config or a section of one."""
    sections = {path.partition(".")[0] for path in schema.SECTIONS} | {*schema.PLUGS, "config"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = ast.unparse(node.func.value)
            names = set(re.findall(r"\w+", receiver))
            with_default = len(node.args) == 2 and node.func.attr in ("get", "pop", "setdefault")
            if with_default and isinstance(node.args[0], ast.Constant) and names & sections:
                yield ast.unparse(node)


# Where a key may be absent: not every schedule decays, not all data lie at one path, and what is
# read of another's run may be anything. What is none in a new config is no key of a resolved one.
ABSENT = {
    "optim.pop('paths', None)",
    "optim['schedule'].get('decay', 0.0)",
    "data.get('path', '')",
    "files.read_json(directory / 'config.json', follow=False).get('name', 'run')",
}


def test_no_reader_of_a_config_has_a_default_of_its_own():
    """All keys are required, so whoever reads one may rely on it."""
    found = {}
    for path in (ROOT / "research").rglob("*.py"):
        if path.parent.name != "config":
            for call in defaults_of_readers(ast.parse(path.read_text())):
                found[call] = path
    assert found.keys() == ABSENT, found
    planted = "config['save'].get('on_error', 'stop')"
    assert list(defaults_of_readers(ast.parse(planted))) == [planted]


def test_the_seed_of_the_order_is_no_option_of_a_data_set():
    """It is `data.seed` of every config, and never handed to a data set."""
    file, name = schema.PLUGS["data"]
    for row in registry.table(file, name).values():
        assert "seed" not in registry.fields(*row)
