"""What the benchmark says is consistent; how fast anything is, no test says."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import bench as command
from research.config import cli, validation
from research.errors import BadInput
from research.models import accounting
from research.planning import benchmark, hardware
from research.runs.directory import RunDirectory, read_launch
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import run_mesh
from tools.bench import gpu, peers, turns

pytestmark = pytest.mark.usefixtures("barely_optimized")


@pytest.fixture(scope="module")
def run(tiny):
    return make_run(tiny({"loop.steps_per_dispatch": 3}))


@pytest.fixture(scope="module")
def found(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "CPU_SIDES", (64,))
        return benchmark.measure(run, blocks=2, seconds=1e-3)


@pytest.mark.slow
def test_figures_are_consistent(found, run):
    seconds = found["ms_per_step"] / 1e3
    assert found["tokens_per_step"] == run.batch * 32
    assert found["tokens_per_second"] * seconds == pytest.approx(found["tokens_per_step"])
    assert found["flops_per_step"] == accounting.step_flops(run.model, run.batch)
    assert found["flops_per_second"] * seconds == pytest.approx(found["flops_per_step"])
    share = found["flops_per_second"] / found["peak_flops_per_second"]
    assert found["peak_share"] == pytest.approx(share)
    both = found["device_ms_per_step"] + found["host_ms_per_step"]
    assert both == pytest.approx(found["ms_per_step"])
    assert found["host_share"] * found["ms_per_step"] == pytest.approx(found["host_ms_per_step"])
    low, high = found["ms_quartiles"]
    assert 0 < low <= found["ms_per_step"] <= high
    assert found["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert found["peak"] == "measured"
    for key in ("compile_seconds", "seconds_to_first_step", "peak_bytes", "steps_timed"):
        assert found[key] > 0, key
    assert found["steps_per_dispatch"] == 3
    assert found["steps_timed"] % (found["blocks"] * 3) == 0


@pytest.mark.slow
def test_the_words_hold_the_figures(found):
    told = benchmark.format_measurement(found)
    assert f"{found['ms_per_step']:.3g} ms" in told
    assert f"{found['tokens_per_second']:,.0f} tokens/s" in told
    head, _, *rows = benchmark.markdown_table(
        {"a case": found, "the same again": found}
    ).splitlines()
    assert [len(row.split("|")) for row in rows] == [len(head.split("|"))] * 2
    assert f"{found['ms_per_step']:.2f}" in rows[0]
    assert "of the measured matmul throughput" in told
    assert "MFU" in benchmark.format_measurement({**found, "peak": "data sheet"})


@pytest.mark.parametrize(
    ("kind", "platform", "how"),
    [
        ("NVIDIA H100 80GB HBM3", "gpu", "data sheet"),
        ("NVIDIA H200", "gpu", "data sheet"),
        ("NVIDIA A100-SXM4-80GB", "gpu", "data sheet"),
        ("NVIDIA H100 PCIe", "gpu", "measured"),
        ("NVIDIA GH200 480GB", "gpu", "measured"),
        ("NVIDIA A100-SXM4-40GB", "gpu", "measured"),
        ("TPU v5 lite", "tpu", "data sheet"),
        ("TPU v5", "tpu", "data sheet"),
        ("TPU v4", "tpu", "measured"),
        ("cpu", "cpu", "measured"),
    ],
)
def test_a_data_sheet_is_of_exactly_one_card(kind, platform, how, monkeypatch):
    """The peak of another card is measured, on an accelerator with matrices that can fill it."""
    timed = []
    monkeypatch.setattr(benchmark, "measured_matmul_flops", lambda *args: timed.append(args) or 1.0)
    devices = np.array([SimpleNamespace(platform=platform, device_kind=kind)] * 2)
    peak, source = benchmark.peak_flops(SimpleNamespace(devices=devices, size=2), "bfloat16")
    assert source == how
    if how == "data sheet":
        assert peak == 2 * hardware.machine_of_kind(kind).rate("bfloat16")
        assert not timed
    else:
        ((on, dtype, sides),) = timed
        assert (peak, on, dtype) == (1.0, tuple(devices), "bfloat16")
        assert (min(sides) >= 4096) == (platform != "cpu")


def test_a_data_sheet_is_chosen_by_one_name_alone():
    kinds = [kind for machine in hardware.MACHINES.values() for kind in machine.device_kinds]
    assert len(set(kinds)) == len(kinds) >= len(hardware.MACHINES)


@pytest.mark.slow
def test_what_is_timed_is_the_mesh_that_train_uses(tiny, tmp_path, monkeypatch):
    """Each of the 4 parts of a batch of 8 has rows for 2 devices, the batch itself for 8."""
    monkeypatch.setattr(benchmark, "CPU_SIDES", (64,))
    run = make_run(tiny({"batch.size": 8, "batch.grad_accumulation": 4, "horizon.amount": 2.0}))
    with RunDirectory(tmp_path, run.id) as directory:
        train_run(run, directory)
        trained_on = read_launch(directory.path)["mesh"]
    assert trained_on == {"data": 2, "fsdp": 1, "tensor": 1}
    assert benchmark.measure(run, blocks=2, seconds=1e-3)["mesh"] == trained_on


def test_blocks_train_as_the_run_does(run):
    """One block of 6 steps and two of 3 end in the same parameters, other than one of 3."""
    mesh = run_mesh(run)
    whole, parts = benchmark.TimedLoop(run, mesh), benchmark.TimedLoop(run, mesh)
    assert whole.block(6) > 0
    parts.block(3)
    half = jax.device_get(parts.state.params)
    parts.block(3)
    six, twice = (jax.device_get(loop.state.params) for loop in (whole, parts))
    assert whole.step == parts.step == 6
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), six, twice)
    assert all(jax.tree.leaves(equal))
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), six, half)))


def test_the_steps_of_a_dispatch_are_chosen_as_a_run_would(tiny):
    run = make_run(tiny({"loop.steps_per_dispatch": "auto"}))
    assert run.cadence.paced
    loop = benchmark.TimedLoop(run, run_mesh(run))
    loop.settle()
    assert 1 <= loop.dispatch <= run.cadence.dispatch
    assert (loop.run.cadence.dispatch, loop.run.cadence.paced) == (loop.dispatch, False)
    programs = loop.trainer._dispatch._cache_size()
    loop.block(2 * loop.dispatch)
    assert loop.trainer._dispatch._cache_size() == programs  # the one that the run compiles


def test_a_larger_batch_reserves_more(run, tiny):
    larger = make_run(tiny({"loop.steps_per_dispatch": 3, "batch.size": 32}))
    mesh = run_mesh(run)
    assert benchmark.TimedLoop(larger, mesh).bytes() > 2 * benchmark.TimedLoop(run, mesh).bytes()


@pytest.mark.slow
def test_a_dispatch_of_one_step_is_timed_too(tiny):
    run = make_run(tiny({"loop.steps_per_dispatch": 1, "mesh.data": 1, "model.depth": 1}))
    loop = benchmark.TimedLoop(run, run_mesh(run))
    loop.block(2)
    assert loop.device_step(repeats=3) < 60


@pytest.mark.parametrize(("blocks", "seconds"), [(1, 0.5), (3, 0.0), (3, float("nan"))])
def test_numbers_that_measure_nothing_are_rejected(run, blocks, seconds):
    with pytest.raises(BadInput, match="--blocks" if blocks < 2 else "--seconds"):
        benchmark.measure(run, blocks, seconds)


def test_the_age_of_a_process_grows_and_begins_before_its_code():
    began = time.monotonic()
    first = benchmark.age()
    time.sleep(0.02)
    assert 0.02 <= benchmark.age() - first < 60
    code = "from research.planning import benchmark; print(benchmark.age())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0 < float(done.stdout) < 1 + time.monotonic() - began


def launched(*argv):
    command = [sys.executable, "-m", "experiments.bench", *argv]
    one = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}  # the peak of eight would take seconds
    return subprocess.run(command, capture_output=True, text=True, env=one)


@pytest.mark.slow
def test_the_command_prints_one_line_of_json(tmp_path):
    changes = ["model.width=16", "model.hidden=32", "data.context=16", "eval.examples=8"]
    argv = ["--config=configs/lm_gpt2.py", *(f"--config.{change}" for change in changes)]
    done = launched(*argv, "--blocks=2", "--seconds=0.001", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["name"] == "lm_gpt2"
    assert found["tokens_per_step"] == 4 * 16


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--config=configs/lm_gpt2.py", "--config.model.widht=3"], "widht"),
        (["--config=configs/lm_gpt2.py", "--block=3"], "--block=3"),
        (["--config=configs/none.py"], "no such file"),
        (["--config.batch.size=3"], "--config=FILE"),
        (["--blocks=two"], "--blocks"),
    ],
)
def test_bad_flags_are_rejected(argv, says):
    done = launched(*argv)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", command.CASES)
def test_the_shipped_cases_are_configs(name):
    _, config, _ = cli.parse_config(cli.config_parser(""), command.flags(command.CASES[name]))
    assert not validation.problems(config)


@pytest.mark.parametrize("amx", [False, True])
def test_beside_peers_a_step_is_a_share_of_the_best_product(amx, monkeypatch, capsys):
    """Of the fastest library's; and in bfloat16 where the CPU multiplies it."""

    def timed(programs, blocks, seconds):
        ms = {"ours": 10.0, "nanodo": 20.0, "numpy": 4.0, "xla": 2.0, "bf16": 5.0}
        flops = {"ours": 1e9, "numpy": 1e9, "xla": 1e9}
        facts = {name: {"params": 7, "flops": flops.get(name)} for name in programs}
        return {name: [ms[name]] * 3 for name in programs}, facts

    monkeypatch.setattr(peers, "timed", timed)
    monkeypatch.setattr(peers, "has_bfloat16", lambda: amx)
    monkeypatch.setattr(sys, "argv", ["peers", "--nanodo=somewhere", "--case=128/4/16"])
    assert peers.main() == 0
    text = capsys.readouterr().out
    assert "20% of a product by xla" in text
    found = json.loads(text.splitlines()[-1])
    assert found.pop("bf16", None) == ({"GPT-2 128/4/16": 2.0} if amx else None)
    assert found == {"nanodo": {"geomean": 2.0, "min": 2.0}, "limit": {"GPT-2 128/4/16": 0.2}}


def test_the_libraries_say_how_fast_their_products_are():
    programs = {name: turns.Program(peers.products("")[name]) for name in ("numpy", "xla")}
    for program in programs.values():
        assert program.facts["flops"] % (2 * 1024**3) == 0
        assert program.block(1) > 0
        program.close()


@pytest.fixture
def small_card(monkeypatch, tmp_path):
    """The cases of a GPU, shrunk so that a CPU trains them."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    for name, value in (("CONTEXT", 64), ("VOCAB", 512), ("BATCHES", (16, 8, 4))):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "CASES", {"small": (32, 1, 2)})
    return gpu.random_tokens()


def test_the_first_batch_on_a_card_is_one_that_fits_by_the_estimate(small_card):
    batches = {room: gpu.first_batch("small", small_card, room)[0] for room in (1e9, 4e6, 1.0)}
    assert batches[1e9] == 16
    assert batches[1.0] == 4
    assert 4 <= batches[4e6] < 16
    assert gpu.first_batch("small", small_card, 1.0)[1] > 6 * 64 * 32 * 512


@pytest.mark.slow
def test_what_a_card_is_asked_is_answered(small_card, monkeypatch, tmp_path, capsys):
    """The whole path on this CPU: a batch for which there is no memory, then one that is timed; and
    the small runs, vmapped and one by one."""
    started = gpu.started
    monkeypatch.setattr(
        gpu, "started", lambda stack, c: started(stack, c) if "=16" not in str(c) else {}
    )
    args = SimpleNamespace(nanogpt="", torch_python="", blocks=2, seconds=0.05)
    found = gpu.timed("small", args, small_card, {"peak": 1e12, "memory": 1e9})
    assert found["batch"] == 8
    assert 0 < found["ours"]["mfu"] < 1
    config = tmp_path / "few.py"
    config.write_text(
        "from tools.bench import gpt2_groups\n"
        "def get_config():\n"
        "    config = gpt2_groups.get_config()\n"
        "    config.model.update(width=16, hidden=32, depth=1)\n"
        "    config.horizon.amount = 4.0\n"
        "    return config\n"
        "def sweep(config):\n"
        "    return gpt2_groups.sweep(config)[:3]\n"
    )
    seconds = gpu.groups(str(config))
    assert set(seconds) == {"off", "force"}
    assert min(seconds.values()) > 0
    assert "few, grouping=force" in capsys.readouterr().out
