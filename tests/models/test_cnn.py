"""The two families for images: their counts, what a convolution is, and how they grow."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from research import models
from research.errors import BadInput
from research.models import accounting, resnet
from research.models import conv as convolution
from research.models.sizing import model_at_size
from research.parallel import device_mesh, sharding
from research.training import optimizers as optim
from research.training.classification import Classification
from research.training.muon import matrix_dims
from research.training.step import TrainState
from tests.models.test_accounting import xla_dot_flops
from tests.params import slow_but

DIGITS = {"image_shape": (28, 28, 1), "classes": 10}
CNN = {"name": "cnn", **DIGITS, "width": 32, "depth": 2, "hidden": 128}
RESNET = {"name": "resnet", **DIGITS, "width": 8, "depth": 2}
SMALL = [
    {**CNN, "image_shape": (12, 15, 3), "width": 4, "hidden": 12, "depth": 1},
    {**CNN, "image_shape": (13, 14, 1), "width": 3, "hidden": 8},
    {**RESNET, "image_shape": (12, 9, 3)},
    {**RESNET, "image_shape": (8, 8, 1), "width": 12, "depth": 1},
]
SPECS = slow_but([SMALL[i] for i in (0, 1, 3)], SMALL)
BATCH = 4


def abstract(spec, batch=BATCH):
    return jax.ShapeDtypeStruct((batch, *spec["image_shape"]), jnp.float32)


def images(spec, batch=BATCH, seed=0):
    made = np.random.default_rng(seed).standard_normal((batch, *spec["image_shape"]))
    return made.astype(np.float32)


def xla_conv_flops(text: str) -> int:
    """FLOPs of the convolutions in an optimized HLO module without loops: 2 · outputs · places of
    the kernel · input channels, zeros of the padding and between the pixels included."""
    assert " while(" not in text
    shapes = dict(re.findall(r"%([\w.\-]+) = \w+\[([\d,]*)\]", text))
    shapes |= dict(re.findall(r"([\w.\-]+): \w+\[([\d,]*)\]", text))
    total = 0
    found = re.findall(
        r"= \w+\[([\d,]*)\]\S* convolution\(%[\w.\-]+, %([\w.\-]+)\).*?dim_labels=\w+_(\w+)->", text
    )
    for out, kernel, labels in found:
        sizes = dict(zip(labels, map(int, shapes[kernel].split(",")), strict=True))
        each = math.prod(n for label, n in sizes.items() if label != "o")
        total += 2 * math.prod(map(int, out.split(","))) * each
    assert "feature_group_count" not in text
    return total


def made(spec, seed=0):
    """A model, its parameters and its function, compiled."""
    model = models.build(**spec)
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *spec["image_shape"])))
    return model, params, jax.jit(model.apply)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def loss_of(model, batch=BATCH):
    targets = jnp.zeros(batch, jnp.int32)

    def loss(params, inputs):
        terms = Classification().terms(model, params, {"inputs": inputs, "targets": targets})
        return terms["loss"].sum()

    return loss


def test_the_digit_network_has_225034_parameters():
    model = models.build(**CNN)
    counts = accounting.params(model, abstract(CNN))
    assert counts["params"] == 225_034
    assert counts["groups"] == {"convolution": 18_816, "dense": 204_928, "head": 1_290}
    wider = accounting.params(models.build(**CNN | {"hidden": 129}), abstract(CNN))
    assert wider["params"] != 225_034


def test_resnet_20_has_its_published_size():
    """0.27 million for CIFAR-10 (He et al. 2016, table 6)."""
    spec = {**RESNET, "image_shape": (32, 32, 3), "width": 16, "depth": 3}
    assert accounting.params(models.build(**spec), abstract(spec))["params"] == 272_282


@pytest.mark.parametrize("spec", slow_but(SMALL[:2], SMALL))
def test_groups_add_up_to_the_tree(spec):
    model, params, apply = made(spec)
    counts = accounting.params(model, abstract(spec))
    total = sum(x.size for x in jax.tree.leaves(params))
    assert counts["params"] == sum(counts["groups"].values()) == total
    assert apply(params, images(spec)).shape == (BATCH, 10)


@pytest.mark.parametrize("spec", SPECS)
def test_exact_flops_are_what_xla_counts_in_a_training_step(spec):
    """As products of patches, the backward pass has no more work than the formula: one product for
    the kernel and one for the patches, whose gradient is then added up."""
    model = models.build(**spec)
    args = model.shapes(abstract(spec)), abstract(spec)
    counted = xla_dot_flops(compiled(jax.value_and_grad(loss_of(model)), *args))
    exact = accounting.step_flops(model, BATCH)
    assert counted == pytest.approx(exact, rel=1e-9)
    first = BATCH * model.forward_flops()["first_layer"]
    assert counted != pytest.approx(exact + first, rel=1e-3)  # the data have no gradient


@pytest.mark.parametrize("spec", SMALL[:3])  # of the last, XLA drops what only zeros reach
def test_forward_flops_are_those_of_the_convolutions_of_an_accelerator(spec, monkeypatch):
    """In its backward pass an accelerator's convolution does more than the formula, which counts
    useful work: the gradient of a 'valid' input convolves zeros around it, that of a strided one
    zeros between. So only the gradient of the kernels is compared besides."""
    monkeypatch.setattr(convolution, "im2col_conv", convolution.xla_conv)
    model = models.build(**spec)
    parts = model.forward_flops()
    dense = parts.pop("head") + parts.pop("dense", 0)
    convolutions = sum(parts.values())
    args = model.shapes(abstract(spec)), abstract(spec)
    text = compiled(lambda p, x: model.apply(p, x), *args)
    # XLA makes a dot of a 1x1 convolution.
    dots = sum(_dots(text))
    assert xla_conv_flops(text) + dots == BATCH * (convolutions + dense)

    conv = functools.partial(convolution.xla_conv, stride=1, padding="VALID")
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 9, 9, 3), (3, 3, 3, 5)))
    useful = 2 * 2 * 7 * 7 * 9 * 3 * 5
    kernel, image = (
        compiled(jax.grad(lambda x, w: conv(x, w).sum() ** 2, argnums=i), x, w) for i in (1, 0)
    )
    assert xla_conv_flops(kernel) == 2 * useful
    assert xla_conv_flops(image) == useful + useful * 81 // 49


def _dots(text):
    return [xla_dot_flops(re.sub(r"convolution\(", "conv(", text))] if " dot(" in text else []


def plain(x, w, stride, padding):
    """A convolution by its definition."""
    side = w.shape[0]
    if padding == "SAME":
        needed = [max(0, (-(-n // stride) - 1) * stride + side - n) for n in x.shape[1:3]]
        x = np.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in needed), (0, 0)))
    H, W = ((n - side) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), H, W, w.shape[3]))
    for i in range(H):
        for j in range(W):
            patch = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
            out[:, i, j] = np.einsum("bhwi,hwio->bo", patch, w)
    return out


@pytest.mark.parametrize("by", [convolution.im2col_conv, convolution.xla_conv])
@pytest.mark.parametrize(
    ("side", "stride", "padding"),
    [(3, 1, "VALID"), (3, 2, "VALID"), (3, 1, "SAME"), (3, 2, "SAME"), (1, 2, "SAME")],
)
def test_a_convolution_is_its_definition(by, side, stride, padding):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 7, 10, 3)), rng.standard_normal((side, side, 3, 4))
    x, w = x.astype(np.float32), w.astype(np.float32)
    ours = by(jnp.asarray(x), jnp.asarray(w), stride, padding)
    np.testing.assert_allclose(ours, plain(x, w, stride, padding), atol=1e-5)
    turned = plain(x, w[::-1], stride, padding)
    if side > 1:  # the mathematicians' convolution turns the kernel round
        assert np.abs(ours - turned).max() > 0.1


def test_the_digit_network_is_its_definition():
    _, p, apply = made(CNN | {"width": 2, "hidden": 5})
    x = images(CNN)
    rng = np.random.default_rng(1)
    p = jax.tree.map(
        lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape).astype(np.float32), p
    )
    y = x
    for name in ("conv0", "conv1"):
        y = np.maximum(plain(y, p[name]["kernel"], 1, "VALID") + p[name]["bias"], 0)
        B, H, W, C = y.shape
        y = y[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C).max((2, 4))
    assert y.shape == (BATCH, 5, 5, 4)
    y = np.maximum(y.reshape(BATCH, -1) @ p["dense0"]["kernel"] + p["dense0"]["bias"], 0)
    y = y @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(apply(p, x), y, atol=1e-4)
    assert np.abs(apply(p, x[:, ::-1]) - y).max() > 1e-2


def test_pooling_is_the_maximum_of_each_square():
    x = jnp.arange(2 * 5 * 4 * 1, dtype=jnp.float32).reshape(2, 5, 4, 1)
    assert convolution.max_pool_2x2(x)[0, :, :, 0].tolist() == [[5, 7], [13, 15]]
    assert convolution.max_pool_2x2(-x)[0, :, :, 0].tolist() == [[0, -2], [-8, -10]]


def test_group_norm_is_its_definition():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 6, 8)).astype(np.float32) * 3 + 1
    scale, bias = rng.standard_normal((2, 8)).astype(np.float32)
    ours = resnet.GroupNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    groups = x.reshape(3, 5, 6, 2, resnet.GROUP)
    mean, sd = (f((1, 2, 4), keepdims=True) for f in (groups.mean, groups.std))
    y = ((groups - mean) / sd).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(ours, y, atol=1e-3)
    assert np.abs(x * scale + bias - y).max() > 1


@pytest.mark.parametrize("spec", SPECS)
def test_an_example_does_not_see_the_others_of_its_batch(spec):
    _, params, apply = made(spec)
    x = images(spec)
    before = apply(params, x)
    changed = apply(params, np.concatenate([x[:1], x[1:] ** 2]))
    np.testing.assert_allclose(changed[0], before[0], atol=1e-5)
    assert np.abs(changed[1:] - before[1:]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 48, 3)])
def test_every_rung_is_a_valid_model_and_larger_than_the_one_below(name, shape):
    given = {"image_shape": shape, "classes": 10}
    before = 0
    for i in [*range(1, 9), 64, 65, 128, 129][: 12 if name == "cnn" else 8]:
        spec = {"name": name, **given, **models.family(name).nth_size(i, **given)}
        count = accounting.params(models.build(**spec), abstract(spec))["params"]
        assert count > before
        before = count


def test_the_ladders_meet_the_networks_that_they_are_named_after():
    digits = models.family("cnn").nth_size(32, image_shape=(28, 28, 1))
    assert digits == {"width": 32, "depth": 2, "hidden": 128}
    fields = [models.family("resnet").nth_size(i) for i in range(1, 400)]
    assert {"width": 16, "depth": 3} in fields
    assert all(f["width"] % resnet.GROUP == 0 for f in fields)
    for one, next_ in itertools.pairwise(fields):  # one of them grows at a time
        assert (next_["width"] > one["width"]) != (next_["depth"] > one["depth"])
        assert next_["width"] >= one["width"]
        assert next_["depth"] >= one["depth"]


@pytest.mark.parametrize(("name", "target"), [("cnn", 5e3), ("cnn", 2e5), ("resnet", 1e5)])
def test_a_target_size_is_met(name, target):
    model = model_at_size(target, name, DIGITS, abstract(DIGITS))
    count = accounting.params(model, abstract(DIGITS))["params"]
    assert abs(math.log(count / target)) < 0.3
    with pytest.raises(BadInput, match=f"nearest {name}"):
        model_at_size(20, name, DIGITS, abstract(DIGITS))


def test_images_too_small_for_the_depth_are_rejected():
    with pytest.raises(ValueError, match="depth: 2; images of 8 x 28 have room for 1"):
        models.build(**CNN | {"image_shape": (8, 28, 1)})
    with pytest.raises(ValueError, match="room for 0"):
        models.build(**CNN | {"image_shape": (3, 3, 1), "depth": 1})
    models.build(**CNN | {"image_shape": (10, 10, 1)})
    with pytest.raises(ValueError, match="width: 6; expected a multiple of 4"):
        models.build(**RESNET | {"width": 6})


@pytest.mark.parametrize("spec", SPECS)
def test_every_parameter_has_rules_for_decay_and_muon(spec):
    params = models.build(**spec).shapes(abstract(spec))
    matrices = sum(x.ndim > 1 for x in jax.tree.leaves(params))
    assert sum(jax.tree.leaves(optim.decay_mask(params))) == matrices
    dims = jax.tree.map(lambda _, d: d is not None, params, matrix_dims(params))
    assert sum(jax.tree.leaves(dims)) == matrices - 1  # the head is left to Adam


@pytest.mark.parametrize("spec", [{**CNN, "width": 4, "hidden": 8}, SMALL[3]])
def test_a_mesh_computes_the_same(spec):
    model = models.build(**spec)
    state = TrainState(jnp.int32(0), jax.jit(model.init)(jax.random.key(0), images(spec)), ())
    mesh = device_mesh.make_mesh({"data": 1, "fsdp": 2, "tensor": 2}, BATCH)
    placed = jax.device_put(state, sharding.state_shardings(state, model.sharding, mesh)).params
    rows = jax.device_put(images(spec), NamedSharding(mesh, sharding.BATCH))
    apply = jax.jit(model.apply)
    here, there = apply(state.params, images(spec)), apply(placed, rows)
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
