"""No process compiles what another one did, and what is kept is this user's alone."""

import json
import os
import stat
import subprocess
import sys

import pytest

SCRIPT = """
import collections, json, sys
import jax
from research import compiled, sharding

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
sharding.use_all_cores()
folder = compiled.keep_programs()

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

    def run(core=None, **more):
        ours = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        pinned = f"import os; os.sched_setaffinity(0, [{core}])\n" if core is not None else ""
        argv = [sys.executable, "-W", "error", "-c", pinned + SCRIPT]
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
