"""Plans for machines that are not here: against what is known of them, and of the program."""

import json
import math
import subprocess
import sys

import pytest

from research.config import validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.models import accounting
from research.parallel import device_mesh
from research.planning import (
    cluster,
    hardware,
    jaxpr_liveness,
    jaxpr_sharding,
    memory,
    roofline,
)

pytestmark = pytest.mark.usefixtures("barely_optimized")

H100 = hardware.MACHINES["h100"]
# MPT (MosaicML, llm-foundry, scripts/train/benchmarking/README.md, H100 80GB BF16, full sharding):
# width, depth, devices, batch of one part, parts, remat, and the MFU that was measured.
PUBLISHED = {
    "1b": (2048, 24, 8, 112, 1, "none", 0.418),
    "7b": (4096, 32, 8, 48, 1, "none", 0.464),
    "13b": (5120, 40, 64, 128, 1, "none", 0.399),
    "70b": (8192, 80, 64, 512, 4, "full", 0.426),
}


def config(**changes):
    out, _ = load_config("configs/lm_gpt2.py")
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    out, problems = validation.override(out, {"model.dtype": "bfloat16", **changes})
    assert not problems
    return validated(out)


def large(width, depth, batch, parts=1, remat="none", **changes):
    return config(
        model__width=width,
        model__depth=depth,
        model__heads=width // 128,
        model__kv_heads=width // 128,
        model__hidden=4 * width,
        model__remat=remat,
        batch__size=batch * parts,
        batch__grad_accumulation=parts,
        data__context=2048,
        horizon__amount=1e12,  # for the most tokens in a step
        **changes,
    )


@pytest.fixture(scope="module")
def run():
    return cluster.run_without_data(large(1024, 4, 64), vocab=32768)


def mesh(data=1, fsdp=1, tensor=1):
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


# Those that keep less first.
REMAT = ("offload", "full", "projections", "dots", "none")

# What is counted.


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("full", 1)])
def test_the_kernels_have_the_flops_of_the_accounting(remat, again):
    run = cluster.run_without_data(large(256, 3, 8, remat=remat), vocab=512)
    for sizes in (mesh(), mesh(fsdp=4), mesh(data=2, tensor=2)):
        program = memory.trace_step(run, device_mesh.abstract_mesh(sizes))
        found = sum(k.times * k.flops for k in jaxpr_liveness.list_kernels(program))
        parts = dict(run.model.forward_flops())
        blocks = sum(parts[k] for k in ("projections", "feed_forward", "attention_full"))
        blocks -= parts["feed_forward"] / 2  # what the last product gives is asked for by nobody
        whole = accounting.step_flops(run.model, run.batch) + again * run.batch * blocks
        assert found * math.prod(sizes.values()) == pytest.approx(whole, rel=0.01), sizes


def test_a_block_sums_four_times_the_stream_over_the_tensor_axis():
    """Half of each to scatter sums and half to gather what is read; and the gradients of the two
    norms' gains, whose tokens lie on all devices."""

    def summed(depth, tensor=2):
        run = cluster.run_without_data(large(256, depth, 4), vocab=512)
        program = memory.trace_step(run, device_mesh.abstract_mesh(mesh(tensor=tensor)))
        return sum(k.times * k.summed for k in jaxpr_liveness.list_kernels(program))

    stream = 4 * 2048 * 256 * 2
    assert summed(4) - summed(3) == 4 * stream + 2 * 4 * 256
    assert summed(4, tensor=1) == 0


def test_traffic_is_that_of_the_products(run):
    """Without remat that of ZeRO stage 3 (Rajbhandari et al. 2020): a layer is gathered forward and
    backward and its gradient scattered, three times the parameters in the type of products. A table
    is gathered to be looked up, and what was looked up exchanged in place of its gradient; a head
    that is read in chunks is gathered once."""
    plan = cluster.plan_for_mesh(run, H100, mesh(fsdp=8))
    groups, rows = run.facts["groups"], 64 // 8 * 2048 * 1024
    blocks = groups["attention"] + groups["feed_forward"]
    table = 2 * (2 + 1) * groups["embedding"] + 4 * rows  # looked up in float32, and the head
    whole = 2 * 3 * blocks + table + 2 * groups["position"] + 4 * 2048 * 1024
    assert plan.traffic.fsdp == pytest.approx(7 / 8 * whole, rel=1e-3)
    alone = cluster.plan_for_mesh(run, H100, mesh(data=8))
    sharded = run.facts["params"] - groups["norm"]
    assert alone.traffic.data == pytest.approx(2 * 7 / 8 * 2 * sharded, rel=0.01)
    assert alone.traffic.fsdp == plan.traffic.data == 0
    tensor = cluster.plan_for_mesh(run, H100, mesh(fsdp=8, tensor=4)).traffic.fsdp
    assert tensor == pytest.approx(7 / 8 * ((whole - 4 * rows) / 4 + 4 * rows), rel=0.1)


@pytest.mark.parametrize("parts", [1, 4])
def test_what_is_recomputed_is_gathered_once_more(parts):
    """All of a block but its last product, whose result nobody asks for; in every part."""

    def gathered(remat):
        run = cluster.run_without_data(large(256, 3, 8, parts, remat), vocab=512)
        return run.facts["groups"], cluster.plan_for_mesh(run, H100, mesh(fsdp=8)).traffic.fsdp

    groups, none = gathered("none")
    _, full = gathered("full")
    again = groups["attention"] + groups["feed_forward"] / 2
    assert full - none == pytest.approx(parts * 7 / 8 * 2 * again, rel=1e-6)
    assert gathered("dots")[1] == none
    some = gathered("projections")[1] - none
    assert some == pytest.approx(parts * 7 / 8 * groups["feed_forward"], rel=1e-6)
    assert gathered("offload")[1] - none == some


def test_state_and_gradients_are_sixteen_bytes_a_parameter(run):
    """Parameters, two moments and gradients, each in float32. (ZeRO counts 16 as well: 2 + 2 in
    half precision, and 12 of the optimizer.)"""
    for ways in (1, 8, 64):
        held = cluster.plan_for_mesh(run, H100, mesh(fsdp=ways)).bytes
        state = held.parameters + held.optimizer
        assert state == pytest.approx(12 * run.facts["params"] / ways, rel=0.02)
        assert 4 * held.parameters > state + held.parameters * 0.99


def test_remat_takes_less_and_a_fused_map_nothing(run):
    plan = cluster.plan_for_mesh(run, H100, mesh(fsdp=8), alternatives=True)
    totals = {key: held.total for key, held in plan.alternatives.items()}
    remat = [totals[f"model.remat={name}"] for name in REMAT]
    assert remat == sorted(set(remat))
    assert totals["task.chunk=none"] <= totals["task.chunk=0"]
    assert totals["model.remat=none"] == plan.bytes.total
    written = memory.estimate(run, device_mesh.abstract_mesh(mesh(fsdp=8)), "cpu")
    maps = 8 * 8 * 2048**2 * 2  # rows, heads, T, T, bytes
    assert written.total - plan.bytes.total > run.model.spec.depth * maps


def test_what_is_offloaded_is_the_hosts_where_there_is_another(run):
    """XLA for CPU leaves it where it is."""
    away = cluster.with_execution(run, remat="offload")
    sizes = device_mesh.abstract_mesh(mesh(fsdp=8))
    here, there = (memory.estimate(away, sizes, platform) for platform in ("cpu", "gpu"))
    kept = 5 * 4 * 8 * 2048 * 1024 * 2  # projections and input of 4 blocks, in half precision
    assert here.activations - there.activations == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize("followed", [True, False])
def test_a_parameter_in_another_type_lies_where_the_parameter_does(followed, monkeypatch):
    """What the forward pass keeps of the parameters of the blocks, in half precision, for the
    backward pass."""
    if not followed:
        monkeypatch.setattr(jaxpr_sharding, "CASTS", frozenset())
    memory._program.cache_clear()
    kept = []
    for ways in (1, 8):
        run = cluster.run_without_data(large(1024, 4, 8 * ways), vocab=8192)
        sizes = device_mesh.abstract_mesh(mesh(fsdp=ways))
        kept.append(memory.estimate(run, sizes, "gpu").activations)
    memory._program.cache_clear()
    blocks = 4 * (4 + 2 * 4) * 1024**2
    assert kept[0] - kept[1] == pytest.approx(7 / 8 * blocks * 2 * followed, abs=1e5)


def test_gradients_of_a_block_are_added_up_in_the_type_of_their_products():
    """On GPUs, each device keeping its part; elsewhere terms and sums are counted in float32."""
    run = cluster.run_without_data(large(4096, 2, 8, remat="full"), vocab=256)
    sizes, block = device_mesh.abstract_mesh(mesh(fsdp=8)), (4 + 2 * 4) * 4096**2
    found = {p: memory.estimate(run, sizes, p).temporary for p in ("gpu", "tpu")}
    assert found["tpu"] - found["gpu"] == pytest.approx(block * (4 + 4 - 2 - 4 / 8), rel=1e-3)


# What is known of machines.


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_bound_is_above_what_was_measured_and_not_far(name):
    width, depth, devices, batch, parts, remat, measured = PUBLISHED[name]
    run = cluster.run_without_data(large(width, depth, batch, parts, remat), vocab=50432)
    plan = cluster.plan_for_mesh(run, H100, mesh(fsdp=devices))
    assert 0.5 * plan.mfu < measured < plan.mfu


def test_links_within_a_node_are_those_of_the_node():
    moved = roofline.Traffic(data=1e9, fsdp=1e9, tensor=1e9)
    sizes = mesh(data=8, fsdp=8, tensor=8)
    seconds = roofline.step_seconds(0.0, moved, sizes, H100)
    assert seconds.tensor == pytest.approx(1e9 / H100.within)
    assert seconds.fsdp == pytest.approx(1e9 / H100.between)  # one of each group in a node
    whole = roofline.step_seconds(0.0, moved, mesh(fsdp=64), H100)
    assert whole.fsdp == pytest.approx(1e9 * (7 / 8) / (63 / 64) / (8 * H100.between))
    assert roofline.step_seconds(0.0, moved, mesh(fsdp=8), H100).fsdp == 1e9 / H100.within


@pytest.mark.parametrize("name", list(hardware.MACHINES))
def test_every_machine_says_where_its_numbers_are_from(name):
    machine = hardware.machine_named(name)
    assert machine.sources
    assert all(value > 0 for value in (*machine.rates.values(), *machine[1:6]))


# Meshes.


def test_the_best_mesh_fits_and_none_is_faster(run):
    plan = cluster.best_mesh(run, H100, 16)
    others = [cluster.plan_for_mesh(run, H100, m) for m in cluster.candidate_meshes(run, H100, 16)]
    assert len(others) > 5
    assert plan.fits
    assert plan.seconds.step == min(p.seconds.step for p in others if p.fits)
    assert max(p.seconds.step for p in others) > plan.seconds.step


def test_the_largest_model_fits_and_the_next_does_not():
    small = hardware.MACHINES["h100"]._replace(memory=4e7)
    filled = ("width", "depth", "heads", "kv_heads", "hidden")
    asked = config(size=1e6, **{f"model__{name}": None for name in filled})
    params, where = cluster.largest_size(asked, 512, small, 2, mesh(fsdp=2))
    for factor, fits in ((1.0, True), (1.3, False)):
        run = cluster.run_without_data(asked | {"size": factor * params}, 512)
        assert cluster.plan_for_mesh(run, small, where).fits == fits


@pytest.mark.parametrize(
    ("text", "devices", "found"),
    [
        ("", 8, None),
        ("fsdp:4,tensor:2", 8, mesh(1, 4, 2)),
        ("data:-1,fsdp:64,tensor:8", 4096, mesh(8, 64, 8)),
    ],
)
def test_a_mesh_is_given_or_sought(text, devices, found):
    assert cluster.parse_mesh(config(), text, devices) == found
    assert cluster.parse_mesh(config(mesh__fsdp=4), "", 8) == mesh(2, 4, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fsdp:3", "not of so many devices"),
        ("fsdp", "expected AXIS:DEVICES"),
        ("pipe:8", "expected AXIS:DEVICES"),
        ("fsdp:0", "expected AXIS:DEVICES"),
        ("fsdp:-1,data:-1", "not of so many devices"),
        ("fsdp:16", "not of so many devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_rejected(text, words):
    with pytest.raises(BadInput, match=words):
        cluster.parse_mesh(config(), text, 8)


def test_no_mesh_for_a_batch_that_nothing_divides():
    run = cluster.run_without_data(large(256, 2, 3), vocab=509)
    with pytest.raises(BadInput, match="no mesh of so many devices"):
        cluster.best_mesh(run, H100, 16)


# The command.


def planned(*flags):
    command = [sys.executable, "-m", "experiments.plan", "--config=configs/lm_gpt2.py"]
    return subprocess.run([*command, *flags], capture_output=True, text=True)


def test_the_command_plans_without_the_data():
    done = planned(
        *("--devices=64", "--device=a100", "--mesh=data:2,fsdp:8,tensor:4", "--vocab=50304"),
        *(
            "--config.data.path=nowhere.bin",
            "--config.data.context=1024",
            "--config.model.width=768",
        ),
        *("--config.batch.size=64", "--config.model.hidden=3072", "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mesh"] == mesh(2, 8, 4)
    assert found["fits"]
    assert found["bytes"]["total"] == pytest.approx(
        sum(v for k, v in found["bytes"].items() if k != "total")
    )
    assert 0 < found["mfu"] < 1


def test_bad_input_ends_with_2():
    for flags, words in (
        (["--device=b52"], "there is none for it; expected one of h100, h200, a100, v5e"),
        (["--device=cpu"], "--device=cpu: a plan is a bound from data sheets"),
        (["--compile=b52:8"], "--compile=b52:8: expected h100:8, h100:1x8x8"),
        (["--compile=cpu:8", "--devices=8"], "names the devices; leave out --device, --devices"),
        (["--devices=0"], "--devices=0: expected at least 1"),
        (["--vocab=0"], "--vocab=0: expected at least 1"),
    ):
        done = planned(*flags)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_parts_of_a_batch_are_told_where_there_are_several(run):
    plan = cluster.plan_for_mesh(run, H100, mesh(fsdp=8))
    assert "parts" not in cluster.format_plan(plan, run, "h100", None)
    parted = cluster.with_execution(run, grad_accumulation=2)
    assert f"batch {run.batch}, in 2 parts, " in cluster.format_plan(plan, parted, "h100", None)
