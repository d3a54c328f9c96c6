"""The platform is that of the mesh, wherever a program is traced; TPUs lie in the mesh as they are
wired."""

import functools
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research import models
from research.errors import BadInput
from research.inference import generate, scoring
from research.models import (
    activation_sharding,
    conv,
    custom_vjp,
    device_scope,
    head_sharding,
    parameter_sharding,
)
from research.parallel import device_mesh, tpu_mesh
from research.training import chunked_losses

ONE = (1, 1, 1)


def mesh_of(platform):
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    axes = (AxisType.Auto,) * 3
    return AbstractMesh(ONE, device_mesh.AXES, axis_types=axes, abstract_device=device)


def traced(function, platform, *args):
    return str(jax.make_jaxpr(device_mesh.with_mesh_names(mesh_of(platform), function))(*args))


def test_barriers_are_written_for_cpu_alone():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 2))

    def gradient(x, w):
        return jax.grad(lambda x, w: custom_vjp.dense(x, w).sum(), (0, 1))(x, w)

    assert "optimization_barrier" in traced(gradient, "cpu", x, w)
    assert "optimization_barrier" not in traced(gradient, "gpu", x, w)
    assert "optimization_barrier" not in traced(gradient, "tpu", x, w)


def test_convolutions_are_those_of_the_platform():
    layer = conv.Conv(3, 3)
    x = jnp.ones((1, 8, 8, 2))
    params = layer.init(jax.random.key(0), x)
    assert "conv_general_dilated" in traced(layer.apply, "tpu", params, x)
    assert "conv_general_dilated" not in traced(layer.apply, "cpu", params, x)


def test_a_jitted_function_is_traced_again_for_another_platform():
    """As the models' are: the mesh in scope is in the key of what jax has traced."""
    seen = []

    @jax.jit
    def inner(x):
        seen.append(activation_sharding.platform())
        return x

    for platform in ("gpu", "tpu", "gpu"):
        traced(lambda x: inner(x), platform, jnp.ones(2))
    assert seen == ["gpu", "tpu"]
    assert activation_sharding.platform() == "cpu"


def test_outside_a_mesh_it_is_that_of_the_parameters(monkeypatch):
    """And not of the process, which may have other devices too."""
    seen = []

    def program(model, params):
        seen.append(activation_sharding.platform())
        return params

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    params = {"w": jnp.ones(2)}
    jitted = jax.jit(program, static_argnums=0)
    with device_scope.on_device_of(params):
        jitted("one", params)
    jitted("another", params)
    with jax.default_device("cpu"):
        jitted("a third", params)
    assert seen == ["cpu", "gpu", "cpu"]


@pytest.mark.parametrize("by", ["generate", "score", "continue"])
def test_what_is_generated_or_scored_is_computed_by_its_device(by, monkeypatch):
    fields = {"vocab": 7, "context": 16, "width": 8, "depth": 1, "heads": 2, "kv_heads": 2}
    fields |= {"hidden": 8, "norm": "rms", "positions": "rotary", "rotary_theta": 1e4}
    fields |= {"activation": "swiglu", "qk_norm": False, "bias": False, "tie_embeddings": True}
    fields |= {"dtype": "float32", "attention": "own", "remat": "none", "unroll": 1}
    model = models.build("transformer", **fields)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    seen, unembed = [], models.Model.unembed

    def spied(self, params, hidden):
        seen.append(activation_sharding.platform())
        return unembed(self, params, hidden)

    monkeypatch.setattr(models.Model, "unembed", spied)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    scorer = scoring.Scorer(SimpleNamespace(model=model, params=params), 0)
    if by == "generate":
        generate.generate(model, params, [1, 2], 3)
    elif by == "score":
        scorer.score([([1], [2, 3])])
    else:
        scorer.continuations([[1, 2]], lambda i, said: len(said) > 0)
    assert set(seen) == {"cpu"}


def test_the_mesh_of_devices_has_their_platform():
    mesh = device_mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, 8)
    found = []
    named = device_mesh.with_mesh_names(mesh, lambda: found.append(activation_sharding.platform()))
    named()
    assert found == ["cpu"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_lookup_is_that_of_take(dtype):
    """In half precision too: it is added up in float32, whatever the rows are in."""
    table = jax.random.normal(jax.random.key(0), (5, 4))
    ids = jnp.array([1, 3, 1, 1, 0])
    g = jax.random.normal(jax.random.key(1), (5, 4))

    def gradient(lookup):
        return jax.grad(lambda t: (lookup(t).astype(jnp.float32) * g).sum())(table)

    found = gradient(lambda t: parameter_sharding.lookup(t, ids, dtype, 5))
    after = gradient(lambda t: jnp.take(t, ids, axis=0).astype(dtype))
    np.testing.assert_array_equal(found, after)
    rounded = gradient(lambda t: jnp.take(t.astype(dtype), ids, axis=0))
    assert np.array_equal(found, rounded) == (dtype == "float32")


def test_a_head_is_gathered_in_the_type_of_its_product():
    """What is no matrix over the vocabulary, or could be so in two ways, is left as it is."""
    mesh = device_mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, 8)

    def text(*shape):
        function = device_mesh.with_mesh_names(
            mesh, lambda w: head_sharding.head(SimpleNamespace(dtype="bfloat16", vocab=8), w)
        )
        return str(jax.make_jaxpr(function)(jnp.ones(shape)))

    assert "P(None, 'tensor')" in text(4, 8)
    assert "P('tensor', None)" in text(8, 4)
    assert "bf16[8,4]" in text(8, 4)
    for shape in ((8, 8), (4, 4), (8,)):
        assert "sharding_constraint" not in text(*shape)
        assert "bf16" not in text(*shape)


def test_what_does_not_divide_is_on_every_device():
    mesh = device_mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, 8)
    axes = ((None, None), ("fsdp", "tensor"))

    def text(shape):
        function = device_mesh.with_mesh_names(
            mesh, jax.grad(lambda x: parameter_sharding.gather(x, *axes).sum())
        )
        return str(jax.make_jaxpr(function)(jnp.ones(shape)))

    assert "P('fsdp', 'tensor')" in text((4, 4))
    assert "P('fsdp', None)" in text((4, 3))


def tpus(shape, slices=1, kind="TPU v5"):
    """Devices of `slices` tori of `shape`, numbered as the runtime does: x fastest."""
    per = int(np.prod(shape))
    return [
        SimpleNamespace(
            id=s * per + i,
            platform="tpu",
            device_kind=kind,
            core_on_chip=0,
            coords=tuple(int(c) for c in np.unravel_index(i, shape[::-1])[::-1]),
            slice_index=s,
            process_index=(s * per + i) // 4,
        )
        for s in range(slices)
        for i in range(per)
    ]


def test_an_axis_of_the_mesh_is_one_of_the_torus():
    grid = tpu_mesh.arrange(tpus((4, 4, 4)), (4, 16, 1))
    for line in grid[:, :, 0].T:  # of the data axis: all in one line of the torus
        same = [len({d.coords[axis] for d in line}) for axis in range(3)]
        assert sorted(same) == [1, 1, 4]
    assert {d.id for d in grid.flat} == set(range(64))
    in_order = np.array(tpus((4, 4, 4))).reshape(4, 16, 1)
    assert [d.id for d in grid.flat] != [d.id for d in in_order.flat]


@pytest.mark.parametrize(("shape", "axis"), [((2, 16, 1), 0), ((1, 32, 1), 1), ((4, 4, 2), 0)])
def test_slices_lie_along_the_outermost_axis_that_they_divide(shape, axis):
    grid = tpu_mesh.arrange(tpus((4, 4, 1), slices=2), shape)
    assert grid.shape == shape
    halves = np.split(grid, 2, axis=axis)
    assert [{d.slice_index for d in half.flat} for half in halves] == [{0}, {1}]


def test_slices_that_no_axis_divides_are_refused():
    with pytest.raises(BadInput, match=r"mesh: 2 slices; expected a multiple .* not 1 and 1"):
        tpu_mesh.arrange(tpus((4, 4, 1), slices=2), (1, 1, 32))


def test_half_a_torus_is_taken_in_order(caplog):
    devices = tpus((4, 4, 1))[:11:5]  # a diagonal
    with caplog.at_level(logging.WARNING):
        grid = tpu_mesh.arrange(devices, (3, 1, 1))
    assert [d.id for d in grid.flat] == [0, 5, 10]
    assert "in the order of their numbers" in caplog.text


@pytest.mark.parametrize("by", ["cpu", "tpu"])
@pytest.mark.parametrize("sizes", [(1, 8, 1), (8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_a_head_whose_gradient_is_added_up_over_devices_is_the_same(sizes, by, monkeypatch):
    """As XLA for CPU has to do it, and as compilers of accelerators are told to."""
    monkeypatch.setattr(head_sharding, "platform", lambda: by)
    N, M, D, V = 4, 64, 16, 32
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((N, M, D), (D, V)))
    target, weight = rng.integers(V, size=(N, M)), np.ones((N, M), np.float32)
    spec = SimpleNamespace(dtype="float32", vocab=V)
    how = functools.partial(head_sharding.over_rows, spec), lambda x_MxD, w_DxV: x_MxD @ w_DxV
    loss = lambda x, w: chunked_losses.chunked_cross_entropy(how, x, target, weight, w)  # noqa: E731
    both = jax.value_and_grad(loss, (0, 1))
    mesh = device_mesh.make_mesh(dict(zip(device_mesh.AXES, sizes, strict=True)), M)
    lies = (
        NamedSharding(mesh, P(None, ("data", "fsdp"))),
        NamedSharding(mesh, P("fsdp", "tensor")),
    )
    on_mesh = jax.jit(device_mesh.with_mesh_names(mesh, both), in_shardings=lies)
    found, one = on_mesh(*jax.device_put((x, w), lies)), both(x, w)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    text = str(jax.make_jaxpr(device_mesh.with_mesh_names(mesh, both))(x, w))
    assert ("reduce_scatter" in text) == (by == "tpu" and sizes[1] > 1)
    assert not np.allclose(found[1][1], both(x, 2 * w)[1][1], atol=1e-3)
