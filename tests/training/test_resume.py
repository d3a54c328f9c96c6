"""Real kills of a real process: it continues as if nothing had happened, bit for bit."""

import json
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from research.parallel import device_mesh
from research.runs import checkpoint, metrics_log
from research.runs.directory import RunDirectory
from research.training.make_run import make_run
from research.training.trainer import Trainer
from tests.faulting import SMALL_MACHINE, kill_until_done

CHANGES = {"horizon.amount": 400.0, "save.every": 20, "log.every": 1, "eval.every": 90}


def command(config_file, workdir):
    return [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={config_file}",
        f"--workdir={workdir}",
    ]


def final_state(config, workdir):
    run = make_run(config)
    path = RunDirectory(workdir, run.id).path
    mesh = device_mesh.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, run.batch)
    step, state = checkpoint.restore_latest(path, Trainer(run, mesh).abstract)
    assert step == run.steps
    return jax.device_get(state), metrics_log.read_records(path)


def without_clock(metrics):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in metrics]


@pytest.mark.slow  # test_fault_kills.py does as much to a run in the default tests
def test_a_killed_run_ends_bitwise_as_an_undisturbed_one(tiny, tmp_path):
    config = tiny(CHANGES)
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(config))
    subprocess.run(
        command(config_file, tmp_path / "whole"),
        env=SMALL_MACHINE,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    path = RunDirectory(tmp_path / "killed", make_run(config).id).path
    kill_until_done(
        command(config_file, tmp_path / "killed"),
        path / "metrics.jsonl",
        3,
        random.Random(3),
    )
    (whole, expected), (killed, metrics) = (
        final_state(config, tmp_path / name) for name in ("whole", "killed")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, killed)
    steps = [r["step"] for r in metrics if "train_loss" in r]
    assert steps == list(range(400))
    assert without_clock(metrics) == without_clock(expected)
    raw = (path / "metrics.jsonl").read_text()
    assert raw.count('"resume"') > 1, "no launch was interrupted: the test tested nothing"
