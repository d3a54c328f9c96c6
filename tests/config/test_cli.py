"""The command line as a user meets it: exit codes, messages, no jax before the config is good."""

import importlib
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from research.config import cli, refusals
from research.config.loading import load_config
from research.config.sweeps import sweep_points
from research.errors import BadInput

TRAIN = [sys.executable, "-m", "experiments.train"]
CONFIG = "--config=configs/lm_transformer.py"


def call(*args, **env):
    return subprocess.run(
        args, capture_output=True, text=True, check=False, env=os.environ | env, timeout=120
    )


@pytest.fixture(scope="module")
def no_jax(tmp_path_factory):
    """A folder whose `jax` raises when it is imported, first on the path."""
    folder = tmp_path_factory.mktemp("nojax")
    (folder / "jax.py").write_text("raise RuntimeError('jax was imported')")
    return str(folder)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([CONFIG, "--config.sizee=3"], ["sizee: no such key; did you mean 'size'?"]),
        ([CONFIG, "--config.optim.lr=fast"], ["optim.lr: 'fast'; expected a finite number"]),
        ([CONFIG, "--config.optim.lr"], ["no value; write --config.optim.lr=VALUE"]),
        ([CONFIG, "--confg=3", "--config.seed=-1"], ["--confg=3: no such flag", "seed: -1"]),
        ([CONFIG, "--config.model.width=32"], ["model.width: 32 is given, but `size`"]),
        ([CONFIG, "--config.seed=4294967296"], ["seed: 4294967296", "from 0 to below 2^32"]),
        ([CONFIG, "--coordinator_address="], ["--coordinator_address: is empty"]),
        (["--config=missing.py"], ["missing.py: no such file"]),
        (["--config=missing.json"], ["missing.json: No such file"]),
        (["--config=README.md"], ["expected a .py file"]),
        (["--config=research/errors.py"], ["no function get_config()"]),
    ],
)
def test_bad_input_is_reported_without_jax_and_without_a_traceback(args, words, no_jax, tmp_path):
    done = call(*TRAIN, *args, f"--workdir={tmp_path / 'w'}", PYTHONPATH=no_jax)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert "jax was imported" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_the_guard_of_the_test_above_works(no_jax, corpus, tmp_path):
    done = call(
        *TRAIN, CONFIG, f"--config.data.path={corpus}", f"--workdir={tmp_path}", PYTHONPATH=no_jax
    )
    assert "jax was imported" in done.stderr


def test_of_a_thousand_errors_only_some_are_printed(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({f"key{i}": i for i in range(5000)}))
    done = call(*TRAIN, f"--config={config}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == refusals.MAX_MESSAGES + 1
    assert re.fullmatch(r"error: and [45],\d{3} more", lines[-1])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (np.ones(2), "point 0: .*1.0.* is not a dict"),
        (5, r"sweep\(\) gives 5; expected a list"),
        ([{1: 2}], "point 0: 1 is not a config key"),
        ([{None: 2}], "point 0: None is not a config key"),
        ([7], "point 0: 7 is not a dict"),
    ],
)
def test_a_sweep_that_yields_no_points_is_reported(made, words, tiny):
    module = types.SimpleNamespace(sweep=lambda config: made)
    with pytest.raises(BadInput, match=words):
        sweep_points(tiny(), module, "sweep")


def test_a_missing_flag_is_exit_2():
    assert call(*TRAIN).returncode == 2
    assert call(*TRAIN, CONFIG).returncode == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["experiments.fit", "--rnus=x"], "--rnus=x: no such flag; did you mean --runs?"),
        (["experiments.fit", "--runs=x", "--out=y", "--wher=a"], "did you mean --where?"),
        (["experiments.train", "--size=3"], "see --help; --config.KEY=VALUE is a key of the"),
        (["experiments.train", "--confg=a", "--workdir=b"], "did you mean --config?"),
    ],
)
def test_a_misspelled_flag_is_named_also_where_the_right_one_is_missing(args, words, capsys):
    with pytest.raises(BadInput) as refused:
        importlib.import_module(args[0]).main(args[1:])
    assert words in str(refused.value)
    assert "usage" not in capsys.readouterr().err


@pytest.mark.parametrize("rest", [[], ["--out"], ["--out=y", "--a b"]])
def test_what_is_no_misspelled_flag_is_left_to_argparse(rest):
    with pytest.raises(SystemExit):
        importlib.import_module("experiments.plot").main(["--runs=x", *rest])


def test_data_that_only_the_disk_knows_is_rejected_before_anything_is_written(tmp_path):
    for path, words in ((tmp_path / "no.txt", "No such file"), (tmp_path, "Is a directory")):
        done = call(*TRAIN, CONFIG, f"--config.data.path={path}", f"--workdir={tmp_path / 'w'}")
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_json_config_is_parsed_and_never_executed(tmp_path, no_jax):
    path = tmp_path / "c.json"
    path.write_text("__import__('pathlib').Path('canary').touch()")
    done = call(*TRAIN, f"--config={path}", f"--workdir={tmp_path}", PYTHONPATH=no_jax)
    assert done.returncode == 2
    assert "not a JSON document" in done.stderr
    path.write_text('{"seed": 1, "seed": 2}')
    done = call(*TRAIN, f"--config={path}", f"--workdir={tmp_path}", PYTHONPATH=no_jax)
    assert "key given twice: 'seed'" in done.stderr
    path.write_text("[" * 100_000)
    assert call(*TRAIN, f"--config={path}", f"--workdir={tmp_path}").returncode == 2


def test_what_a_python_config_raises_is_reported_with_its_line(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("def get_config():\n    return {}[3]\n")
    with pytest.raises(BadInput, match=r"c.py:2: KeyError: 3"):
        load_config(str(path))
    path.write_text(
        "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict().lr\n"
    )
    with pytest.raises(BadInput, match=r"c.py:5: AttributeError: '?lr"):
        load_config(str(path))
    path.write_text("def get_config():\n    pass\n")
    with pytest.raises(BadInput, match="must return a ConfigDict"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("3e5", "size", 300000.0),
        ("none", "size", None),
        ("1e2", "batch.size", 100),
        ("7", "seed", 7),
        ("true", "model.tie_embeddings", True),
        ("a=b", "data.path", "a=b"),
    ],
)
def test_values_are_read_by_the_type_of_their_field(text, field, value):
    args = ["--workdir=x", CONFIG, f"--config.{field}={text}"]
    parser = cli.config_parser("")
    parser.add_argument("--workdir")
    config = cli.parse_config(parser, args)[1]
    for key in field.split("."):
        config = config[key]
    assert config == value
    assert type(config) is type(value)


class Module:
    def __init__(self, *points):
        self.sweep = lambda config: list(points)


def test_every_bad_point_of_a_sweep_is_reported():
    config = load_config("configs/lm_transformer.py")[0]
    good = sweep_points(config, Module({"size": 1e5}, {"size": 2e5, "seed": 1}), "sweep")
    assert [c["size"] for _, c in good] == [1e5, 2e5]
    with pytest.raises(BadInput) as error:
        sweep_points(config, Module({"sise": 1}, {"size": -1.0}, 3, {"size": 1e5}), "sweep")
    assert len(error.value.problems) == 3
    with pytest.raises(BadInput, match="yields no points"):
        sweep_points(config, Module(), "sweep")
    with pytest.raises(BadInput, match=r"no function lr\(\)"):
        sweep_points(config, Module(), "lr")


@pytest.mark.slow
def test_a_run_repeats_from_its_own_config(tiny, tmp_path):
    path = tmp_path / "first.json"
    path.write_text(json.dumps(tiny()))
    first = call(*TRAIN, f"--config={path}", f"--workdir={tmp_path / 'a'}")
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "a" / "runs").iterdir()
    again = call(*TRAIN, f"--config={run / 'config.json'}", f"--workdir={tmp_path / 'b'}")
    assert again.returncode == 0, again.stderr
    (other,) = (tmp_path / "b" / "runs").iterdir()
    assert other.name == run.name
    losses = [json.loads((p / "result.json").read_text())["loss"] for p in (run, other)]
    assert losses[0] == losses[1]
    third = call(*TRAIN, f"--config={path}", f"--workdir={tmp_path / 'a'}")
    assert "is done already" in third.stdout


@pytest.mark.parametrize("entry", ["train", pytest.param("sweep", marks=pytest.mark.slow)])
def test_a_mesh_that_does_not_fit_is_rejected_and_nothing_is_written(entry, corpus, tmp_path):
    config = {"train": CONFIG, "sweep": "--config=configs/sweeps/lm_params.py"}[entry]
    done = call(
        *(sys.executable, "-m", f"experiments.{entry}", config, f"--workdir={tmp_path / 'w'}"),
        *(f"--config.data.path={corpus}", "--config.eval.examples=8"),
        *("--config.mesh.data=1", "--config.mesh.tensor=3"),
    )
    assert done.returncode == 2, done.stderr
    assert "mesh.tensor: 3 does not divide a dimension of" in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_folder_that_cannot_be_made_is_an_error_of_storage(corpus):
    done = call(
        *(*TRAIN, CONFIG, f"--workdir={corpus}", f"--config.data.path={corpus}"),
        *("--config.eval.examples=8", "--config.horizon.amount=1e4"),
    )
    assert done.returncode == 74
    assert "cannot be made: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_that_does_not_parse_is_reported_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\ndef (\n")
    done = call(*TRAIN, f"--config={tmp_path / 'broken.py'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert "broken.py:2: invalid syntax" in done.stderr


@pytest.mark.parametrize("place", ["gs://bucket/work", "s3://b", "az+x://b/c"])
@pytest.mark.parametrize("name", ["workdir", "runs", "out"])
def test_object_storage_is_rejected_in_words(place, name):
    parser = cli.parser("")
    parser.add_argument(f"--{name}")
    with pytest.raises(BadInput, match=f"--{name}=.*: object storage cannot rename"):
        parser.parse_args([f"--{name}={place}"])
    for there in ("mlflow:sqlite:///m.db", "wandb:folder", "/a/b", "a//b"):
        assert getattr(parser.parse_args([f"--{name}={there}"]), name) == there
