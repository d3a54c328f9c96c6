"""The compiled program on eight devices: what lies where, what the devices say to each other, and
that the bytes predicted without compiling are those that XLA reserves."""

import math
import re

import jax
import numpy as np
import pytest

from research.config import validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.models import activation_sharding, head_sharding, parameter_sharding
from research.parallel import device_mesh
from research.params import leaves_by_path
from research.planning import cluster, compiled, hlo, memory
from research.training.make_run import make_run
from research.training.trainer import Trainer, place_state
from tests.parallel.test_sharding import WIDE

pytestmark = pytest.mark.usefixtures("barely_optimized")

DEPTH, WIDTH, HIDDEN, T, B, V = 4, 64, 192, 64, 16, 256
BLOCK = {
    "model.width": WIDTH,
    "model.heads": 4,
    "model.kv_heads": 4,
    "model.hidden": HIDDEN,
    "model.depth": DEPTH,
    "data.context": T,
    "batch.size": B,
    "loop.steps_per_dispatch": 2,
}
FSDP = {"data": 1, "fsdp": 8, "tensor": 1}
ALL = {"data": 2, "fsdp": 2, "tensor": 2}
KERNELS = {(WIDTH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all"
COLLECTIVE = re.compile(rf"= (.*?) ({KINDS})(?:-start)?\(")


class Program:
    """A compiled dispatch and its collectives: (kind, shapes, whether in the loop over blocks)."""

    def __init__(self, run, sizes):
        self.run, self.mesh = run, device_mesh.make_mesh(sizes, run.batch)
        self.trainer = Trainer(run, self.mesh)
        self.compiled = self.trainer.lower().compile()
        self.collectives = []
        for line in self.compiled.as_text().splitlines():
            if found := COLLECTIVE.search(line):
                shapes = [
                    tuple(int(n) for n in dims.split(",") if n)
                    for dims in re.findall(r"\w+\[([\d,]*)\]", found[1])
                ]
                inside = line.count("/while/") > 1  # of the loop of steps, and of that of blocks
                self.collectives.append((found[2], shapes, inside or "/blocks/" in line))

    def in_blocks(self, kind):
        return [shapes for name, shapes, inside in self.collectives if inside and name == kind]

    def arguments(self):
        """{path: bytes on one device} of the state, by the shardings of the compiled program."""
        leaves, shardings = (
            leaves_by_path(self.trainer.abstract),
            self.compiled.input_shardings[0][0],
        )
        lies = leaves_by_path(shardings)
        return {
            path: (math.prod(lies[path].shard_shape(x.shape)) * 4, x.size * 4)
            for path, x in leaves.items()
        }


OTHER = {"batch.size": 2 * B}  # so that no cached trace of an unchanged program is used


def changed_program(config, mesh, module, name, function):
    """The program as it would be if the library's function did something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, function)
        return Program(make_run(config), mesh)


@pytest.fixture(scope="module")
def fsdp(tiny):
    return Program(make_run(tiny(BLOCK)), FSDP)


@pytest.fixture(scope="module")
def all_axes(tiny):
    return Program(make_run(tiny(BLOCK)), ALL)


@pytest.fixture(scope="module")
def unsaid(tiny):
    """The same, of a family that does not say where its rows lie."""
    return changed_program(
        tiny(BLOCK | OTHER), FSDP, activation_sharding, "_constrain", lambda x, axes: x
    )


@pytest.mark.parametrize(("name", "ways"), [("fsdp", 8), ("all_axes", 4)])
def test_parameters_and_moments_fall_with_the_axes(name, ways, request):
    found = request.getfixturevalue(name).arguments()
    matrices = [path for path in found if path.endswith(("kernel", "embedding"))]
    assert sum("mu/" in path for path in matrices) == sum("params/" in path for path in matrices)
    for path in matrices:
        part, whole = found[path]
        assert part * ways == whole, path
    norms = [found[path] for path in found if "norm" in path]  # few numbers, on every device
    assert norms
    assert all(part == whole for part, whole in norms)


def test_the_arguments_are_these_bytes(fsdp):
    held = sum(part for part, _ in fsdp.arguments().values())
    batches = 2 * 2 * (B // 8) * T * 4
    hyper = 4 * jax.tree.structure(fsdp.run.hyper).num_leaves
    found = fsdp.compiled.memory_analysis().argument_size_in_bytes
    assert 0 <= found - held - batches <= hyper + 64


def per_layer(program):
    """Whether kernels are gathered a layer at a time, and nothing more of the model at once."""
    inside = {shape for shapes in program.in_blocks("all-gather") for shape in shapes}
    gathered = [
        s for kind, shapes, _ in program.collectives if kind == "all-gather" for s in shapes
    ]
    largest = max(map(math.prod, gathered), default=0)
    return inside == KERNELS and largest <= V * WIDTH and all(len(s) < 3 for s in gathered)


def test_fsdp_gathers_one_layer_at_a_time(fsdp, unsaid):
    assert per_layer(fsdp)
    assert len(fsdp.in_blocks("all-gather")) == 2 * 7  # seven kernels, forward and backward
    assert not per_layer(unsaid)


@pytest.fixture(scope="module")
def tokens_whole(tiny):
    """The same, of a transformer that leaves its tokens whole on the tensor axis."""
    return changed_program(
        tiny(BLOCK | OTHER), ALL, activation_sharding, "_split_tokens", lambda x: None
    )


def test_the_tensor_axis_splits_the_tokens_between_blocks(all_axes, tokens_whole):
    """What every block keeps of the stream for the backward pass is a device's own part."""

    def kept(program):
        local = program.run.batch * T // 4
        text = program.compiled.as_text()
        return [f"f32[{DEPTH},{local // ways},{WIDTH}]" in text for ways in (1, 2)]

    assert kept(all_axes)[1]
    assert kept(tokens_whole) == [True, False]


CHUNKED = BLOCK | {"task.chunk": B * T // 4 // 8, "model.width": 96}


@pytest.fixture(scope="module")
def chunked(tiny):
    return Program(make_run(tiny(CHUNKED)), ALL)


@pytest.fixture(scope="module")
def added_in_each_chunk(tiny):
    """The same, with a loop over chunks that the partitioner splits."""

    def by_partitioner(spec, function, rows, weights):
        return function(*rows, *[head_sharding.head(spec, w) for w in weights])

    return changed_program(tiny(CHUNKED | OTHER), ALL, head_sharding, "over_rows", by_partitioner)


def test_the_gradient_of_a_head_is_added_up_once(chunked, added_in_each_chunk):
    """And not in each of the four chunks, or more, of a batch; the head is gathered once."""

    def times(program, *kinds):
        found = hlo.Program(program.compiled.as_text()).collectives(dict(program.mesh.shape))
        head = f"[96,{V // 2}]"
        return sum(c.times for c in found if c.kind in kinds and c.array.endswith(head))

    assert times(chunked, "all-reduce", "reduce-scatter") == 1
    assert times(chunked, "all-gather") == 1
    assert times(added_in_each_chunk, "all-reduce", "reduce-scatter") >= 4


BOTH = {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.fixture(scope="module")
def both(tiny):
    return Program(make_run(tiny(BLOCK)), BOTH)


@pytest.fixture(scope="module")
def features_late(tiny):
    """The same, where rows are added up with all of their features."""
    constrain = parameter_sharding.constrain

    def unless_features(x, axes):
        return x if axes == ("data", "fsdp") else constrain(x, axes)

    return changed_program(
        tiny(BLOCK | OTHER), BOTH, parameter_sharding, "constrain", unless_features
    )


def test_the_gradient_of_an_embedding_is_whole_on_no_device(both, features_late):
    """Also where data and fsdp both split the rows: one device adds up its own features."""

    def added(program):
        found = hlo.Program(program.compiled.as_text()).collectives(dict(program.mesh.shape))
        return {c.axes for c in found if c.kind == "all-reduce" and c.array == f"f32[{V},{WIDTH}]"}

    assert added(both) == set()
    assert added(features_late) == {"data,fsdp"}


def rows_move(program):
    """Whether, within the blocks, devices exchange the activations of more rows than their own."""
    rows = program.run.batch * T
    sums = [s for shapes in program.in_blocks("all-reduce") for s in shapes]
    return any(len(s) > 1 and s[0] == rows for s in sums)


def test_rows_stay_where_their_examples_are(fsdp, all_axes, unsaid):
    assert not rows_move(fsdp)
    assert not rows_move(all_axes)
    assert rows_move(unsaid)


def test_a_tensor_parallel_block_has_four_all_reduces(all_axes, fsdp):
    """Two forward, of what attention and feed-forward add to the stream; two backward, of the
    gradient of what goes into each (Shoeybi et al. 2019), which is one operation for the kernels
    that read it. All others sum gradients of parameters over devices with other rows."""
    stream = (B * T // 4, WIDTH)

    def of_the_stream(program):
        sums = program.in_blocks("all-reduce")
        return sorted(len(shapes) for shapes in sums if set(shapes) == {stream})

    assert of_the_stream(all_axes) == [1, 1, 2, 3]  # out; down; gate and up; query, key and value
    assert of_the_stream(fsdp) == []
    assert not all_axes.in_blocks("all-to-all")


@pytest.mark.parametrize("name", ["fsdp", "all_axes"])
def test_bytes_are_predicted_without_compiling(name, request):
    """What is compared: arguments + results + temporaries - those that share a place."""
    program = request.getfixturevalue(name)
    run, mesh = program.run, program.mesh
    found = compiled.Reserved.from_compiled(program.compiled).peak
    assert memory.estimate(run, mesh).dispatch == pytest.approx(found, rel=0.1)
    wrong = device_mesh.abstract_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    assert memory.estimate(run, wrong).dispatch != pytest.approx(found, rel=0.005)


@pytest.mark.parametrize("name", ["fsdp", "all_axes"])
def test_what_a_plan_says_of_a_program_is_in_it(name, request):
    """Bytes by class, collectives of every block, and nothing that lies or moves unasked."""
    program = request.getfixturevalue(name)
    found = compiled.describe(program.compiled, program.trainer)
    assert found["errors"] == []
    held = compiled.Reserved.from_compiled(program.compiled)
    assert found["bytes"]["total"] == found["live"] == held.peak  # on CPU no gaps are known
    parts = {k: n for k, n in found["bytes"].items() if k != "total"}
    assert sum(parts.values()) == pytest.approx(held.peak, rel=1e-3)
    parameters = sum(n for path, (n, _) in program.arguments().items() if path.startswith("params"))
    assert parts["parameters"] == parameters
    kernels = [c for c in found["collectives"] if "mlp" in c["operation"]]
    assert kernels
    assert all(c["times"] % DEPTH == 0 for c in kernels)
    assert {c["axes"] for c in kernels} <= {"fsdp", "tensor", "data,fsdp", "data"}
    assert max(b["bytes"] for b in found["buffers"]) == found["buffers"][0]["bytes"]
    # The twin: were the largest parameter smaller, what is gathered would be too much.
    collectives = hlo.Program(program.compiled.as_text()).collectives(dict(program.mesh.shape))
    assert compiled.unwanted(collectives, WIDTH)


def test_a_state_that_lies_otherwise_is_told(fsdp):
    """The twin of `errors` being empty: the same program, asked to lie as on another mesh."""
    other = device_mesh.make_mesh({"data": 8, "fsdp": 1, "tensor": 1}, fsdp.run.batch)
    found = compiled._misplaced(fsdp.compiled, place_state(fsdp.run, other)[1])
    assert any("blocks/mlp/up/kernel comes in as" in line for line in found)
    assert compiled._misplaced(fsdp.compiled, fsdp.trainer.abstract) == []


def test_the_steps_of_a_recurrence_wait_for_nobody():
    """Every device takes its rows through all of time; only sums of gradients are exchanged."""
    config, _ = load_config("configs/lm_gru.py")
    changes = {k: v for k, v in BLOCK.items() if k in ("model.width", "data.context", "batch.size")}
    small = {"size": None, "model.depth": 2, "eval.examples": 16, "data.heldout": 0.01}
    config, problems = validation.override(config, changes | small)
    assert not problems
    run = cluster.run_without_data(validated(config), V)
    program = Program(run, {"data": 2, "fsdp": 4, "tensor": 1})
    lines = [line for line in program.compiled.as_text().splitlines() if COLLECTIVE.search(line)]
    assert not [line for line in lines if "recurrent/while/body/closed_call" in line]
    assert len(lines) > 4
    gathered = [s for kind, found, _ in program.collectives if kind == "all-gather" for s in found]
    assert all(len(s) < 3 for s in gathered), gathered


def test_a_mesh_that_splits_a_head_is_rejected(tiny):
    run = make_run(tiny(WIDE | {"model.kv_heads": 2}))
    with pytest.raises(BadInput, match=r"mesh\.tensor: 4 does not divide model\.kv_heads"):
        place_state(run, device_mesh.abstract_mesh({"data": 2, "fsdp": 1, "tensor": 4}))


def test_layout_is_nothing_without_a_mesh():
    x = np.ones((3, 5), np.float32)
    assert activation_sharding.shard_rows(x) is x
    mesh = device_mesh.abstract_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    traced = jax.make_jaxpr(device_mesh.with_mesh_names(mesh, activation_sharding.shard_rows))(
        np.ones((8, 5), np.float32)
    )
    assert "sharding_constraint" in str(traced)
