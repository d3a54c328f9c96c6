"""The profiler's trace of some steps, and the guard against transfers that nobody asked for."""

import gzip
import json

import jax
import pytest

from research.runs.directory import RunDirectory
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer

STEPS = {"loop.steps_per_dispatch": 2, "horizon.amount": 12.0}


def profiled(tiny, tmp_path, steps, **changes):
    """The names of the events of a traced run."""
    run = make_run(tiny(STEPS | changes))
    with RunDirectory(tmp_path, run.id) as directory:
        train_run(run, directory, profile_steps=steps)
    traces = list((directory.path / "profile").rglob("*.trace.json.gz"))
    if not traces:
        return []
    (trace,) = traces
    return [e.get("name") for e in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]


def test_the_asked_number_of_steps_is_traced_and_annotated(tiny, tmp_path):
    dispatches = profiled(tiny, tmp_path / "a", 4).count("train")
    assert dispatches == 2  # of two steps each
    assert profiled(tiny, tmp_path / "b", 6, seed=1).count("train") == 3


def test_a_run_that_ends_too_early_says_that_nothing_was_traced(tiny, tmp_path, caplog):
    assert profiled(tiny, tmp_path, 4, **{"horizon.amount": 4.0}) == []
    assert "untraced" in caplog.text


def test_no_profile_is_written_unasked(tiny, tmp_path):
    assert profiled(tiny, tmp_path, 0) == []
    assert not list(tmp_path.rglob("profile"))


def test_a_transfer_that_the_loop_does_not_make_itself_is_an_error(tiny, tmp_path, monkeypatch):
    run, original = make_run(tiny(STEPS)), Trainer.steps

    def steps(self, state, batches, n):
        host = {name: jax.device_get(x) for name, x in batches.items()}  # to be put implicitly
        return original(self, state, host, n)

    monkeypatch.setattr(Trainer, "steps", steps)
    with (
        RunDirectory(tmp_path, run.id) as directory,
        pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"),
    ):
        train_run(run, directory)
