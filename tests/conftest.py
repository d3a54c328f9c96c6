"""Tests run on eight simulated CPU devices. A rank that broadcasting would hide is an error, and so
is a dtype that promotion would hide."""

import gc
import getpass
import os
import random
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

os.environ["JAX_NUM_CPU_DEVICES"] = "8"  # before jax is imported
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the commands do; workers would wait for each other
if metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters compile a step in half the time, and it runs as fast; jaxlib 0.12 has
    # only those that the commands use, and so both are tested.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()

import jax

from research.config import validation
from research.config.loading import load_config, validated
from research.io import worker_processes

# Else each of the commands that tests start would compile every module again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# In a shell's background it is ignored, and so it would be by the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# One compile cache for the workers and for later runs, private to the user.
CACHE = Path(tempfile.gettempdir()) / f"isoflop-tests-{getpass.getuser()}"
CACHE.mkdir(mode=0o700, exist_ok=True)
for name, value in {
    "jax_compilation_cache_dir": str(CACHE),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for the processes that tests start


def pytest_collection_finish():
    """What was collected stays to the end, and traces and fits hold few cycles: a tenth of the
    suite's time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


worker_processes.MOST = 0  # the suite has workers of its own, and takes all cores

TINY = {
    "size": None,
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.hidden": 32,
    "data.context": 32,
    "batch.size": 8,
    "horizon.unit": "steps",
    "horizon.amount": 12.0,
    "eval.examples": 16,
    "eval.batch": 8,
    "eval.every": 0,
    "save.every": 0,
    "loop.steps_per_dispatch": 10,
}


@pytest.fixture(scope="module")
def barely_optimized():
    """For modules whose tests hold whatever LLVM makes of a program, so that it need not try: what
    functions compute, what is counted, planned or recorded; never bits of several programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # or a later test would run what was compiled here


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of `fit` that are not about its figures, which take longer than most fits."""
    from research.report import fit_figures

    monkeypatch.setattr(fit_figures, "draw_figures", lambda *_: {})


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A .txt of 300 kB in which words follow each other by chance, so that there is something to
    learn and no two blocks are equal."""
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioubcdfglmnprst", k=rng.randint(2, 8))) for _ in range(500)]
    follow = {word: rng.choices(words, k=4) for word in words}
    lines, word = [], words[0]
    for _ in range(6000):
        line = []
        for _ in range(10):
            word = rng.choice(follow[word])
            line.append(word)
        lines.append(" ".join(line))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def seen(request):
    """A function: (trials, what was seen), for the table that `make faults` writes."""
    return lambda trials, text: request.node.user_properties.append(("seen", [trials, text]))


@pytest.fixture(scope="session")
def zygote():
    """Starts commands as forks (see tests/zygote.py)."""
    from tests.faulting import Zygote

    made = Zygote()
    yield made
    made.close()


VICTIM = {  # a run of two seconds that saves all the time
    "horizon.amount": 120.0,
    "save.every": 10,
    "save.keep": 3,
    "log.every": 1,
    "eval.every": 25,
    "loop.steps_per_dispatch": 5,
}


@pytest.fixture(scope="session")
def victim(tiny, zygote, tmp_path_factory):
    """A run to be injured, and what it is when nobody does (see tests/faulting.py)."""
    from tests.faulting import Victim

    folder = tmp_path_factory.mktemp("victim")
    return Victim(zygote, tiny(VICTIM), tiny(VICTIM | {"save.keep": 1000, "save.every": 5}), folder)


@pytest.fixture(scope="session")
def tiny(corpus):
    """A function: dotted changes -> the checked config of a tiny transformer on the corpus."""

    def make(changes=None):
        config, _ = load_config("configs/lm_transformer.py")
        every = {**TINY, "data.path": str(corpus), **(changes or {})}
        config, problems = validation.override(config, every)
        assert not problems, problems
        return validated(config)

    return make
