"""One program on any mesh: the same losses, and every leaf where the rules put it."""

import jax
import numpy as np
import optax.contrib
import pytest
from jax.sharding import PartitionSpec as P

from research.errors import BadInput
from research.parallel import device_memory, device_mesh, sharding
from research.params import leaves_by_path
from research.training.make_run import make_run
from research.training.step import TrainState
from research.training.trainer import Trainer
from tests.params import slow_but
from tests.training.test_optimizers import NUMBERS

pytestmark = pytest.mark.usefixtures("barely_optimized")

MESHES = {
    "data 1": {"data": 1, "fsdp": 1, "tensor": 1},
    "data 2": {"data": 2, "fsdp": 1, "tensor": 1},
    "data 4": {"data": 4, "fsdp": 1, "tensor": 1},
    "data 8": {"data": 8, "fsdp": 1, "tensor": 1},
    "data 4, tensor 2": {"data": 4, "fsdp": 1, "tensor": 2},
    "data 2, tensor 4": {"data": 2, "fsdp": 1, "tensor": 4},
    "fsdp 8": {"data": 1, "fsdp": 8, "tensor": 1},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
OFTEN = ("data 2, fsdp 2, tensor 2",)
WIDE = {"model.width": 32, "model.heads": 4, "model.kv_heads": 4, "model.hidden": 64}


def trainer(config, sizes):
    run = make_run(config)
    return Trainer(run, device_mesh.make_mesh(sizes, run.batch))


def losses(made, steps=50, room=10):
    state, out = made.init(), []
    for step in range(0, steps, room):
        state, metrics = made.steps(state, made.batches(step, room, room), room)
        out += list(np.asarray(metrics["train_loss"]))
    return np.array(out)


@pytest.fixture(scope="module")
def one_device(tiny):
    return losses(trainer(tiny(WIDE), MESHES["data 1"]))


@pytest.mark.parametrize("name", slow_but(OFTEN, list(MESHES)[1:]))
def test_losses_of_fifty_steps_are_equal_on_every_mesh(name, tiny, one_device):
    made = trainer(tiny(WIDE), MESHES[name])
    np.testing.assert_allclose(losses(made), one_device, rtol=1e-5)


@pytest.mark.slow
def test_a_leaf_that_is_not_divided_is_rejected_or_on_every_device_and_named(tiny, caplog):
    config, mesh = WIDE | {"model.hidden": 66}, MESHES["data 2, tensor 4"]
    with pytest.raises(BadInput, match=r"mesh.tensor: 4 .*mlp/\w+/kernel, shape .*replicate"):
        trainer(tiny(config), mesh)
    alone = losses(trainer(tiny(config), MESHES["data 1"]), 20)
    made = trainer(tiny(config | {"mesh.indivisible": "replicate"}), mesh)
    found = leaves_by_path(made.abstract.params)
    named = [path for path, leaf in found.items() if path in caplog.text]
    assert named == [path for path in found if "/mlp/" in path]
    assert all(found[path].sharding.is_fully_replicated for path in named)
    assert found["blocks/attn/query/kernel"].sharding.spec == P(None, "fsdp", "tensor")
    np.testing.assert_allclose(losses(made, 20), alone, rtol=1e-5)


def test_losses_of_another_data_order_are_not_equal(tiny, one_device):
    made = trainer(tiny(WIDE | {"data.seed": 1}), MESHES["data 8"])
    assert not np.allclose(losses(made), one_device, rtol=1e-3)


def test_every_leaf_lies_where_the_rules_say(tiny):
    state = trainer(tiny(WIDE), MESHES["data 2, fsdp 2, tensor 2"]).init()
    expected = {
        "params/embed/embedding": P("tensor", "fsdp"),
        "params/blocks/attn/query/kernel": P(None, "fsdp", "tensor"),
        "params/blocks/attn/out/kernel": P(None, "tensor", "fsdp"),
        "params/blocks/mlp/down/kernel": P(None, "tensor", "fsdp"),
        "params/head/kernel": P("fsdp", "tensor"),
        "params/final_norm/scale": P(None),
        "step": P(),
    }
    found = {path: leaf.sharding.spec for path, leaf in leaves_by_path(state).items()}
    for path, spec in expected.items():
        assert found[path] == spec, path
    for path, spec in found.items():  # the moments lie where their parameter lies
        for moment in ("mu/", "nu/"):
            if moment in path:
                assert spec == found["params/" + path.partition(moment)[2]], path


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "optimizer"), [("complete_p", "adamw"), ("spectral", "muon")])
def test_a_rule_of_transfer_takes_the_same_steps_on_a_mesh(rule, optimizer, tiny):
    base = {"rule": rule, "width": 8, "depth": 1, "head_size": 4}
    config = optimized(optimizer) | {f"optim.transfer.{key}": x for key, x in base.items()}
    alone = losses(trainer(tiny(config), MESHES["data 1"]), 10)
    made = trainer(tiny(config), MESHES["data 2, fsdp 2, tensor 2"])
    np.testing.assert_allclose(losses(made, 10), alone, rtol=1e-5)
    without = tiny(config | {"optim.transfer.rule": "none"})
    assert not np.allclose(losses(trainer(without, MESHES["data 1"]), 10), alone, rtol=1e-3)


def optimized(name):
    """A transformer trained by this optimizer; as wide as Adafactor needs to factor."""
    numbers = {f"optim.optimizer.{key}": value for key, value in NUMBERS[name].items()}
    factored = {"model.width": 128, "model.hidden": 128} if name == "adafactor" else {}
    return WIDE | factored | {"optim.optimizer.name": name, "optim.ema": 0.9} | numbers


@pytest.mark.parametrize(
    "name", slow_but(OFTEN, [name for name in NUMBERS if name != "adamw"])
)  # that is above
def test_every_optimizer_takes_the_same_steps_on_a_mesh(name, tiny):
    config = tiny(optimized(name))
    alone = losses(trainer(config, MESHES["data 1"]), 10)
    meshed = losses(trainer(config, MESHES["data 2, fsdp 2, tensor 2"]), 10)
    np.testing.assert_allclose(meshed, alone, rtol=1e-5)
    assert min(alone) < alone[0]
    faster = trainer(tiny(optimized(name) | {"optim.lr": 0.21}), MESHES["data 1"])
    assert not np.allclose(losses(faster, 10), alone, rtol=1e-5)


@pytest.mark.parametrize("name", list(NUMBERS))
def test_all_that_is_shaped_like_a_parameter_lies_where_it_lies(name, tiny):
    made = trainer(tiny(optimized(name)), MESHES["data 2, fsdp 2, tensor 2"])
    abstract = leaves_by_path(made.abstract)
    params = leaves_by_path(made.abstract.params)
    for path, leaf in abstract.items():
        of = max((p for p in params if path.endswith(f"/{p}")), key=len, default=None)
        if of and leaf.shape == params[of].shape:
            assert leaf.sharding.spec == params[of].sharding.spec, path
        else:
            assert leaf.sharding.is_fully_replicated, path
            assert of is None or path.split("/")[-len(of.split("/")) - 1] in ("v_row", "v_col", "v")
    factored = [p for p, x in abstract.items() if "/v_row/" in p and x.shape != (1,)]
    assert bool(factored) == (name == "adafactor")


def test_a_leaf_that_no_axis_of_its_parameter_explains_is_an_error():
    def placed(params, moment):
        shape = lambda s: jax.ShapeDtypeStruct(s, np.float32)  # noqa: E731
        state = TrainState(shape(()), {"w": shape(params)}, {"mu": {"w": shape(moment)}})
        mesh = device_mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, 8)
        return sharding.state_shardings(state, (("w", ("fsdp", "tensor")),), mesh).opt_state

    assert placed((4, 6), (4, 6))["mu"]["w"].spec == P("fsdp", "tensor")
    for reduced in ((4,), (6,), (1,)):
        assert placed((4, 6), reduced)["mu"]["w"].is_fully_replicated
    for wrong in ((6, 4), (3,), (4, 3), (2, 4, 6), ()):
        with pytest.raises(BadInput, match=r"opt_state/mu/w: shape .*, but w has"):
            placed((4, 6), wrong)


def test_an_optimizer_may_keep_numbers_of_its_own():
    """Prodigy's state has scalars beside the moments; nothing but its row in a table names it."""
    shape = jax.ShapeDtypeStruct((4, 6), np.float32)
    opt_state = jax.eval_shape(optax.contrib.prodigy().init, {"w": shape})
    state = TrainState(jax.ShapeDtypeStruct((), np.int32), {"w": shape}, opt_state)
    mesh = device_mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, 8)
    rules = (("w", ("fsdp", "tensor")),)
    placed = leaves_by_path(sharding.state_shardings(state, rules, mesh).opt_state)
    specs = {path: x.spec for path, x in placed.items()}
    assert specs.pop("estim_lr") == P()
    moments = [spec for path, spec in specs.items() if path.endswith("/w")]
    assert set(moments) == {P("fsdp", "tensor")}
    assert len(moments) > 1


def test_a_step_keeps_every_leaf_in_its_place(tiny):
    made = trainer(tiny(WIDE), MESHES["data 2, fsdp 2, tensor 2"])
    before = jax.tree.map(lambda x: x.sharding, made.init())
    after, _ = made.steps(made.init(), made.batches(0, 2, 2), 2)
    assert before == jax.tree.map(lambda x: x.sharding, after)


def test_bytes_of_the_matrices_fall_with_the_fsdp_axis(tiny):
    def matrices(sizes):
        state = trainer(tiny(WIDE), sizes).init()
        return device_memory.bytes_per_device([x for x in jax.tree.leaves(state) if x.ndim > 2])

    whole = matrices(MESHES["data 8"])
    assert matrices(MESHES["fsdp 8"]) * 8 == whole
    assert matrices(MESHES["data 2"]) == whole


def test_init_does_not_depend_on_the_mesh(tiny):
    states = [
        trainer(tiny(WIDE), MESHES[name]).init() for name in ("data 1", "data 2, fsdp 2, tensor 2")
    ]
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(s.params) for s in states))


def test_each_device_loads_its_own_rows():
    mesh = device_mesh.make_mesh({"data": 4, "fsdp": 2, "tensor": 1}, 16)
    rows = np.arange(64).reshape(2, 16, 2)
    put = sharding.put_rows({"x": rows}, mesh, 16)["x"]
    np.testing.assert_array_equal(put, rows)
    assert {s.data.shape for s in put.addressable_shards} == {(2, 2, 2)}


@pytest.mark.fault(
    "R7",
    "a mesh that does not fit",
    "an error that names axis, size and devices",
    "meshes for other batches and other machines",
)
@pytest.mark.parametrize(
    ("sizes", "batch", "words"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, 8, "batch.size: 8 is not divisible by"),
        ({"data": 16, "fsdp": 1, "tensor": 1}, 16, "needs 16 devices, there are 8"),
        ({"data": -1, "fsdp": 16, "tensor": 1}, 16, "needs 16 devices, there are 8"),
        ({"data": 2, "fsdp": -1, "tensor": 3}, 8, "needs 6 devices, there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_a_clear_error(sizes, batch, words):
    with pytest.raises(BadInput, match=words):
        device_mesh.make_mesh(sizes, batch)


def test_a_dimension_that_does_not_divide_names_its_leaf(tiny):
    with pytest.raises(BadInput, match=r"mesh.tensor: 3 does not divide .*params/\S+, shape"):
        trainer(tiny(WIDE | {"batch.size": 8}), {"data": 2, "fsdp": 1, "tensor": 3})


@pytest.mark.parametrize(
    ("batch", "used"), [(8, 8), (6, 6), (5, 5), (7, 7), (9, 3), (4, 4), (1, 1)]
)
def test_a_free_data_axis_takes_the_devices_that_divide_the_batch(batch, used):
    assert device_mesh.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, batch).size == used


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend 'tpuu'\nmore")])
def test_devices_that_are_not_here_are_bad_input(error, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    device_mesh.check_devices()  # the twin: those of this process are there

    def none():
        raise error

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(BadInput) as raised:
        device_mesh.check_devices()
    assert str(raised.value).startswith("JAX_PLATFORMS=cuda: jax finds no such device here")
    assert len(str(raised.value).splitlines()) == 1
