"""Programs for machines that are not here: which there are, what is read from a program's text, and
what the compilers of NVIDIA, Google and this CPU make of one."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.config import validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.models import attention, transformer
from research.parallel import device_mesh
from research.planning import cluster, compiled, hlo, targets
from tools.bench import gpu

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


# Targets.


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(targets, "_check_installed", lambda text, extra, *modules: None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h100:8", ("gpu", "h100", "1x1x8", 8)),
        ("h100:64", ("gpu", "h100", "1x8x8", 64)),
        ("a100:1x2x8", ("gpu", "a100", "1x2x8", 16)),
        ("tpu:v5e:16x16", ("tpu", "v5e", "v5e:16x16", 256)),
        ("tpu:v5p:4x4x4", ("tpu", "v5p", "v5p:4x4x4", 64)),
        ("tpu:v6e:4x4", ("tpu", "v6e", "v6e:4x4", 16)),
        ("cpu:8", ("cpu", "cpu", "", 8)),
    ],
)
def test_targets(text, found, installed):
    target = targets.parse_target(text)
    assert (target.platform, target.device, target.topology, target.devices) == found


@pytest.mark.parametrize(
    "text",
    [
        *("h100", "h100:0", "h100:2x8", "b52:8", "tpu:8", "tpu:v5e:4", "tpu:v5p:4x4"),
        *("tpu:v9:4x4", "cpu:2x2", "cpu:x", "tpu:h100:8", "tpu:v5e:v5e:4x4", ":8"),
    ],
)
def test_what_is_no_target_is_rejected(text, installed):
    with pytest.raises(BadInput, match=r"--compile=.*: expected h100:8, .* or cpu:8"):
        targets.parse_target(text)


def test_targets_that_no_host_or_machine_has(installed):
    with pytest.raises(BadInput, match="12 devices; expected a multiple of 8"):
        targets.parse_target("h100:12")
    with pytest.raises(BadInput, match="at most 512 devices are simulated"):
        targets.parse_target("cpu:1024")


@pytest.mark.parametrize(("text", "extra"), [("h100:8", "cuda"), ("tpu:v5e:4x4", "tpu")])
def test_a_compiler_that_is_not_installed_is_named(text, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=rf"not installed; .*`pip install -e '.*\[{extra}\]'`"):
        targets.parse_target(text)


# A program's text.

TEXT = """
HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%cond (p: (s32[], f32[16,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%blocks (p: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %g = ((bf16[4,8], bf16[2]), (bf16[16,8]{1,0:T(8,128)}, bf16[8])) all-gather-start(%w), @mlp
  %gd = (bf16[16,8]{1,0}, bf16[8]{0}) all-gather-done(%g)
  ROOT %big = f32[1024,1024]{1,0} dot(%gd, %gd), @attn
}

%step (p: (s32[])) -> (s32[]) {
  %loop = (s32[], f32[16,8]) while(%t), condition=%cond, body=%blocks
  %s = f32[2,8]{1,0} reduce-scatter(%h), replica_groups=GROUPS, to_apply=%add, dimensions={0}
  %r = f32[] all-reduce(%l), replica_groups={}, to_apply=%add
}

%more (p: (s32[])) -> pred[] {
  ROOT %and = pred[] and(%a, %b)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %steps = (s32[]) while(%t), condition=%more, body=%step
}
"""
TEXT = TEXT.replace(
    "@mlp",
    'replica_groups=GROUPS, metadata={op_name="jit(f)/while/body/blocks/(mlp/up:mlp/down)"}',
)
TEXT = TEXT.replace(
    "@attn", 'metadata={op_name="jit(f)/while/body/closed_call/blocks/attn/dot_general"}'
)


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[8]",
        "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
        "mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}",
    ],
)
def test_collectives_are_counted_in_a_step(groups):
    found = hlo.Program(TEXT.replace("GROUPS", groups)).collectives(MESH)
    by_array = {c.array: c for c in found}
    gathered = by_array["bf16[16,8]"]
    assert gathered.times == 5  # by the loop's condition, as on TPUs
    assert (gathered.kind, gathered.axes, gathered.ways) == ("all-gather", "fsdp", 4)
    assert gathered.bytes == 16 * 8 * 2
    assert gathered.received == 5 * 256 * 3 / 4
    assert gathered.operation == "blocks"
    scattered = by_array["4 x f32[2,8]"]
    assert (scattered.times, scattered.bytes) == (1, 4 * 2 * 8 * 4)
    assert by_array["f32[]"].kind == "all-reduce"


CARRIED = """attn/dot_general"}
  ROOT %carried = (s32[], f32[16,8]) tuple(%next, /*index=1*/%w)"""


def test_an_unrolled_loop_runs_as_often_as_its_counter_says():
    """The compiler for TPUs unrolls a gather that overlaps with its product by two, and counts by
    two."""
    counted = TEXT.replace("GROUPS", "[2,4]<=[8]").replace(
        "  ROOT %lt = pred[] compare(%i, %limit)",
        "  %i = s32[] get-tuple-element(%p), index=0\n  ROOT %lt = pred[] compare(%i, %limit)",
    )
    for stride, times in ((1, 5), (2, 3), (5, 1)):
        text = counted.replace(
            "  ROOT %big = f32",
            f"  %by = s32[] constant({stride})\n  %next = s32[] add(%k, %by)\n  %big = f32",
        ).replace('attn/dot_general"}', CARRIED)
        by_array = {c.array: c for c in hlo.Program(text).collectives(MESH)}
        assert by_array["bf16[16,8]"].times == times


def test_a_collective_that_runs_beside_others_is_one():
    """The compiler for TPUs writes it out in each fusion that it overlaps with."""
    piece = """
%NAME (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %g = bf16[16,8] all-gather(%p), replica_groups=GROUPS, attributes={chain_id="CHAIN"}
}
"""
    text, calls = TEXT, ""
    for name, chain in (("start", 4), ("middle", 4), ("done", 4), ("another", 5)):
        text = piece.replace("NAME", name).replace("CHAIN", str(chain)) + text
        calls += f"  %{name}c = bf16[16,8] fusion(%w), kind=kCustom, calls=%{name}\n"
    text = text.replace("  %gd = ", calls + "  %gd = ").replace("GROUPS", "[2,4]<=[8]")
    found = hlo.Program(text).collectives(MESH)
    assert sum(c.times for c in found if c.array == "bf16[16,8]") == 5 * (1 + 2)


def test_strided_groups_are_those_of_an_outer_axis():
    for groups in ("{{0,4},{1,5},{2,6},{3,7}}", "[4,2]<=[2,4]T(1,0)"):
        found = hlo.Program(TEXT.replace("GROUPS", groups)).collectives(MESH)
        assert {c.axes for c in found if c.kind == "all-gather"} == {"data"}


def test_the_largest_arrays_have_their_operation():
    largest = hlo.Program(TEXT).largest()
    assert largest[0] == hlo.Buffer(4 * 2**20, "f32[1024,1024]", "blocks/attn/dot_general")


def test_a_compiled_program_is_read_as_it_is():
    """Seven blocks, each of which gathers its kernel over fsdp."""
    mesh = device_mesh.make_mesh(MESH, 8)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    def blocks(x, w):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

        return jax.lax.scan(body, x, w)[0]

    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((7, 32, 32), jnp.float32, sharding=split)
    text = jax.jit(blocks, out_shardings=rows).lower(x, w).compile().as_text()
    collectives = hlo.Program(text).collectives(MESH)
    gathers = [c for c in collectives if c.kind == "all-gather"]
    assert sum(c.times * c.bytes for c in gathers) == 7 * 32 * 32 * 4
    assert {c.axes for c in gathers} == {"fsdp"}
    assert compiled.unwanted(collectives, 32 * 32) == []

    everywhere = NamedSharding(mesh, PartitionSpec())
    text = jax.jit(blocks, out_shardings=everywhere).lower(x, w).compile().as_text()
    (line,) = compiled.unwanted(hlo.Program(text).collectives(MESH), 32 * 32)
    assert "f32[64,32] is gathered over data,fsdp, 1 times a step" in line


# What is kept.


def planned_run(**changes):
    config, _ = load_config("configs/lm_transformer.py")
    changes = {"size": 1e5, "batch.size": 8, "data.context": 64, **changes}
    changes |= {"horizon.unit": "steps", "horizon.amount": 4.0}
    config, problems = validation.override(config, changes)
    assert not problems
    return validated(config), cluster.run_without_data(validated(config), 256)


def test_a_program_is_compiled_once(monkeypatch, tmp_path):
    asked, answer = [], {"bytes": {"total": 8}, "errors": [], "seconds": 1.0}
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "_ask_child", lambda *args: asked.append(args) or answer)
    config, run = planned_run()
    target = targets.Target("cpu:8", "cpu", "cpu", "", 8)

    def found(mesh=MESH, target=target, config=config):
        return compiled.compile_for(config, 256, run, mesh, target)

    assert not found()["cached"]
    assert found()["cached"]
    assert len(asked) == 1
    assert not found(mesh=MESH | {"data": 1, "fsdp": 8})["cached"]
    assert not found(target=target._replace(text="cpu:9", devices=9))["cached"]
    assert not found(config=planned_run(**{"model.remat": "full"})[0])["cached"]
    config["batch"] = {**config["batch"], "size": None}
    with pytest.raises(BadInput, match=r"--compile: batch\.size is none"):
        found()


# The size rule and the kernels.


def test_no_size_from_1e8_up_writes_its_attention_map():
    """At 1,024 tokens, on GPUs and TPUs, by the size rule and in bfloat16."""
    sizes = [transformer.nth_size(i, activation="swiglu") for i in range(50, 200)]
    large = [s for s in sizes if 12 * s["depth"] * s["width"] ** 2 + 2 * 32768 * s["width"] > 1e8]
    assert len(large) > 100
    for size in large:
        head = size["width"] // size["heads"]
        assert head in (64, 128)
        assert size["width"] % (64 if size["width"] <= 1024 else 128) == 0
        assert size["hidden"] % 256 == 0
        for platform, kernel in (("gpu", "cudnn"), ("tpu", "splash")):
            chosen = attention.choose_implementation("auto", "bfloat16", head, 1024, platform)
            assert chosen == kernel
    assert transformer.nth_size(96, activation="swiglu")["width"] == 4096  # Llama 7B
    assert transformer.nth_size(96, activation="swiglu")["hidden"] == 11008


def test_sizes_up_to_a_width_of_512_are_what_they_were():
    for i, expected in ((12, (96, 4, 4, 256)), (41, (328, 8, 4, 872)), (64, (512, 10, 8, 1368))):
        size = transformer.nth_size(i, activation="swiglu")
        assert tuple(size[k] for k in ("width", "depth", "heads", "hidden")) == expected


# Compilers.

COMPILERS = {"h100:8": "jax_plugins", "tpu:v5e:2x4": "libtpu", "cpu:8": None}
FLAGS = (
    *("--config=configs/lm_transformer.py", "--vocab=8192", "--mesh=fsdp:8", "--json"),
    *("--config.size=1e8", "--config.data.context=1024", "--config.batch.size=32"),
    *("--config.model.dtype=bfloat16", "--config.model.unroll=1", "--config.task.chunk=1024"),
    *("--config.horizon.unit=steps", "--config.horizon.amount=4"),
)


@pytest.mark.slow
@pytest.mark.parametrize("target", list(COMPILERS))
def test_a_program_for_a_machine_that_is_not_here(target, tmp_path, monkeypatch):
    """The smallest size from 1e8 up: no map of the attention where there is a kernel, and the
    gradient of the embedding is summed in full on no device (XLA for CPU has no such sums)."""
    if (module := COMPILERS[target]) and not importlib.util.find_spec(module):
        pytest.skip(f"no {module}: the extra with the compiler for {target} is not installed")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "experiments.plan", f"--compile={target}", *FLAGS]
    if target == "cpu:8":  # where XLA widens what is in half precision
        command += ["--config.model.dtype=float32", "--config.batch.size=8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["compiled"]
    assert found["errors"] == []
    total = found["bytes"]["total"]
    assert sum(found["bytes"].values()) == pytest.approx(2 * total, rel=1e-3)
    assert found["live"] <= total
    assert 0.7 < found["estimated"] / found["live"] < 1.3
    maps = [b["array"] for b in found["buffers"] if b["array"].endswith(",1024,1024]")]
    assert bool(maps) == (target == "cpu:8")
    sums = [c for c in found["collectives"] if c["kind"] == "all-reduce" and c["bytes"] > 2**20]
    assert bool(sums) == (target == "cpu:8")
    if target == "h100:8":  # embedding and head, once for four chunks; gradient of the head
        of_vocab = [c for c in found["collectives"] if "8192" in c["array"]]
        times = dict.fromkeys(("all-gather", "reduce-scatter"), 0)
        for one in of_vocab:
            if one["kind"] in times:
                times[one["kind"]] += one["times"]
        assert times == {"all-gather": 2, "reduce-scatter": 1}
    assert {c["axes"] for c in found["collectives"] if c["bytes"] > 2**16} == {"fsdp"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100:8", "tpu:v5p:2x2x2"])
def test_larger_heads_write_no_map_either(target, tmp_path, monkeypatch):
    """Llama's 7B, whose heads are of 128 features; the smallest size, above, has heads of 64."""
    plan = planned(target, tmp_path, monkeypatch, size=6.7e9, **{"model.remat": "full"})
    assert plan["model"]["width"] // plan["model"]["heads"] == 128
    arrays = [
        (b["array"].partition("[")[2][:-1].split(","), b) for b in plan["compiled"]["buffers"]
    ]
    assert not [b for dims, b in arrays if dims[-2:] == ["1024", "1024"]]
    map_bytes = 32 // 8 * plan["model"]["heads"] * 1024**2 * 2
    assert min(b["bytes"] for _, b in arrays) < map_bytes  # so it would be among them


@pytest.mark.slow
def test_a_recurrence_moves_its_table_in_half_precision(tmp_path, monkeypatch):
    """Gathered so, and only the rows that were looked up go back; what devices receive is what the
    plan derives, to 5 %."""
    plan = planned("h100:8", tmp_path, monkeypatch, config="lm_gru", size=1e7)
    found = plan["compiled"]["collectives"]
    assert not [c for c in found if "8192" in c["array"] and "f32" in c["array"]]
    assert [c["array"][:5] for c in found if c["kind"] == "all-to-all"] == ["bf16["]
    received = sum(c["received"] for c in found)
    assert sum(plan["traffic"].values()) == pytest.approx(received, rel=0.05)


def planned(target, tmp_path, monkeypatch, config="lm_transformer", **changes):
    """What a plan says of bfloat16 and fsdp 8, with the compiler; skips where there is none."""
    module = "libtpu" if target.startswith("tpu") else "jax_plugins"
    if not importlib.util.find_spec(module):
        pytest.skip(f"no {module}: the extra with the compiler for {target} is not installed")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "experiments.plan", f"--compile={target}", *FLAGS]
    command = [a for a in command if "unroll" not in a or config == "lm_transformer"]
    command += [f"--config=configs/{config}.py"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full", "offload"])
def test_what_devices_receive_is_what_the_plan_derives(remat, tmp_path, monkeypatch):
    """To 5 %; what is offloaded is the host's, by the plan and by the compiler."""
    plan = planned("h100:8", tmp_path, monkeypatch, **{"model.remat": remat})
    found = plan["compiled"]
    received = sum(c["received"] for c in found["collectives"])
    assert sum(plan["traffic"].values()) == pytest.approx(received, rel=0.05)
    fields = plan["model"]
    tokens = 32 // 8 * 1024
    kept = 5 * fields["depth"] * tokens * fields["width"] * 2 if remat == "offload" else 0
    assert found["host"] == pytest.approx(kept, rel=0.02)
    zero = 2 * 3 * 7 / 8 * plan["params"]  # ZeRO's three times the parameters are not that near
    assert (sum(plan["traffic"].values()) == pytest.approx(zero, rel=0.05)) == (remat == "none")


@pytest.mark.slow
@pytest.mark.parametrize("case", list(gpu.CASES))
def test_the_benchmark_of_a_gpu_compiles_for_one(case, tmp_path, monkeypatch, capsys):
    """124M and 350M parameters, in bfloat16: what make bench-gpu trains where there is a card."""
    if not importlib.util.find_spec("jax_plugins"):
        pytest.skip("no jax_plugins: the extra with the compiler for h100 is not installed")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "BATCHES", gpu.BATCHES[-1:])
    assert gpu.compile_all([case], "h100:1") == 0
    text = capsys.readouterr().out
    assert f"{case}, " in text
    assert "batch 4: " in text
    assert "does not fit" not in text
    with pytest.raises(SystemExit, match="--compile=b52:1: expected h100:8"):
        gpu.compile_all([case], "b52:1")


def test_a_sum_of_which_a_part_is_kept_is_scattered():
    """As the compiler for TPUs writes it; a sum that is kept whole is not."""
    fusion = """
%NAME (p: bf16[16,8]) -> bf16[4,8] {
  %sum = bf16[16,8] all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = bf16[4,8] dynamic-slice(%sum, %at), dynamic_slice_sizes={4,8}
}

ENTRY %main (p: bf16[16,8]) -> bf16[4,8] {
  ROOT %f = bf16[4,8] fusion(%p), kind=kCustom, calls=%NAME
}
"""
    (scattered,) = hlo.Program(fusion.replace("NAME", "all-reduce-scatter.7")).collectives(MESH)
    (whole,) = hlo.Program(fusion.replace("NAME", "fused_computation")).collectives(MESH)
    assert (scattered.kind, whole.kind) == ("reduce-scatter", "all-reduce")
    assert (scattered.axes, scattered.bytes) == ("fsdp", 256) == (whole.axes, whole.bytes)
    assert whole.received == 2 * scattered.received == 2 * 256 * 3 / 4
