"""What is wrong with a config is told with the line of the file that says it."""

import importlib
import re

import pytest

from configs import lm_transformer
from experiments import train
from research.config import cli, loading, places, sweeps, validation
from research.errors import BadInput

CONFIG = """
from configs import lm_transformer
SLOW = "slow"

def get_config():
    config = lm_transformer.get_config()
    config.optim.lr = "fast"
    config.optim.ema, config.batch.sise = SLOW, 3
    config.optim.optimizer.name = "muon"
    config["eval"]["examples"] = -5
    config.horizon = {
        "unit": "tokens",
        "amount": "many",
    }
    config.size = 1
    config.size = 3e5
    return config

def sweep(config):
    yield {"size": 1e5}
    yield {"size": 2e5, "optim.lr": 1.0}
"""
LINES = {
    "batch.sise": 8,
    "optim.lr": 7,
    "optim.optimizer.momentum": 9,
    "eval.examples": 10,
    "horizon.amount": 13,
}


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)
    return path


def told(path, *flags):
    """key -> line of each problem that `train` reports, None without one."""
    with pytest.raises(BadInput) as error:
        train.main([f"--config={path}", f"--workdir={path.parent / 'w'}", *flags])
    pattern = re.compile(rf"^([\w.]+): .*?(?:\({re.escape(str(path))}:(\d+)\))?$")
    found = [pattern.match(line) for line in error.value.problems]
    return {match[1]: match[2] and int(match[2]) for match in found}


def test_a_problem_names_the_line_that_gives_the_value(mine):
    found = told(mine)
    assert {key: found[key] for key in LINES} == LINES
    assert found["optim.ema"] is None  # a name, whose value is worked out


def test_a_flag_is_no_line_of_the_file(mine):
    found = told(mine, "--config.eval.examples=-7", "--config.horizon.amount=-1")
    assert found["eval.examples"] is None
    assert found["horizon.amount"] is None
    assert found["optim.lr"] == 7


def test_what_all_points_of_a_sweep_share_is_told_with_its_line(mine):
    config, module = loading.load_config(str(mine))
    with pytest.raises(BadInput) as error:
        sweeps.sweep_points(config, module, "sweep")
    lines = {re.search(r": ([\w.]+): ", line)[1]: line for line in error.value.problems}
    assert lines["batch.sise"].endswith(f"({mine}:8)")
    assert "and 1 others: " in lines["batch.sise"]
    assert lines["optim.lr"].startswith("sweep() point 0 {")  # point 1 has another


def test_a_config_from_a_file_of_json_has_no_lines(mine, tmp_path):
    config, _ = loading.load_config(str(mine))
    wrong = validation.problems(config)
    assert places.located(wrong, "c.json", config) == wrong
    assert [line for line in places.located(wrong, str(mine), config) if f"({mine}:7)" in line]


def test_a_number_takes_the_type_of_its_key_not_that_of_the_config_below():
    """A whole number in a shipped config does not forbid a fraction above it."""
    for module in ("lm_transformer", "mlp_diabetes"):
        config = importlib.import_module(f"configs.{module}").get_config()
        config.size, config.optim.lr, config.eval.every = 1e3, 1, 10.0
        found = validation.problems(config.to_dict())
        assert [line.partition(":")[0] for line in found] == ["eval.every"]


def test_a_section_is_overridden_as_a_whole_or_in_part(mine):
    config = lm_transformer.get_config().to_dict()
    muon = {"name": "muon", "momentum": 0.9, "adam_scale": 1.0}
    changed, problems = validation.override(config, {"optim.optimizer": muon, "size": 1e5})
    assert not problems + validation.problems(changed)
    assert changed["optim"]["optimizer"]["momentum"] == 0.9
    assert "b1" in config["optim"]["optimizer"]
    dotted, _ = validation.override(config, {f"optim.optimizer.{k}": v for k, v in muon.items()})
    assert dotted["optim"] == changed["optim"]
    assert validation.override(config, {"optim.optimizer": {"name": "muon", "mass": 1}})[1]

    parser = cli.config_parser("")
    flag = '--config.optim.optimizer={"name": "muon", "momentum": 0.9, "adam_scale": 1.0}'
    _, read, _ = cli.parse_config(parser, ["--config=configs/lm_transformer.py", flag])
    assert read["optim"] == changed["optim"]
    for bad in ('{"name": "muon"', '{"name": 3}'):
        with pytest.raises(BadInput, match=r"optim.optimizer"):
            cli.parse_config(parser, ["--config=configs/lm_transformer.py", flag[:26] + "=" + bad])
