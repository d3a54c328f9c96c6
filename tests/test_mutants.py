"""A thousand configs that chance has changed: each is refused with a clear message, or trains."""

import collections
import contextlib
import dataclasses
import json
import random
import re
import signal
import time

import pytest
from mutants import NASTY, Mutator

from research.config import schema, validation
from research.config.loading import load_config, validated
from research.errors import BadInput, Diverged
from research.planning import memory
from research.runs.directory import RunDirectory
from research.training.loop import preflight, train_run
from research.training.make_run import make_run
from research.training.trainer import host_batches, host_heldout, run_mesh, step_spec
from tests.config.test_configs import CONFIGS, SWEEPS, shrunk

# What keeps a network small and its program quick to compile.
SMALL = {
    "transformer": {"depth": 1, "heads": 2, "kv_heads": 2, "width": 16, "hidden": 32, "unroll": 1},
    "encoder": {"depth": 1, "heads": 2, "kv_heads": 2, "width": 16, "hidden": 32},
    "gru": {"width": 8, "depth": 1},
    "cnn": {"width": 4, "depth": 1, "hidden": 8},
    "resnet": {"width": 4, "depth": 1},
    "mlp": {"width": 8},
}
LONGEST = 300.0  # seconds that a mutant may take, on a machine that has other work
TOP = {path.split(".")[0] for path in schema.SECTIONS} | {"model", "data", "task", "config"}


@pytest.fixture(scope="module")
def sound(corpus):
    """Every shipped config on small data, and a small network, which those of sweeps give by
    `size`."""
    out = []
    for path in (*CONFIGS, *SWEEPS):
        config, _ = shrunk(path, corpus)
        if config["data"].get("path") == "mnist5k":
            config["data"]["path"] = "digits"
        model = config["model"]
        if path in CONFIGS:
            model.update({k: v for k, v in SMALL.get(model["name"], {}).items() if k in model})
            config["size"] = None
        elif config["size"] is not None:
            config["size"] = min(config["size"], 2e4)
        if config["name"] in ("lm_budgets", "masked_budgets"):
            config["horizon"]["amount"] = 1e5  # their warm-up is in tokens
        out.append(config)
    return out


def clear(line):
    """Whether a line begins with a key of a config, is of a line's length, and speaks no Python."""
    key = re.match(r"'?(\w*)[\w.]*(?: / [\w.]+)?.*?: .", line)
    spoken = re.search(r"Error\b|Traceback|object at 0x|<class", line)
    known = key and (key[1] in TOP or "no such key" in line)
    return bool(known) and not spoken and len(line) < 5500


def loaded(config, path):
    """`config` as a command reads it; JSON has no number that is not finite, a .py may."""
    try:
        path.write_text(json.dumps(config, allow_nan=False))
    except ValueError:
        return config
    return load_config(str(path))[0]


class Judge:
    """What becomes of mutants: refused, planned, or trained where the program is one of the first
    `programs` that came."""

    def __init__(self, tmp_path, programs):
        self.tmp_path, self.programs = tmp_path, programs
        self.seen, self.count = set(), collections.Counter()

    def __call__(self, config):
        """Raises whatever is no refusal."""
        try:
            run = make_run(validated(loaded(config, self.tmp_path / "mutant.json")))
            preflight(run, RunDirectory(self.tmp_path / "w", run.id))
        except BadInput as refusal:
            self.count["refused"] += 1
            if not refusal.problems or not all(map(clear, refusal.problems)):
                raise
            return
        mesh = run_mesh(run)
        memory.trace_step(run, mesh)  # the whole step is traced
        room = min(2, run.cadence.dispatch)
        host_batches(run, 0, room, room)
        host_heldout(run, 8)
        self.count["planned"] += 1
        program = (step_spec(run, mesh), tuple(mesh.shape.values()), run.batch, run.cadence)
        if len(self.seen) < self.programs:
            self.seen.add(program)
        if program in self.seen:
            self.trained(run)

    def trained(self, run):
        directory = RunDirectory(self.tmp_path / f"w{sum(self.count.values())}", run.id)
        few = min(run.eval_examples, 32)
        short = dataclasses.replace(run, steps=min(2, run.steps), eval_examples=few)
        with directory:
            try:
                train_run(short, directory)
                self.count["trained"] += 1
            except Diverged:  # which is recorded, and has its own exit code
                self.count["diverged"] += 1


def judged(seed, number, programs, sound, tmp_path):
    judge, mutator = Judge(tmp_path, programs), Mutator(random.Random(seed), sound)
    for i in range(number):
        config, words = mutator.mutant()
        try:
            with limited(LONGEST):
                judge(config)
        except BaseException as error:
            error.add_note(f"mutant {i} of seed {seed}: {words}")
            raise
    return judge.count


@contextlib.contextmanager
def limited(seconds):
    """Raises TimeoutError in what takes longer, once it is back in Python: a config that takes
    minutes to be refused, or to compile, is one that was accepted and then hung."""

    def late(number, frame):
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("seed", [0])
def test_a_mutant_is_rejected_or_trains(seed, sound, tmp_path):
    count = judged(seed, 40, 2, sound, tmp_path)
    assert count["refused"] > 20
    assert count["planned"] > 5
    assert count["trained"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.fault(
    "R14",
    "a config changed by chance",
    "refused by clear lines or its step traced, some trained; no traceback, no later crash",
    "1,000 seeded mutants of all shipped configs",
)
def test_a_thousand_mutants_are_rejected_or_train(seed, sound, tmp_path, seen):
    count = judged(seed, 250, 12, sound, tmp_path)
    assert count["refused"] > 100
    assert count["planned"] > 40
    assert count["trained"] >= 12
    seen(250, ", ".join(f"{number} {became}" for became, number in count.items()))


@pytest.mark.slow
def test_every_sound_config_is_planned(sound, tmp_path):
    judge = Judge(tmp_path, 0)
    for config in sound:
        judge(config)
    assert judge.count == {"planned": len(sound)}


def test_every_nasty_value_is_rejected_or_allowed_wherever_it_stands(sound):
    """Of the checks that need no jax, 60 values in each of the keys."""
    families = {config["model"]["name"]: config for config in sound}
    for config in (families["transformer"], families["cnn"]):
        for path in schema.schema(config):
            *parents, last = path.split(".")
            changed = json.loads(json.dumps(config))
            inner = changed
            for key in parents:
                inner = inner[key]
            for value in NASTY:
                inner[last] = value
                assert all(map(clear, validation.problems(changed)))


@pytest.mark.parametrize(
    "line",
    [
        "optim.lr: 'x' is of type str",
        "'': no such key",
        "batch.size / batch.grad_accumulation: 4 is not divisible",
        "config: has a key 'a.b'",
    ],
)
def test_a_clear_line_is_clear(line):
    assert clear(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ValueError: x",
        "optim.lr: ValueError: x",
        "nothing here",
        "path: x",
        "size: " + "9" * 6000,
    ],
)
def test_a_line_that_is_not_clear_is_seen(line):
    assert not clear(line)


def test_a_crash_is_seen(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "_warmup", lambda flat: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        judged(0, 20, 0, sound, tmp_path)
    assert "mutant" in error.value.__notes__[0]


def test_a_mutant_that_hangs_is_seen(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "_warmup", lambda flat: time.sleep(60))
    monkeypatch.setitem(globals(), "LONGEST", 0.2)
    with pytest.raises(TimeoutError) as error:
        judged(0, 20, 0, sound, tmp_path)
    assert "mutant" in error.value.__notes__[0]
