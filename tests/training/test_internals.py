"""`log.internals`: records have the RMS of parameters, gradients and updates by module, and what a
task or a family adds; whoever does not ask for them trains the same program as ever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import Preempted
from research.params import leaves_by_path
from research.runs.directory import RunDirectory
from research.runs.metrics_log import read_records
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.tasks import task_class
from research.training.trainer import Trainer, run_mesh, step_spec
from research.training.vmapped_runs import train_vmapped

pytestmark = pytest.mark.usefixtures("barely_optimized")

ONE = {"mesh.data": 1}
SPLIT = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
ON = {"log.internals": True, "log.every": 3, "horizon.amount": 8.0}
PLAIN = {"optim.ema": None, "optim.clip": 0.05}  # which clips
MODULES = ("embed", "blocks", "final_norm", "head")
NAMES = {f"{kind}/{of}" for kind in ("param_rms", "grad_rms", "update_rms") for of in MODULES}


def dispatched(config, n):
    """The trainer, its state before and after `n` steps, and their metrics."""
    run = make_run(config)
    made = Trainer(run, run_mesh(run))
    state = made.init()
    before = jax.device_get(state)
    state, metrics = made.steps(state, made.batches(0, n, 10), n)
    return made, before, jax.device_get(state), jax.device_get(metrics)


def train(config, workdir, stop=lambda: False):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        train_run(run, directory, stop=stop)
    return read_records(directory.path)


def by_module(tree, module):
    """All numbers of a module."""
    leaves = [x for path, x in leaves_by_path(tree).items() if path.split("/")[0] == module]
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def rms(x):
    return float(np.sqrt(np.mean(x**2)))


def test_the_numbers_are_those_of_the_tree(tiny):
    config = tiny(ON | PLAIN | ONE)
    made, before, after, metrics = dispatched(config, 1)
    assert metrics.keys() >= NAMES
    batch = jax.tree.map(lambda x: x[0], made.batches(0, 1, 10))
    _, gradient = jax.jit(made.spec.gradient)(before.params, batch)
    squares = 0.0
    for module in MODULES:
        old, new = by_module(before.params, module), by_module(after.params, module)
        slope = by_module(gradient, module)
        seen = {kind: metrics[f"{kind}/{module}"][0] for kind in ("param_rms", "grad_rms")}
        assert seen == pytest.approx({"param_rms": rms(old), "grad_rms": rms(slope)}, rel=1e-5)
        # The difference of two float32 is less exact than what was subtracted.
        assert metrics[f"update_rms/{module}"][0] == pytest.approx(rms(old - new), rel=1e-3)
        assert rms(new) != pytest.approx(rms(old), rel=1e-5)  # so it is of the state before
        squares += len(slope) * seen["grad_rms"] ** 2
    norm = metrics["grad_norm"][0]
    assert squares == pytest.approx(norm**2, rel=1e-5)
    assert norm > 0.1  # so it is not of the clipped gradient, whose norm is 0.05
    each = [rms(np.asarray(x)) for x in leaves_by_path(before.params["blocks"]).values()]
    assert np.mean(each) != pytest.approx(rms(by_module(before.params, "blocks")), rel=1e-2)


def test_they_are_logged_at_the_steps_that_are_logged(tiny, tmp_path):
    *_, metrics = dispatched(tiny(ON | ONE), 7)
    for name in NAMES:
        assert [bool(x) for x in metrics[name]] == [*[True, False, False] * 2, True, *[False] * 3]
    records = [r for r in train(tiny(ON | ONE), tmp_path) if "train_loss" in r]
    assert [r["step"] for r in records] == [0, 3, 6]
    for record in records:
        assert {key for key in record if "/" in key} == NAMES
        assert record["grad_rms/blocks"] == metrics["grad_rms/blocks"][record["step"]]
    assert records[0]["update_rms/embed"] != records[1]["update_rms/embed"]


def test_whoever_does_not_ask_for_them_has_the_program_of_ever(tiny):
    off = {"log.internals": False}
    plain, off, on = (make_run(tiny(ONE | {"log.every": 3, **more})) for more in ({}, off, ON))
    specs = [step_spec(run) for run in (plain, off, on)]
    assert specs[0].internals is None
    assert specs[0] == specs[1] != specs[2]
    assert plain.id == off.id


def test_a_run_that_resumes_logs_what_it_would_have(tiny, tmp_path):
    config = tiny(ON | ONE | {"loop.steps_per_dispatch": 2})
    asked = iter([False, True])
    with pytest.raises(Preempted):
        train(config, tmp_path / "stopped", stop=lambda: next(asked, False))
    begun, whole = train(config, tmp_path / "stopped"), train(config, tmp_path / "whole")
    assert (tmp_path / "stopped").exists()
    strip = [[{k: v for k, v in r.items() if k != "seconds"} for r in x] for x in (begun, whole)]
    assert strip[0] == strip[1]
    raw = next((tmp_path / "stopped").glob("runs/*/metrics.jsonl")).read_text()
    assert raw.count('"resume"') == 2, "it was not interrupted"


def test_on_a_mesh_they_are_the_same(tiny):
    alone, split = (dispatched(tiny(ON | more), 7)[-1] for more in (ONE, SPLIT))
    for name in NAMES:
        np.testing.assert_allclose(split[name], alone[name], rtol=2e-4, err_msg=name)
    assert not np.allclose(split["grad_rms/blocks"][0], alone["grad_rms/blocks"][3], rtol=1e-3)


def test_vmapped_runs_log_each_its_own(tiny, tmp_path):
    configs = [tiny(ON | ONE | {"seed": seed}) for seed in (0, 1)]
    runs = list(map(make_run, configs))
    places = [RunDirectory(tmp_path / "vmapped", run.id) for run in runs]
    with places[0], places[1]:
        train_vmapped(list(zip(runs, places, strict=True)), [run.id for run in runs])
    seen = []
    for place, config in zip(places, configs, strict=True):
        expected = [r for r in train(config, tmp_path / "alone") if "train_loss" in r]
        found = [r for r in read_records(place.path) if "train_loss" in r]
        for record, other in zip(found, expected, strict=True):
            numbers = {name: record[name] for name in NAMES}
            assert numbers == pytest.approx({name: other[name] for name in NAMES}, rel=2e-4)
        seen.append(found[-1]["grad_rms/blocks"])
    assert seen[0] != pytest.approx(seen[1], rel=2e-4)


def test_what_is_frozen_or_skipped_is_not_updated(tiny):
    paths = {"optim.paths": [["embed/.*", "frozen"]], "optim.skip": 5.0}
    *_, metrics = dispatched(tiny(ON | ONE | paths), 1)
    assert metrics["update_rms/embed"][0] == metrics["grad_rms/embed"][0] == 0
    assert metrics["param_rms/embed"][0] > 0 < metrics["update_rms/blocks"][0]


def logits_rms(model, update):
    out = model.apply(update.params, update.batch["inputs"])
    return {"hidden_rms/last": jnp.sqrt(jnp.mean(jnp.square(out)))}


def test_a_task_or_a_family_adds_its_own(tiny, monkeypatch):
    config = tiny(ON | ONE)
    task, family = task_class(config["task"]["name"]), make_run(config).model.family
    monkeypatch.setattr(task, "INTERNALS", (logits_rms,), raising=False)
    counted = lambda model, update: {"counted/rows": jnp.float32(len(update.batch["inputs"]))}  # noqa: E731
    monkeypatch.setattr(family, "INTERNALS", (counted,), raising=False)
    made, before, _, metrics = dispatched(config, 1)
    assert metrics.keys() >= NAMES | {"hidden_rms/last", "counted/rows"}
    assert metrics["counted/rows"][0] == made.run.batch
    batch = jax.tree.map(lambda x: x[0], made.batches(0, 1, 10))
    assert metrics["hidden_rms/last"][0] == pytest.approx(
        rms(np.asarray(made.run.model.apply(before.params, batch["inputs"]))), rel=1e-4
    )
    for wrong in ({"loss": jnp.float32(0)}, {"grad_rms/embed": jnp.float32(0)}):
        monkeypatch.setattr(task, "INTERNALS", (lambda model, update, out=wrong: out,))
        with pytest.raises(ValueError, match="expected names like grad_rms/embed, once"):
            dispatched(config, 1)
