"""Several runs vmapped in one program: each has what it has alone, whatever the others do."""

import json
import random
import subprocess
import sys
from contextlib import ExitStack

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from research.config import grid, validation
from research.config.loading import load_config, validated
from research.errors import Damaged, Diverged, Preempted
from research.inference.load import open_run
from research.parallel import device_mesh
from research.runs import checkpoint, metrics_log, stored_state
from research.runs.directory import RunDirectory
from research.runs.manifest_check import read_manifest
from research.training import vmapped_runs
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer
from research.training.vmapped_runs import ALONE, VmappedTrainer, runs_mesh, train_vmapped
from tests.faulting import SMALL_MACHINE, kill_until_done
from tests.training.test_train import REAL

LONG = {"horizon.amount": 40.0, "log.every": 1, "eval.every": 16, "save.every": 16}
WAYS = (
    {"seed": 0, "optim.lr": 0.1},
    {"seed": 1, "optim.lr": 0.4, "optim.optimizer.weight_decay": 0.1},
    {"seed": 2, "optim.clip": 0.1, "optim.warmup.amount": 0.3},
)


def fit(runs, workdir, ids=None, **more):
    with ExitStack() as held:
        members = [(r, held.enter_context(RunDirectory(workdir, r.id))) for r in runs]
        return train_vmapped(members, ids or [r.id for r in runs], **more)


def alone(run, workdir):
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory), directory.path


def on(devices):
    """A mesh for runs, so that several of them share a device."""
    return Mesh(np.array(jax.devices()[:devices]), ("runs",))


def path_of(run, workdir):
    return RunDirectory(workdir, run.id).path


def final_state(run, workdir):
    one = device_mesh.make_mesh(ALONE, run.batch)
    step, state = checkpoint.restore_latest(path_of(run, workdir), Trainer(run, one).abstract)
    assert step == run.steps
    return jax.device_get(state)


def curve(run, workdir, name="train_loss"):
    read = metrics_log.read_records(path_of(run, workdir))
    return [(r["step"], r[name]) for r in read if name in r]


def without_clock(run, workdir):
    read = metrics_log.read_records(path_of(run, workdir))
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read]


def made(tiny, *changes, **more):
    return [make_run(tiny({**LONG, "mesh.data": 1, **more, **c})) for c in changes]


@pytest.fixture(scope="module")
def vmapped(tiny, tmp_path_factory):
    """Three runs of one order of the data, trained vmapped, and their workdir."""
    runs, workdir = made(tiny, *WAYS), tmp_path_factory.mktemp("vmapped")
    return runs, fit(runs, workdir), workdir


def assert_as_alone(runs, workdir, other, rel=1e-5):
    for run in runs:
        result, path = alone(run, other)
        for name in ("train_loss", "loss", "grad_norm", "lr"):
            together, single = curve(run, workdir, name), curve(run, other, name)
            assert [s for s, _ in together] == [s for s, _ in single]
            wide = 1e-3 if name == "grad_norm" else rel
            np.testing.assert_allclose(*([v for _, v in c] for c in (together, single)), rtol=wide)
        kept = json.loads((path_of(run, workdir) / "result.json").read_text())
        assert kept.keys() == result.keys() | {"members"}
        assert kept["loss"] == pytest.approx(result["loss"], rel=rel)
        assert kept["flops_spent"] == result["flops_spent"]
        assert (path / "config.json").read_text() == (
            path_of(run, workdir) / "config.json"
        ).read_text()


def test_every_member_has_the_losses_that_it_has_alone(vmapped, tmp_path):
    runs, results, workdir = vmapped
    assert [len(curve(run, workdir)) for run in runs] == [40] * 3
    assert_as_alone(runs, workdir, tmp_path)
    # They differ among each other by far more.
    losses = [results[run.id]["loss"] for run in runs]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_members_with_orders_of_their_own_have_their_own_batches(
    devices, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(vmapped_runs, "runs_mesh", lambda *_: on(devices))
    runs = made(tiny, {"seed": 0, "data.seed": 0}, {"seed": 0, "data.seed": 1})
    fit(runs, tmp_path / "vmapped")
    assert_as_alone(runs, tmp_path / "vmapped", tmp_path / "alone")
    first, second = (curve(run, tmp_path / "vmapped") for run in runs)
    assert first[0][1] != pytest.approx(second[0][1], rel=1e-4)


MUON = {
    "name": "muon",
    "momentum": 0.95,
    "weight_decay": 0.01,
    "adam_scale": 0.3,
    "b1": 0.9,
    "b2": 0.98,
    "eps": 1e-8,
}
FACTOR = {
    "name": "adafactor",
    "decay_rate": 0.8,
    "clip_threshold": 1.0,
    "scale_by_params": True,
    "momentum": None,
    "weight_decay": 0.01,
}
SHORT = {"size": 2e4, "data.context": 16}


@pytest.mark.slow
def test_members_of_one_device_have_the_losses_that_they_have_alone(vmapped, tmp_path, monkeypatch):
    runs, _, _ = vmapped
    monkeypatch.setattr(vmapped_runs, "runs_mesh", lambda *_: on(1))
    fit(runs, tmp_path / "vmapped")
    assert_as_alone(runs, tmp_path / "vmapped", tmp_path / "alone")


@pytest.mark.slow
def test_wide_members_have_the_losses_that_they_have_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(vmapped_runs, "runs_mesh", lambda *_: on(1))
    runs = made(tiny, *WAYS, **REAL)
    fit(runs, tmp_path / "vmapped")
    assert_as_alone(runs, tmp_path / "vmapped", tmp_path / "alone")
    # As near as that and no nearer: vmapped matmuls round differently, so launch.json stores which
    # runs were vmapped together.
    curves = [[curve(r, tmp_path / n) for r in runs] for n in ("vmapped", "alone")]
    assert curves[0] != curves[1]


MOVED = {"rule": "complete_p", "width": 8, "depth": 1, "head_size": 4}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("linear", {}),
        ("mlp_teacher", {"size": 2e3, "batch.size": 32}),
        (
            "mlp_teacher",
            {"batch.size": 32, "optim.transfer.rule": "mup", "optim.transfer.width": 8},
        ),
        slow("cnn_digits", {"model.width": 4, "batch.size": 8}),
        slow("resnet_digits", {"model.width": 4, "batch.size": 8}),
        slow("lm_gru", SHORT),
        slow("lm_transformer", {**SHORT, "optim.ema": 0.9}),
        slow("lm_transformer", {**SHORT, **grid.section("optim.transfer", MOVED)}),
        slow("lm_transformer", {**SHORT, **grid.section("optim.optimizer", MUON)}),
        slow("lm_transformer", {**SHORT, **grid.section("optim.optimizer", FACTOR)}),
    ],
)
def test_every_family_and_optimizer_can_be_a_member(name, changes, corpus):
    def run(**more):
        config, _ = load_config(f"configs/{name}.py")
        text = {"data.path": str(corpus)} if name.startswith("lm") else {}
        config, problems = validation.override(config, {**text, "mesh.data": 1, **changes, **more})
        assert not problems, problems
        return make_run(validated(config))

    def losses(made):
        state, out = made.init(), []
        for step in (0, 5):
            state, metrics = made.steps(state, made.batches(step, 5, 5), 5)
            out.append(np.asarray(metrics["train_loss"]))
        return np.concatenate(out)

    first = run()
    runs = [first, run(seed=1, **{"optim.lr": first.config["optim"]["lr"] * 2})]
    together = losses(VmappedTrainer(runs, on(1)))
    one = device_mesh.make_mesh(ALONE, first.batch)
    for slot, member in enumerate(runs):
        np.testing.assert_allclose(together[:, slot], losses(Trainer(member, one)), rtol=1e-5)
    assert abs(together[-1, 0] / together[-1, 1] - 1) > 1e-3


def test_a_member_with_a_closed_form_says_how_far_it_is(tmp_path):
    config, _ = load_config("configs/linear.py")
    runs = []
    for seed in (0, 1):
        changed, _ = validation.override(config, {"seed": seed, "horizon.amount": 30.0})
        runs.append(make_run(validated(changed)))
    result = fit(runs, tmp_path / "vmapped")[runs[1].id]
    single = alone(runs[1], tmp_path / "alone")[0]
    assert result["closed_form_loss"] == pytest.approx(single["closed_form_loss"], rel=1e-6)
    assert result["closed_form_distance"] == pytest.approx(single["closed_form_distance"], rel=1e-4)


def test_a_member_is_stored_as_a_run_alone(vmapped, tiny, tmp_path):
    runs, _, workdir = vmapped
    run = runs[1]
    _, single = alone(run, tmp_path)
    together = path_of(run, workdir)

    def described(path):
        kept = read_manifest(stored_state.latest_intact(path)[1])
        return kept["step"], kept["leaves"], set(kept["files"])

    (*here, names), (*there, others) = described(together), described(single)
    assert here == there
    assert {n.rpartition("/")[0] for n in names} == {n.rpartition("/")[0] for n in others}
    assert sorted(p.name for p in together.iterdir()) == sorted(p.name for p in single.iterdir())
    assert checkpoint.saved_steps(together) == checkpoint.saved_steps(single) == [40, 32]
    opened = open_run(together)
    assert opened.model == run.model
    tuned = make_run(tiny({"init.run": str(together), "horizon.amount": 3.0}))
    assert alone(tuned, tmp_path)[0]["status"] == "done"


def test_seconds_are_the_members_shares_and_the_result_says_whose(vmapped):
    runs, results, workdir = vmapped
    for run in runs:
        result = results[run.id]
        assert result["members"] == [r.id for r in runs]
        assert result["devices"] == 3
        assert result["device_seconds"] == pytest.approx(3 * result["seconds"], abs=0.01)
        launch = json.loads((path_of(run, workdir) / "launch.json").read_text())
        assert launch["members"] == result["members"]
        assert launch["mesh"] == ALONE
        assert result["group"] == "transformer"  # of runs that share a law, which is another thing
    spread = [results[run.id]["seconds"] for run in runs]
    assert max(spread) < 1.5 * min(spread)


@pytest.mark.parametrize(
    ("count", "devices", "each"), [(1, 1, 1), (3, 3, 1), (8, 8, 1), (12, 6, 2), (17, 6, 3)]
)
def test_runs_are_spread_over_as_few_devices_as_serve_them_at_once(count, devices, each):
    mesh = runs_mesh(count)
    assert mesh.shape == {"runs": devices}
    assert -(-count // devices) == each == -(-count // 8)


@pytest.mark.slow
def test_more_members_than_devices_are_filled_up(tiny, tmp_path):
    runs = made(tiny, *({"seed": k} for k in range(9)), **{"horizon.amount": 4.0})
    results = fit(runs, tmp_path / "vmapped")  # 9 on 5 devices: a slot is left over
    assert len(results) == 9
    assert results[runs[8].id]["devices"] == 5
    assert results[runs[8].id]["loss"] == pytest.approx(
        alone(runs[8], tmp_path / "alone")[0]["loss"], rel=1e-5
    )


@pytest.mark.fault(
    "R11",
    "one of several vmapped runs diverges",
    "the others bit for bit as without it; its row says diverged",
    "one member at a rate of 1e30",
)
def test_a_diverging_member_changes_no_bit_of_the_others(vmapped, tiny, tmp_path):
    calm, _, workdir = vmapped
    lost = made(tiny, WAYS[1] | {"optim.lr": 1e30})[0]
    results = fit([calm[0], lost, calm[2]], tmp_path / "wild")
    for run in (calm[0], calm[2]):
        jax.tree.map(
            np.testing.assert_array_equal,
            *(final_state(run, place) for place in (workdir, tmp_path / "wild")),
        )
        assert without_clock(run, workdir) == without_clock(run, tmp_path / "wild")
    assert results[lost.id]["status"] == "diverged"
    assert "at step" in results[lost.id]["reason"]
    assert results[lost.id]["flops_spent"] < results[lost.id]["flops"]
    assert not checkpoint.saved_steps(path_of(lost, tmp_path / "wild"))
    # It ended where it would have ended alone.
    with pytest.raises(Diverged):
        alone(lost, tmp_path)
    assert [s for s, _ in curve(lost, tmp_path / "wild")] == [s for s, _ in curve(lost, tmp_path)]


@pytest.mark.slow
@pytest.mark.fault(
    "R11",
    "a member diverges beside others on one device",
    "it is frozen as it was, the others continue",
    "one member at a rate of 1e30",
)
def test_a_member_that_diverges_beside_others_on_one_device_is_frozen(tiny):
    def states(*ways):
        runs = made(tiny, *ways)
        vmapped = VmappedTrainer(runs, on(2))
        members = vmapped.init()
        for step in (0, 10):
            members, _ = vmapped.steps(members, vmapped.batches(step, 10, 10), 10)
        return jax.device_get(members)

    seeds = [{"seed": k} for k in range(4)]
    calm, wild = states(*seeds), states({"seed": 9, "optim.lr": 1e30}, *seeds[1:])
    assert wild.alive.tolist() == [False, True, True, True]
    assert wild.state.step[1:].tolist() == [20, 20, 20]
    assert wild.state.step[0] < 5
    for a, b in zip(*map(jax.tree.leaves, (calm.state, wild.state)), strict=True):
        np.testing.assert_array_equal(a[1:], b[1:])
        assert (a[0] != b[0]).any()
        assert np.isfinite(b).all()


@pytest.mark.fault(
    "R11",
    "all vmapped runs diverge",
    "all are recorded so, and the sweep continues",
    "all members at a rate of 1e30",
)
def test_vmapped_runs_that_all_diverge_end(tiny, tmp_path):
    runs = made(tiny, *({"seed": k, "optim.lr": 1e30} for k in range(3)))
    assert {r["status"] for r in fit(runs, tmp_path).values()} == {"diverged"}


def test_stopped_vmapped_runs_resume_bit_for_bit(vmapped, tmp_path):
    runs, _, workdir = vmapped
    with pytest.raises(Preempted, match="saved at step 10 of 40"):
        fit(runs, tmp_path, stop=lambda: True)
    fit(runs, tmp_path)
    for run in runs:
        assert without_clock(run, tmp_path) == without_clock(run, workdir)
        jax.tree.map(
            np.testing.assert_array_equal, final_state(run, tmp_path), final_state(run, workdir)
        )


def test_one_of_several_stopped_vmapped_runs_resumes_alone(vmapped, tmp_path):
    runs, results, _ = vmapped
    with pytest.raises(Preempted):
        fit(runs, tmp_path, stop=lambda: True)
    result, path = alone(runs[2], tmp_path)
    assert result["loss"] == pytest.approx(results[runs[2].id]["loss"], rel=1e-5)
    assert [s for s, _ in curve(runs[2], tmp_path)] == list(range(40))
    assert (path / "metrics.jsonl").read_text().count('{"resume": 10,') == 1


def test_members_that_are_done_leave_slots_that_are_filled(vmapped, tmp_path):
    """What a member computes depends on how many there are, not on who they are."""
    runs, _, workdir = vmapped
    ids = [run.id for run in runs]
    fit(runs[1:], tmp_path, ids)
    for run in runs[1:]:
        assert without_clock(run, tmp_path) == without_clock(run, workdir)


def test_vmapped_runs_resume_from_the_latest_common_checkpoint(vmapped, tmp_path, caplog):
    runs, _, workdir = vmapped
    count = iter(range(100))
    with pytest.raises(Preempted, match="step 26"):
        fit(runs, tmp_path, stop=lambda: next(count) == 2)
    paths = [path_of(run, tmp_path) for run in runs]
    assert [checkpoint.saved_steps(path) for path in paths] == [[26, 16]] * 3
    newest = paths[1] / "checkpoints" / "26"
    victim = max(newest.rglob("d/*"), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with caplog.at_level("INFO"):
        fit(runs, tmp_path)
    assert "3 vmapped runs resume from step 16" in caplog.text
    for run in runs:
        assert without_clock(run, tmp_path) == without_clock(run, workdir)


@pytest.mark.slow
def test_vmapped_runs_of_which_one_lost_all_checkpoints_say_so(vmapped, tmp_path):
    runs, _, _ = vmapped
    with pytest.raises(Preempted):
        fit(runs, tmp_path, stop=lambda: True)
    newest = path_of(runs[2], tmp_path) / "checkpoints" / "10"
    (newest / "manifest.json").write_text("{}")
    with pytest.raises(Damaged, match="none of them is intact"):
        fit(runs, tmp_path)


def test_vmapped_runs_that_never_took_a_step_may_be_regrouped(vmapped, tmp_path, monkeypatch):
    runs, _, _ = vmapped
    monkeypatch.setattr(VmappedTrainer, "steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(runs, tmp_path)
    assert not list(tmp_path.glob("runs/*/launch.json"))


DRIVER = """
import json, sys
from contextlib import ExitStack
from research.runs.directory import RunDirectory
from research.training.vmapped_runs import train_vmapped
from research.training.make_run import make_run

configs, workdir = json.load(open(sys.argv[1])), sys.argv[2]
runs = [make_run(config) for config in configs]
with ExitStack() as held:
    members = [(r, held.enter_context(RunDirectory(workdir, r.id))) for r in runs]
    train_vmapped(members, [r.id for r in runs])
"""


@pytest.mark.slow
def test_killed_vmapped_runs_end_bitwise_as_undisturbed_ones(tiny, tmp_path):
    kills, steps = 12, 520
    changes = {"horizon.amount": steps, "log.every": 1, "eval.every": 90, "save.every": 10}
    configs = [tiny({**changes, "save.keep": 1, "mesh.data": 1, "seed": k}) for k in range(3)]
    runs = [make_run(config) for config in configs]
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    argv = [sys.executable, "-c", DRIVER, str(tmp_path / "configs.json"), str(tmp_path / "killed")]
    whole = [*argv[:-1], str(tmp_path / "whole")]
    subprocess.run(whole, env=SMALL_MACHINE, check=True)
    metrics = path_of(runs[-1], tmp_path / "killed") / "metrics.jsonl"
    kill_until_done(argv, metrics, kills, random.Random(kills))
    assert metrics.read_text().count('"resume"') > 1, "nothing was interrupted"
    for run in runs:
        jax.tree.map(
            np.testing.assert_array_equal,
            *(final_state(run, tmp_path / name) for name in ("whole", "killed")),
        )
        assert without_clock(run, tmp_path / "whole") == without_clock(run, tmp_path / "killed")
        assert [s for s, _ in curve(run, tmp_path / "killed")] == list(range(steps))
