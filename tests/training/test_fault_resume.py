"""Going on elsewhere, with another config, or by another clock: what must be equal is, and what
means something else is refused."""

import ast
import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from research.config import schema, validation
from research.config.loading import validated
from research.errors import BadInput
from research.parallel import device_mesh
from research.runs import checkpoint
from research.runs.schema import EXECUTION_KEYS, NOT_IN_ID, PATH_KEYS
from research.training import execution, resume, run, similar_runs
from research.training.make_run import make_run
from research.training.trainer import Trainer, host_batches
from tests.faulting import bits

ROOT = Path(__file__).parents[2]
WIDE = {"model.width": 64, "model.heads": 4, "model.kv_heads": 4, "horizon.amount": 40.0}
MESHES = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4)]
QUICK = ((1, 8, 1),)


def sizes(shape):
    return dict(zip(("data", "fsdp", "tensor"), shape, strict=True))


def trained(trainer, state, first, last):
    state, metrics = trainer.steps(state, trainer.batches(first, last - first, 20), last - first)
    return state, np.asarray(metrics["train_loss"])[: last - first]


@pytest.fixture(scope="module")
def eight(tiny, tmp_path_factory):
    """A run on eight devices, saved at step 20, and its losses from there."""
    made = make_run(tiny(WIDE))
    trainer = Trainer(made, device_mesh.make_mesh(sizes((8, 1, 1)), made.batch))
    state, _ = trained(trainer, trainer.init(), 0, 20)
    folder = tmp_path_factory.mktemp("eight")
    checkpoint.save(folder, 20, state, 1)
    kept = bits(state)
    return made, folder, kept, trained(trainer, state, 20, 40)[1]


@pytest.mark.fault(
    "R7",
    "resumed on other devices or another mesh",
    "the state bit for bit, the losses of the next steps within 1e-5",
    "from 8 x 1 simulated devices to 1, 2, 4, and meshes of data, fsdp and tensor",
)
@pytest.mark.parametrize(
    "shape", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MESHES], ids=str
)
def test_a_run_resumes_from_its_bits_on_another_mesh(shape, eight, tiny, seen):
    made, folder, kept, expected = eight
    trainer = Trainer(made, device_mesh.make_mesh(sizes(shape), made.batch))
    step, state = checkpoint.restore_latest(folder, trainer.abstract)
    assert (step, bits(state)) == (20, kept)
    _, losses = trained(trainer, state, 20, 40)
    worst = np.abs(losses / expected - 1).max()
    assert worst < 1e-5
    other = make_run(tiny(WIDE | {"data.seed": 1}))  # the twin: another order of the data
    _, twin = trained(
        Trainer(other, trainer.mesh), checkpoint.restore_latest(folder, trainer.abstract)[1], 20, 40
    )
    assert np.abs(twin / expected - 1).max() > 1e-4
    seen(1, f"{shape}: bits equal, losses within {worst:.0e}")


@pytest.mark.fault(
    "R7",
    "resumed on other devices: the order of the data",
    "the same global batches for any number of processes",
    "rows of 2, 3, 4 and 6 shares loaded in one process and joined, of 100 steps",
)
def test_the_order_of_the_data_is_that_of_one_process(tiny, seen):
    made = make_run(tiny({"batch.size": 12}))
    for step in range(0, 100, 10):
        whole = host_batches(made, step, 10, 10)
        for processes in (2, 3, 4, 6):
            parts = [
                host_batches(made, step, 10, 10, rows)
                for rows in np.array_split(np.arange(12), processes)
            ]
            for name, rows in whole.items():
                joined = np.concatenate([part[name] for part in parts], axis=1)
                np.testing.assert_array_equal(joined, rows)
    assert (host_batches(made, 0, 1, 1)["inputs"] != host_batches(made, 1, 1, 1)["inputs"]).any()
    seen(4, "identical")


OTHER = {  # another valid value of each key
    "name": "other",
    "seed": 1,
    "batch.size": 4,
    "data.seed": 1,
    "batch.grad_accumulation": 2,
    "batch.rule": "sqrt_tokens",
    "optim.lr": 0.3,
    "optim.lr_rule": "constant",
    "optim.clip": 2.0,
    "optim.ema": 0.9,
    "optim.skip": 6.0,
    "optim.warmup.unit": "steps",
    "optim.warmup.amount": 0.2,
    "optim.optimizer.name": "adam",
    "optim.optimizer.b1": 0.8,
    "optim.optimizer.b2": 0.9,
    "optim.optimizer.eps": 1e-6,
    "optim.optimizer.weight_decay": 0.1,
    "optim.schedule.name": "constant",
    "optim.schedule.final": 0.1,
    "horizon.unit": "examples",
    "horizon.amount": 6144.0,
    "eval.examples": 8,
    "eval.batch": 4,
    "eval.every": 3,
    "save.every": 5,
    "save.every_minutes": 1.0,
    "save.keep": 3,
    "save.best": "loss",
    "save.asynchronous": True,
    "log.internals": True,
    "save.on_error": "continue",
    "log.every": 3,
    "log.trackers": ["tensorboard"],
    "loop.steps_per_dispatch": 3,
    "loop.hang_seconds": 3.0,
    "loop.hang_first_seconds": None,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "model.name": "gru",
    "model.width": 32,
    "model.depth": 3,
    "model.heads": 4,
    "model.kv_heads": 1,
    "model.hidden": 40,
    "model.norm": "layer",
    "model.positions": "learned",
    "model.rotary_theta": 1e5,
    "model.activation": "gelu",
    "model.qk_norm": True,
    "model.bias": True,
    "model.tie_embeddings": True,
    "model.dtype": "bfloat16",
    "model.attention": "xla",
    "model.remat": "full",
    "model.unroll": 2,
    "mesh.indivisible": "replicate",
    "data.name": "stream",
    "data.tokenizer": "other",
    "data.context": 16,
    "data.heldout": 0.25,
    "task.name": "classification",
    "task.chunk": 64,
    "optim.paths": [["embed/.*", "frozen"]],
    "optim.transfer.rule": "mup",
    "eval.at": [3],
    "save.at": ["50%"],
}
ELSEWHERE = (
    *("size", "init", "data.path", "data.field", "data.vocab", "data.tokenizer"),
    "data.undecodable",  # which changes the data, or nothing
    "eval.headline",  # which needs a set
    *("optim.horizon_rule", "optim.recipe"),  # which resolve to numbers
    *(
        "optim.transfer.width",
        "optim.transfer.depth",
        "optim.transfer.head_size",
    ),  # and these a rule
)
BY_DATA = ("model.name", "data.name", "task.name")  # what names other data or another model


@pytest.mark.fault(
    "R8",
    "a run is launched again with a changed config",
    "every key either makes another run, told field by field, or is known to change no meaning",
    "each key of a config changed once",
)
def test_every_key_is_of_the_meaning_of_a_run_or_known_not_to_be(tiny, seen):
    config = tiny({"horizon.unit": "tokens", "horizon.amount": 3072.0, "eval.every": 4})
    here = make_run(config)
    classes = {"meaning": [], "allowed": []}
    other = OTHER | {"eval.sets": [{"name": "own", "path": config["data"]["path"]}]}
    known = [k for k in schema.schema(config) if not any(k.startswith(e) for e in ELSEWHERE)]
    for key in sorted(set(known) - set(BY_DATA)):
        base = {"optim.transfer.width": 8, "optim.transfer.head_size": 8}
        more = base if key == "optim.transfer.rule" else {}
        changed, problems = validation.override(config, {key: other[key], **more})
        assert not problems
        there = make_run(validated(changed))
        differing = resume.differences(here.config, there.config)
        allowed = any(key == k or key.startswith(f"{k}.") for k in NOT_IN_ID)
        assert (there.id == here.id) == allowed, key
        assert bool(differing) != allowed, key
        if not allowed:
            named = {line.partition(":")[0] for line in differing}
            assert key in named or any(n.startswith(key.partition(".")[0]) for n in named), key
        classes["allowed" if allowed else "meaning"].append(key)
    assert set(EXECUTION_KEYS) <= set(NOT_IN_ID)
    fields = [field.name for field in dataclasses.fields(execution.Execution)]
    assert [key.partition(".")[2] for key in EXECUTION_KEYS] == fields
    assert len(classes["allowed"]) > 8
    assert len(classes["meaning"]) > 25
    seen(
        sum(map(len, classes.values())),
        f"{len(classes['meaning'])} keys mean another run, {len(classes['allowed'])} may change",
    )


def test_where_the_data_lie_is_no_part_of_the_meaning(tiny, tmp_path, corpus):
    moved = tmp_path / "moved.txt"
    moved.write_bytes(corpus.read_bytes())
    here, there = make_run(tiny()), make_run(tiny({"data.path": str(moved)}))
    assert here.id == there.id
    assert not resume.differences(here.config, there.config)
    assert "path" in PATH_KEYS
    moved.write_bytes(corpus.read_bytes()[:-1] + b"?")
    assert make_run(tiny({"data.path": str(moved)})).id != here.id


@pytest.fixture
def begun(victim, tmp_path):
    """A workdir with an unfinished run."""
    victim.killed_after(tmp_path, 30)
    return tmp_path


def changed_file(victim, tmp_path, changes):
    config, problems = validation.override(victim.config, changes)
    assert not problems
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(validated(config)))
    return path


@pytest.mark.fault(
    "R8",
    "`--resume` with a config that means another run",
    "exit code 2 with every field that differs; what may change resumes to the same bits",
    "rate, seed and dtype changed; then the cadence of logs, checkpoints and dispatches",
)
def test_resume_refuses_another_meaning_and_takes_another_cadence(victim, begun, seen):
    changes = {"optim.lr": 0.3, "seed": 7, "model.dtype": "bfloat16"}
    other = changed_file(victim, begun, changes)
    child = victim.start(begun, config=other, flags=["--resume"])
    assert child.wait() == 2, child.said
    for line in ("optim.lr: ", "seed: 0 there, 7 here", "'float32' there, 'bfloat16' here"):
        assert line in child.said
    assert len(list((begun / "runs").iterdir())) == 1
    cadence = {"log.every": 2, "save.every": 15, "loop.steps_per_dispatch": "auto", "name": "n"}
    child = victim.start(begun, config=changed_file(victim, begun, cadence), flags=["--resume"])
    assert child.wait() == 0, child.said
    step, state = checkpoint.restore_latest(victim.path(begun), victim.abstract)
    assert bits(state) == victim.bits[step]
    assert step == victim.run.steps
    seen(2, "refused with three fields; another cadence ended with the same bits")


@pytest.mark.fault(
    "R8",
    "the config.json of a run's directory was altered",
    "refused, with the fields that differ",
    "the rate in it changed, then a launch",
)
@pytest.mark.slow
def test_an_altered_config_of_a_run_is_rejected_by_its_fields(victim, begun, seen):
    path = victim.path(begun) / "config.json"
    stored = json.loads(path.read_text())
    stored["optim"]["lr"] *= 2
    path.write_text(json.dumps(stored))
    child = victim.start(begun)
    assert child.wait() == 2, child.said
    assert "or altered" in child.said
    assert f"optim.lr: {stored['optim']['lr']!r} there" in child.said
    seen(1, "refused: optim.lr")


def test_a_new_run_beside_an_unfinished_one_is_reported(victim, tiny, begun, caplog):
    made = make_run(tiny({"optim.lr": 0.3}))
    with caplog.at_level("INFO"):
        similar_runs.report(begun, made, must=False)
    assert "a new run" in caplog.text
    with pytest.raises(BadInput, match="no unfinished run"):
        similar_runs.report(begun / "nothing", made, must=True)


CLOCK = """
import os, random, time
from pathlib import Path
rng, real = random.Random(0), time.time
time.time = lambda: real() + rng.uniform(-1e7, 1e7)
time.time_ns = lambda: int(1e9 * time.time())
from research.runs import checkpoint
save = checkpoint.save
def saved(directory, step, *rest):
    save(directory, step, *rest)
    for path in (directory / "checkpoints").iterdir():
        then = 1.7e9 - 1e5 * int(path.name) if path.name.isdigit() else 0
        os.utime(path, (then, then))  # the newest step has the oldest date
checkpoint.save = saved
"""


@pytest.mark.fault(
    "R22",
    "the clock jumps, dates of files are wrong",
    "the newest step is that of the highest number, the same bits, seconds never run backwards",
    "time.time off by up to 1e7 s at every call, dates of checkpoints reversed, killed between",
)
@pytest.mark.slow
def test_no_jump_of_the_clock_changes_a_run(victim, tmp_path, seen):
    made = victim.killed_after(tmp_path, 60, CLOCK)
    newest = victim.assert_sound(tmp_path)
    victim.assert_ends_whole(tmp_path, before=CLOCK)
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert {"resume": newest} in [{"resume": r.get("resume")} for r in lines]
    seconds = [r["seconds"] for r in lines if "seconds" in r]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert seconds[-1] < 600
    seen(1, f"resumed from step {newest} to the same end")


@pytest.mark.fault(
    "R22",
    "the clock jumps: what asks for it",
    "the wall clock is asked for nothing that is compared or waited for",
    "every use of time.time and datetime in the source read",
)
def test_the_wall_clock_is_only_for_people(seen):
    # The notes of a failed attempt, when a prediction was registered, what trackers want, and until
    # when a sweep will take.
    allowed = {"work_units.py": 2, "verify.py": 2, "tensorboard.py": 1, "mlflow.py": 1}
    allowed |= {"watch.py": 1}
    found = {}
    for path in (ROOT / "research").rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        if count := sum(c in ("time.time", "time.time_ns") or "datetime" in c for c in calls):
            found[path.name] = count
    assert found == allowed
    seen(1, "none decides anything")


def test_states_are_compared_bit_by_bit():
    a = {"x": jax.numpy.zeros(3)}
    assert bits(a) == bits({"x": np.zeros(3, np.float32)})
    assert bits(a) != bits({"x": np.array([0, 0, random.Random(0).random()], np.float32)})
    assert run.identity_config is resume.identity_config
