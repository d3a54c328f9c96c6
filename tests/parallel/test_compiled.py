"""No process compiles what another one did, and what is kept is this user's alone."""

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from research.errors import StorageError
from research.io import files
from research.parallel import compile_cache, device_mesh
from research.training.make_run import make_run
from research.training.step import eval_program
from research.training.trainer import Trainer, run_mesh

SCRIPT = """
import collections, json, sys
import jax
from research.parallel import compile_cache, device_mesh

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
device_mesh.use_all_cpu_cores()
folder = compile_cache.enable_compile_cache()

import jax.numpy as jnp

x = jnp.arange(64.0).reshape(8, 8)
result = jax.jit(lambda x: jnp.tanh(x @ x / 1e4).sum())(x)
print(json.dumps({
    "folder": folder and str(folder),
    "hits": events["/jax/compilation_cache/cache_hits"],
    "misses": events["/jax/compilation_cache/cache_misses"],
    "result": float(result),
}))
"""


@pytest.fixture
def compute(tmp_path):
    """A function: environment -> what a process of it says that compiles a small program."""

    def run(core=None, strict=True, **more):
        ours = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        pinned = f"import os; os.sched_setaffinity(0, [{core}])\n" if core is not None else ""
        argv = [sys.executable, *(["-W", "error"] if strict else []), "-c", pinned + SCRIPT]
        environment = ours | {"ISOFLOP_CACHE": str(tmp_path / "cache"), **more}
        out = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
        return json.loads(out.stdout), out.stderr

    return run


def test_a_second_process_finds_what_the_first_compiled(compute):
    first, _ = compute()
    assert first["misses"] > 0
    assert first["hits"] == 0
    second, errors = compute()
    assert second["misses"] == 0
    assert second["hits"] == first["misses"]
    assert second["result"] == first["result"]
    assert "AOT" not in errors  # what XLA says of a program for another machine
    mode = stat.S_IMODE(os.stat(first["folder"]).st_mode)
    assert mode == 0o700
    assert list(os.scandir(first["folder"]))


def test_it_can_be_switched_off_and_a_chosen_folder_stays(compute, tmp_path):
    off, _ = compute(ISOFLOP_COMPILE_CACHE="off")
    assert (off["folder"], off["hits"], off["misses"]) == (None, 0, 0)
    chosen, _ = compute(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert chosen["folder"] == str(tmp_path / "mine")
    assert not (tmp_path / "cache" / "programs").exists()


def test_programs_for_other_cores_are_others(compute):
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    all_, _ = compute()
    one, _ = compute(core=min(os.sched_getaffinity(0)))
    assert one["folder"] != all_["folder"]
    assert one["hits"] == 0


def test_a_folder_that_others_may_write_to_is_not_used(compute):
    folder = compute()[0]["folder"]
    os.chmod(folder, 0o777)
    said, errors = compute()
    assert said["folder"] is None
    assert said["hits"] == 0
    assert "others may write there" in errors


@pytest.mark.parametrize("how", ["shared", "in shared", "in the shared cache", "owned", "linked"])
def test_a_folder_of_somebody_else_is_not_used(how, tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    place = files.cache("programs") / "ours"
    assert compile_cache._private(place) == place
    match how:
        case "linked":
            place.rename(tmp_path / "theirs")
            place.symlink_to(tmp_path / "theirs")
        case "owned":
            monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
        case _:
            shared = {"shared": place, "in shared": place.parent}
            shared.get(how, tmp_path / "cache").chmod(0o770)
    with pytest.raises(StorageError, match="expected a folder of mode 0700"):
        compile_cache._private(place)


def test_damaged_entries_are_compiled_again(compute):
    """Cut, emptied, garbled, or with one bit flipped: each entry in one of these ways, then in
    another."""
    first, _ = compute()
    rng = random.Random(0)

    def flipped(raw):
        at = rng.randrange(len(raw))
        return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]

    damages = [
        *(lambda raw: raw[: len(raw) // 2], lambda raw: b""),
        *(lambda raw: rng.randbytes(len(raw)), flipped),
    ]
    entries = [p for p in Path(first["folder"]).iterdir() if not p.name.endswith("-atime")]
    whole = {path: path.read_bytes() for path in sorted(entries)}
    assert len(whole) > 1
    for turn in range(2):
        for number, (path, raw) in enumerate(whole.items(), 2 * turn):
            path.write_bytes(damages[number % 4](raw))
        again, told = compute(strict=False)
        assert again["result"] == first["result"]
        assert again["hits"] < first["misses"]
        assert "persistent compilation cache" in told


@pytest.mark.skipif(not jax.__version__.startswith("0.10."), reason="the options of jaxlib 0.10")
def test_programs_that_compile_in_less_time_make_the_same_numbers(tiny):
    """Bit for bit those of the optimization that XLA has by default, and of its newer emitters."""
    run = make_run(tiny({"mesh.data": 1, "loop.steps_per_dispatch": 4}))
    mesh = run_mesh(run)
    trainer = Trainer(run, mesh)
    first = trainer.init()
    inputs = np.zeros(trainer.inputs.shape, trainer.inputs.dtype)
    init = jax.jit(
        device_mesh.with_mesh_names(mesh, trainer.spec.init), out_shardings=trainer.shardings.tree
    )

    def drawn(seed):
        made = init.lower(jax.random.key(seed), inputs, trainer.hyper)
        newer = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 0}
        return jax.device_get(made.compile(newer)(jax.random.key(seed), inputs, trainer.hyper))

    def equal(one, other):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    assert equal(jax.device_get(first), drawn(run.seed))
    assert not equal(jax.device_get(first), drawn(run.seed + 1))
    batches, count = trainer.batches(0, 4, 4), np.int32(4)
    slowly = {"xla_backend_optimization_level": 3}
    optimized = trainer.lower().compile(slowly)
    other, _ = optimized(trainer.init(), batches, trainer.hyper, count)
    state, _ = trainer.steps(first, batches, 4)
    assert equal(jax.device_get(state), jax.device_get(other))
    held = state.params, *trainer._heldout[0]
    sums = eval_program(trainer.spec, mesh)
    assert equal(sums(*held), sums.lower(*held).compile(slowly)(*held))
    assert not equal(sums(*held), sums(other.params, held[1], 2 * held[2]))


def test_the_program_that_is_planned_is_the_one_that_trains(tiny, monkeypatch):
    """Made and lowered from abstract arrays, for devices that may be elsewhere: nothing is put."""
    run = make_run(tiny({"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}))
    mesh = run_mesh(run)
    with monkeypatch.context() as patch:
        for name in ("device_put", "make_array_from_process_local_data"):
            patch.setattr(jax, name, lambda *args, **kwargs: pytest.fail("an array was put"))
        trainer = Trainer(run, mesh)
        planned = trainer.lower().as_text()
    room = run.cadence.dispatch
    arguments = trainer.init(), trainer.batches(0, 1, room), trainer.hyper
    count = jax.device_put(np.int32(1), trainer._everywhere)
    assert planned == trainer._dispatch.lower(*arguments, count).as_text()
    assert planned != trainer.lower(room + 1).as_text()
