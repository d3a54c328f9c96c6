"""A table of bad configs of all families, each refused by the commands themselves: exit code 2, the
key, the value and what would be right, nothing compiled and nothing written."""

import contextlib
import json
import re

import jax
import pytest

from experiments import sweep as sweep_command
from experiments import train as train_command
from research.config import cli, validation
from research.config.loading import validated
from research.errors import BadInput
from research.parallel import compile_cache, device_mesh
from tests.config.test_configs import CONFIGS, shrunk

DROP, NAN, INF = ..., float("nan"), float("inf")  # DROP: a name that is the same in every process
NAMES = {path.stem: path for path in CONFIGS}
WSD = {"name": "wsd", "decay": 0.6, "final": 0.0}
LINEAR, GRU = {"name": "linear"}, {"name": "gru", "width": 8, "depth": 1, "tie_embeddings": False}
SIZED = {"size": None, "model.width": 16, "model.depth": 2}

# config, changes, words of the message: key, value, what would do
BAD = [
    # Keys.
    ("lm_transformer", {"sizee": 3}, "sizee: no such key; did you mean 'size'?"),
    ("lm_gru", {"lr": 0.1}, "lr: no such key; did you mean 'optim.lr'?"),
    ("lm_gru", {"modle.widht": 2}, "modle.widht: no such key; did you mean 'model.width'?"),
    ("lm_gru", {"model.heads": 2}, "model.heads: no such key"),
    ("linear", {"save.evry": 10}, "save.evry: no such key; did you mean 'save.every'?"),
    ("linear", {"horizon": DROP}, "horizon.unit: missing; expected one of steps, tokens"),
    ("linear", {"optim": 3}, "optim: is a section; expected its keys, such as optim.lr"),
    ("mlp_teacher", {"optim.schedule.timescale": 3.0}, "optim.schedule.timescale: no such key"),
    ("mlp_teacher", {"optim.schedule": {"name": "cosine"}}, "optim.schedule.final: missing"),
    ("mlp_teacher", {"optim.optimizer": {"name": "muon"}}, "optim.optimizer.adam_scale: missing"),
    ("cnn_digits", {"model": {"name": "cnn2"}}, "'cnn2' is unknown; .* did you mean 'cnn'"),
    ("cnn_digits", {"model.name": "gru"}, "model.tie_embeddings: missing; expected true or false"),
    # Of earlier versions.
    ("linear", {"batch.accumulate": 2}, "no such key; did you mean 'batch.grad_accumulation'?"),
    ("linear", {"batch.seed": 2}, "batch.seed: no such key; did you mean 'data.seed'?"),
    # Left out: nothing has a default that the record of a run would not show.
    ("linear", {"batch.rule": DROP}, "batch.rule: missing; expected one of constant, sqrt_tokens"),
    ("linear", {"save.on_error": DROP}, "save.on_error: missing; expected one of stop, continue"),
    ("lm_gpt2", {"data.undecodable": DROP}, "data.undecodable: missing; expected one of error,"),
    # Types: a number as text, a bool as a number, a list, nothing.
    ("linear", {"optim.lr": "1e-3"}, "optim.lr: '1e-3' is of type str; expected a finite number"),
    ("linear", {"horizon.amount": "2e3"}, "horizon.amount: '2e3' is of type str"),
    ("cnn_digits", {"optim.optimizer.b1": "0.9"}, "optim.optimizer.b1: '0.9' is of type str"),
    ("cnn_digits", {"model.width": True}, "model.width: True is of type bool; expected a whole"),
    ("cnn_digits", {"data.flip": 1}, "data.flip: 1 is of type int; expected true or false"),
    ("cnn_digits", {"batch.size": 64.0}, "batch.size: 64.0 is of type float; expected a whole"),
    ("resnet_digits", {"seed": None}, "seed: None is none; expected a whole number from 0 to"),
    ("resnet_digits", {"name": 3}, "name: 3 is of type int; expected text"),
    ("resnet_digits", {"name": "a\nb"}, r"name: 'a\\nb' holds the character U\+000A; expected"),
    ("linear", {"data.weights": 3.0}, "data.weights: 3.0 is of type float; expected a list"),
    ("mlp_diabetes", {"data.target": "age"}, "data.target: 'age' is of type str; expected a list"),
    ("lm_gpt2", {"data.path": ""}, "data.path: '' is empty; expected text"),
    ("lm_gpt2", {"data.path": "a\0b"}, r"data.path: 'a\\x00b' holds the character U\+0000"),
    # Ranges: negative, zero, not finite, beyond what the program's float32 or an index holds.
    ("linear", {"optim.lr": 0.0}, "optim.lr: 0.0 is out of range; expected a finite number above"),
    (
        "linear",
        {"optim.lr": NAN},
        "optim.lr: nan is out of range; expected a finite number above 0",
    ),
    ("linear", {"optim.lr": 1e300}, "optim.lr: 1e.300 is inf in float32, out of range; expected a"),
    ("linear", {"optim.clip": INF}, "optim.clip: inf is out of range; expected a finite number"),
    ("linear", {"optim.ema": 1 - 1e-12}, "optim.ema: 0.999999999999 is 1 in float32, out of range"),
    (
        "linear",
        {"data.weights": [1.0, NAN]},
        "data.weights: nan is out of range; expected a finite number",
    ),
    ("linear", {"data.weights": []}, "data.weights: empty; expected a number for each feature"),
    ("linear", {"data.noise": -1.0}, "data.noise: -1.0 is out of range"),
    ("linear", {"data.bias": 1e300}, r"data.weights: .* targets above 1e\+18"),
    ("lm_gru", {"seed": 10**400}, "seed: 1000.*000 is out of range .*; expected a whole number"),
    ("lm_gru", {"batch.size": 2**40}, r"batch.size: 1099511627776 is out of range \(below 2\^31"),
    ("lm_gru", {**SIZED, "model.depth": 2000}, "model.depth: 2000 is .* from 1 to 256"),
    ("lm_gru", {"model.unroll": 0}, "model.unroll: 0 is out of range"),
    ("lm_gru", {"task.chunk": -1}, "task.chunk: -1 is out of range; expected a whole number of at"),
    ("mlp_teacher", {"data.exponent": -1.0}, "data.exponent: -1.0 is out of range"),
    ("mlp_teacher", {"data.features": 10**8}, "data.examples: .* GB; expected at most 4.3"),
    ("cnn_digits", {"data.resize": 10**6}, "data.resize: 1000000 makes .* GB of pixels, more than"),
    ("mlp_diabetes", {"size": 1.0}, "size: 1 parameters cannot be met; the nearest mlp .* has 15"),
    ("mlp_diabetes", {"size": 1e30}, "size: 1e.30 is out of range; .* below 1e13"),
    ("mlp_diabetes", {"size": 3e10}, "size: .* parameters need .* about .* parameters would fit"),
    ("linear", {"size": 100.0}, "size: 100 parameters cannot be met; the nearest linear .* has 2"),
    # What does not divide.
    ("lm_gpt2", {"model.heads": 3}, "model.heads: 3 does not divide model.width = 64"),
    ("lm_gpt2", {"model.kv_heads": 3}, "model.kv_heads: 3 does not divide model.heads = 4"),
    (
        "lm_gpt2",
        {"model.width": 12, "model.positions": "rotary"},
        "model.heads: 4 of 3 features in a width of 12; expected heads of an even size",
    ),
    ("resnet_digits", {"model.width": 6}, "model.width: 6; expected a multiple of 4"),
    (
        "resnet_digits",
        {"batch.grad_accumulation": 5},
        "batch.grad_accumulation: 5 does not divide batch.size",
    ),
    ("resnet_digits", {"mesh.data": 3}, "batch.size: 32 is not divisible by .* = 3"),
    ("resnet_digits", {"mesh.tensor": 16}, "mesh: .* needs 16 devices, there are 8"),
    ("resnet_digits", {"mesh.data": 0}, "mesh.data: 0 devices; expected at least 1, or -1"),
    ("resnet_digits", {"mesh.fsdp": -1}, "mesh: more than one axis is -1"),
    ("linear", {"mesh.data": 2**52, "mesh.fsdp": 2**52}, "mesh: .* devices, there are 8"),
    ("lm_gpt2", {"mesh.data": 1, "mesh.tensor": 8}, "mesh.tensor: 8 does not divide model.heads"),
    ("cnn_digits", {"model.depth": 3}, "model.depth: 3; images of 8 x 8 have room for 1 stages"),
    # Lengths and schedules.
    ("linear", {"optim.warmup.amount": 3e3}, r"optim.warmup.amount: 3000 \(steps\) is 1.5 times"),
    (
        "lm_gpt2",
        {"optim.warmup.amount": 1.5},
        r"optim.warmup.amount: 1.5 \(fraction\) is 1.5 times",
    ),
    (
        "lm_gpt2",
        {"optim.warmup": {"unit": "steps", "amount": 1e6}},
        r"optim.warmup.amount: 1e.06 \(steps\) in 10 steps is 1e.05 times the run",
    ),
    ("lm_gpt2", {"optim.schedule": WSD, "optim.warmup.amount": 0.5}, "optim.schedule.decay is 0.6"),
    (
        "linear",
        {"horizon.amount": 0.2},
        "horizon.amount: .* 0.2 steps .*; expected at least 1 step",
    ),
    ("lm_gru", {"horizon.amount": 1e308}, "horizon.amount: .* expected .* fewer than 2.31"),
    (
        "linear",
        {"horizon.unit": "token"},
        "horizon.unit: 'token' is unknown.* did you mean 'tokens'?",
    ),
    ("linear", {"batch.rule": "sqrt_tokens"}, "batch.rule: sqrt_tokens, but horizon.unit is steps"),
    ("mlp_diabetes", {"batch.size": 5000}, "batch.size: 5000, but only .* training examples"),
    ("mlp_diabetes", {"eval.examples": 5000}, "eval.examples: 5000, .*; none takes all of them"),
    ("lm_gpt2", {"loop.steps_per_dispatch": 10**9}, "loop.steps_per_dispatch: 1000000000; .* auto"),
    ("lm_gpt2", {"loop.steps_per_dispatch": "all"}, "loop.steps_per_dispatch: 'all' .*, or auto"),
    ("linear", {"log.trackers": ["stdout"]}, "log.trackers: 'stdout' is unknown; expected one of"),
    # What does not go together.
    ("lm_gru", {"task": {"name": "regression"}}, "task.name: regression measures numbers, but .*"),
    ("cnn_digits", {"task": {"name": "regression"}}, "task.name: .*; expected classification"),
    ("cnn_digits", {"model": {**GRU, "unroll": 1, "dtype": "float32"}}, "model.name: gru needs"),
    ("lm_gpt2", {"model": LINEAR}, "model.name: linear needs data with features, outputs"),
    (
        "mlp_diabetes",
        {"model": LINEAR, "size": None, "optim.lr_rule": "inverse_width"},
        "optim.lr_rule: inverse_width needs a model with a width",
    ),
    ("lm_gpt2", {"size": 1e5}, "model.width: 64 is given, but `size` .* fills it"),
    ("lm_gru", {"size": None}, "size: none, so model.width, model.depth must be given"),
    ("lm_gpt2", {"model.attention": "cudnn"}, "model.attention: cudnn runs on NVIDIA GPUs"),
    ("lm_gpt2", {"data.vocab": 512}, "data.vocab: .* the byte tokenizer has 256"),
    ("lm_gpt2", {"data.tokenizer": "bpe"}, "data.vocab: None; bpe needs 257 to"),
    ("linear", {"init.step": 3}, "init.step: 3 is given, but init.run is none"),
    # Data.
    ("lm_gpt2", {"data.path": "no.txt"}, "data.path: no.txt: No such file"),
    ("lm_gpt2", {"data.path": "x" * 4000}, "data.path: xxx.*: File name too long"),
    (
        "lm_gpt2",
        {"data.path": "README.md"},
        "data.path: README.md: expected stdlib, packages, or a .txt",
    ),
    ("lm_gpt2", {"data.tokenizer": "gpt2"}, "data.tokenizer: gpt2: no such file; expected bytes"),
    ("lm_gpt2", {"data.context": 10**6}, "data.path: .* data.context = 1000000 needs at least"),
    ("lm_gpt2", {"init.run": "no/such"}, "init.run: no/such: no run found; expected WORKDIR/runs"),
    ("text_classes", {"data.classes": 1}, "data.classes: 1; .* at least 2"),
    ("text_classes", {"data.tokenizer": "bpe"}, "data.tokenizer: bpe: a classifier needs"),
    ("text_classes", {"data.label_field": "l"}, r"data.path: .* line 1: .* 'l' \(data.label_field"),
    ("text_classes", {"data.context": 2**30}, "data.context: 1,073,741,824 makes .* GB"),
    ("cnn_digits", {"data.heldout": None}, "data.heldout: none, but digits has no test part"),
    ("cnn_digits", {"data.examples": 5}, "data.examples: 5 are fewer than the 10 classes"),
    ("cnn_digits", {"data.path": "no.npz"}, "data.path: no.npz: No such file"),
    (
        "mlp_diabetes",
        {"data.target": ["sick"]},
        "data.target: diabetes has no column 'sick'; there",
    ),
    ("mlp_diabetes", {"data.columns": ["progression"]}, "data.columns: .* is the target too"),
    ("mlp_diabetes", {"data.heldout": 1e-9}, "data.heldout: 1e-09 of 442 rows .* 0 held out"),
]
# changes, the keys of all problems
TOGETHER = [
    ({"optim.lr": -1, "seed": 0.5, "modl": {}, "mesh.fsdp": -1}, "optim.lr seed modl mesh"),
    ({"task": {"name": "regression"}, "model": LINEAR}, "task.name model.name"),
    (
        {"batch.size": 10**6, "eval.examples": 10**6, "init.step": 3},
        "batch.size eval.examples init.step",
    ),
]
SWEEPS = [
    ("[{'sizee': 1}, {'seed': -1}]", r"point 0 .*: sizee: no such key(.|\n)*point 1 .*: seed: -1"),
    (
        "[{'data.heldout': 0.999}]",
        "point {'data.heldout': 0.999}: batch.size: 16, but only .* training examples",
    ),
    ("[3]", "point 0: 3 is not a dict of overrides"),
    ("3", r"sweep\(\) gives 3; expected a list"),
    ("({'seed': i} for i in __import__('itertools').count())", "yields more than 100,000 points"),
    ("[]", "yields no points"),
    ("[{}][1]", "IndexError: list index out of range"),
    ("[{'optim.lr': 1.0, 'optim': {'lr': 2.0}}]", "optim.lr: set twice, also in its section"),
    ("[{'optim': 2.0}]", "optim: is a section; expected its keys"),
]


def changed(name, changes, corpus):
    config, _ = shrunk(NAMES[name], corpus)
    if config["data"].get("path") == "mnist5k":
        config["data"]["path"] = "digits"
    for path, value in changes.items():
        inner, (*parents, last) = config, path.split(".")
        for key in parents:
            inner = inner.setdefault(key, {})
        inner.pop(last, None)
        if value is not DROP:
            inner[last] = value
    return config


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """A function: the entry point and its flags -> what it printed as errors; it must end with code
    2, and leave neither a file nor a compiled program."""
    compiles = []
    monkeypatch.setattr(
        "research.config.stop_signal.StopSignal",
        lambda *_, **__: contextlib.nullcontext(lambda: False),
    )
    monkeypatch.setattr(compile_cache, "enable_compile_cache", lambda: None)
    monkeypatch.setattr(device_mesh, "use_all_cpu_cores", lambda: None)
    jax.monitoring.register_event_duration_secs_listener(
        listen := lambda event, *_, **__: (
            compiles.append(event) if "backend_compile" in event else 0
        )
    )

    def run(main, *flags):
        monkeypatch.setattr("sys.argv", ["command", *flags, f"--workdir={tmp_path / 'w'}"])
        with pytest.raises(SystemExit) as end:
            cli.run(main)
        told = capsys.readouterr().err
        assert end.value.code == 2, told
        assert not (tmp_path / "w").exists()
        assert not compiles
        assert told
        assert all(line.startswith("error: ") and len(line) < 4200 for line in told.splitlines())
        return told

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield run
    jax.monitoring.unregister_event_duration_listener(listen)


def written(config, tmp_path):
    """The flag that names this config; JSON has no number that is not finite, Python has."""
    path = tmp_path / "config.json"
    try:
        path.write_text(json.dumps(config, allow_nan=False))
    except ValueError:
        path = path.with_suffix(".py")
        path.write_text(
            "from math import inf, nan\nfrom ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict({config!r})\n"
        )
    return f"--config={path}"


@pytest.mark.parametrize(("name", "changes", "words"), BAD, ids=lambda x: str(x)[:50])
@pytest.mark.fault(
    "R14",
    "a config that cannot be meant",
    "exit code 2 with the key, its value and what would do; nothing compiled, nothing written",
    "a table of bad configs of every family, each given to `train`",
)
def test_a_bad_config_is_rejected(name, changes, words, command, corpus, tmp_path):
    told = command(train_command.main, written(changed(name, changes, corpus), tmp_path))
    assert re.search(words, told), told


def test_the_table_is_no_smaller_than_promised_and_its_configs_are_good_without_the_change(corpus):
    assert len(BAD) >= 60
    for name in {name for name, _, _ in BAD}:
        assert validation.problems(changed(name, {}, corpus)) == []


@pytest.mark.parametrize(("changes", "keys"), TOGETHER, ids=lambda x: str(x)[:50])
@pytest.mark.fault(
    "R14",
    "several mistakes in one config",
    "all independent ones are reported together",
    "configs with several of them",
)
def test_independent_errors_are_reported_together(changes, keys, command, corpus, tmp_path):
    told = command(train_command.main, written(changed("lm_gpt2", changes, corpus), tmp_path))
    for key in keys.split():
        assert f"error: {key}: " in told


@pytest.mark.parametrize(("points", "words"), SWEEPS)
@pytest.mark.fault(
    "R14",
    "a sweep whose points cannot be meant",
    "as with a config, before the first run",
    "bad points of a sweep",
)
def test_a_bad_sweep_is_rejected(points, words, command, corpus, tmp_path):
    config = json.dumps(changed("lm_gru", {}, corpus))
    (tmp_path / "c.py").write_text(
        f"import json\ndef get_config():\n    return json.loads({config!r})\n"
        f"def sweep(config):\n    return {points}\n"
    )
    told = command(sweep_command.main, f"--config={tmp_path / 'c.py'}")
    assert re.search(words, told), told


def test_a_key_with_a_dot_hides_nothing(command, corpus, tmp_path):
    config = changed("linear", {"optim.lr": "fast"}, corpus)
    config["optim.lr"] = 0.1  # reads like the path of the other
    told = command(train_command.main, written(config, tmp_path))
    assert "config: has a key 'optim.lr', with a dot; expected a section for each part" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a JSON document"),
        (b"\xff\xfe{", "not a JSON document"),
        (b"[]", "holds a list, expected a JSON object"),
        (b'{"a": 1', "not a JSON document"),
        (b'{"seed": 1, "seed": 2}', "key given twice: 'seed'"),
        (b'{"optim": {"lr": 1, "lr": 2}}', "key given twice: 'lr'"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than 32 deep"),
        (b'{"a":' * 10**5, "not a JSON document"),
        (b'{"seed": NaN}', "NaN is not a JSON number"),
        (b'{"seed": 1e999}', "1e999 is not a JSON number"),
        (b'{"a": 1' + b" " * (1 << 20) + b"}", "larger than 1048576 bytes"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON document"),
    ],
    ids=lambda x: str(x)[:30],
)
@pytest.mark.fault(
    "R14",
    "a file that is no config",
    "exit code 2 with what it is",
    "empty, cut, binary, deep, large and ambiguous files",
)
def test_a_file_that_is_no_config_is_rejected(content, words, command, tmp_path):
    (tmp_path / "c.json").write_bytes(content)
    assert words in command(train_command.main, f"--config={tmp_path / 'c.json'}")


@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "9" * 5000, "1.5", "true", "x"])
def test_a_non_integer_flag_is_rejected(value, command, corpus, tmp_path):
    config = written(changed("lm_gru", {}, corpus), tmp_path)
    told = command(train_command.main, config, f"--config.batch.size={value}")
    assert re.search(r"error: batch.size: .*expected a whole number of at least 1", told)


def test_a_good_config_is_not_refused(command, corpus, tmp_path):
    with pytest.raises(AssertionError, match="assert 0 == 2"):  # it was trained, with code 0
        command(train_command.main, written(changed("linear", {}, corpus), tmp_path))


def test_an_empty_config_is_reported_key_by_key():
    with pytest.raises(BadInput) as error:
        validated({})
    assert len(error.value.problems) > 20
