"""Every derivative written by hand, in float32 and bfloat16, at ordinary and extreme inputs: as
near to the float64 one as jax's own derivative of the same forward pass is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import custom_vjp, recurrence
from research.training import chunked_losses
from research.training.gradient_accumulation import mean_loss_and_gradient

# Half a unit in the last place, relative to a number: what rounding to the dtype costs.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
# How much is planted into what is kept for the backward pass: far more than rounding, and far less
# than what would change a loss curve at once.
PLANTED = {"float32": 2.0**-12, "bfloat16": 2.0**-3}


def normal(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def gated(T, z=0.0, n=0.0, scale=1.0):
    """A recurrence of T steps whose update gates and candidates are pushed by z and n."""
    x_TxBxE = normal(0, T, 3, 18, scale=scale) + np.repeat([0.0, z, n], 6)
    return x_TxBxE, normal(1, 3, 6), normal(2, 6, 18), np.zeros(6)


def heads(scale):
    """Queries, keys, values. 1/√16 is a power of 2: the forward pass scales queries exactly."""
    return tuple(normal(i, 2, 16, 4, 16, scale=scale if i < 2 else 1) for i in range(3))


def unembed(x_MxD, w_DxV):
    return custom_vjp.dense(x_MxD, w_DxV.astype(x_MxD.dtype), True)


def on_one_device(function, rows, head):
    return function(*rows, *head)


def chunked(op, x_NxMxD, w_DxV):
    """The chunked loss as a function of what it is differentiated for."""
    N, M, _ = x_NxMxD.shape
    target = np.random.default_rng(9).integers(w_DxV.shape[1], size=(N, M))
    return op((on_one_device, unembed), x_NxMxD, target, jnp.ones((N, M), w_DxV.dtype), w_DxV)


def with_static(*static):
    return lambda op, *args: op(*args, *static)


# One feature far above the others, as in trained transformers; a mean far above the spread.
OUTLIER = np.where(np.arange(64) == 5, 1e3, 1)
NORM = {
    "ordinary": (normal(0, 8, 64), normal(1, 64)),
    "outlier": (normal(0, 8, 64) * OUTLIER, normal(1, 64)),
    "far from zero": (300 + normal(0, 8, 64), normal(1, 64)),
    "as small as epsilon": (normal(0, 8, 64, scale=1e-3), normal(1, 64)),
    "huge": (normal(0, 8, 64, scale=1e12), normal(1, 64)),
}
# name: (what is differentiated, how it is called, which arguments are always float32, inputs)
OPS = {
    "dense": (
        custom_vjp.dense,
        with_static(False),
        (),
        {
            "ordinary": (normal(0, 12, 16), normal(1, 16, 24)),
            "far from zero": (1e4 + normal(0, 12, 16), normal(1, 16, 24)),
            "tiny": (normal(0, 12, 16, scale=1e-30), normal(1, 16, 24)),
        },
    ),
    "dense, wide": (
        custom_vjp.dense,
        with_static(True),
        (),
        {"ordinary": (normal(0, 12, 24), normal(1, 24, 16))},
    ),
    "gelu": (
        custom_vjp.gelu,
        with_static(),
        (),
        {
            "ordinary": (normal(0, 12, 16),),
            "saturated": (np.linspace(-12, 12, 128).reshape(8, 16),),
            "huge": (normal(0, 8, 16, scale=1e9),),
        },
    ),
    "rms norm": (custom_vjp.normalize, with_static(False, 1e-5), (1,), NORM),
    "layer norm": (custom_vjp.normalize, with_static(True, 1e-5), (1,), NORM),
    "attention": (
        custom_vjp.causal_attention_vjp,
        with_static(),
        (),
        {
            "ordinary": heads(1),
            "saturated": heads(3),
            "one key only": heads(10),
            "equal scores": heads(0),
        },
    ),
    "recurrence": (
        recurrence.recurrence,
        with_static(1),
        (1, 3),
        {
            "ordinary": gated(16),
            "long memory": gated(512, z=7, scale=0.3),
            "no memory": gated(64, z=-12),
            "saturated candidates": gated(512, z=3, n=9, scale=0.3),
            "saturated gates": gated(512, scale=12),
        },
    ),
    "chunked cross-entropy": (
        chunked_losses.chunked_cross_entropy,
        chunked,
        (1,),
        {
            "ordinary": (normal(0, 4, 8, 16), normal(1, 16, 32)),
            "sure": (normal(0, 4, 8, 16, scale=30), normal(1, 16, 32)),
            "far from zero": (100 + normal(0, 4, 8, 16), normal(1, 16, 32)),
        },
    ),
}
CASES = [(name, case) for name, (*_, cases) in OPS.items() for case in cases]


def planted(op, size):
    """`op`, whose backward pass finds everything that was kept for it too large by `size`."""

    def too_large(x):
        return x * jnp.asarray(1 + size, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    other = jax.custom_vjp(op.fun, nondiff_argnums=op.nondiff_argnums)
    other.defvjp(op.fwd, lambda *args: op.bwd(*args[:-2], *map_kept(too_large, args[-2:])))
    return other


def map_kept(f, kept_and_gradient):
    kept, gradient = kept_and_gradient
    return jax.tree.map(f, kept), gradient


def gradients(call, op, args, dtype):
    """The gradient of Σ weights · op for every argument, weights representable in `dtype`."""

    @jax.jit
    def compute(*args):
        value, back = jax.vjp(functools.partial(call, op), *args)
        weights = jnp.asarray(normal(5, *value.shape)).astype(dtype)
        return back(weights.astype(value.dtype))

    return [np.asarray(x, np.float64) for x in compute(*args)]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_derivative_is_as_near_to_the_exact_one_as_that_of_jax(name, case, dtype):
    """Twice as far at most, since the order of sums differs, and two roundings more: of what is
    kept and of the result. In the norm of the largest element, argument by argument."""
    op, call, wide, cases = OPS[name]
    with jax.enable_x64(True):
        kinds = ["float32" if i in wide else dtype for i in range(len(cases[case]))]
        exact_args = [jnp.asarray(x).astype(dtype).astype("float64") for x in cases[case]]
        args = [x.astype(kind) for x, kind in zip(exact_args, kinds, strict=True)]
        exact = gradients(call, op.fun, exact_args, dtype)

        def errors(op):
            found = gradients(call, op, args, dtype)
            return [
                np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)
                for a, b in zip(found, exact, strict=True)
            ]

        own, jaxs, wrong = (errors(f) for f in (op, op.fun, planted(op, PLANTED[dtype])))
        bounds = [2 * e + 2 * ROUNDING[kind] for e, kind in zip(jaxs, kinds, strict=True)]
        assert all(a <= b for a, b in zip(own, bounds, strict=True)), (own, bounds)
        assert not all(a <= b for a, b in zip(wrong, bounds, strict=True)), (wrong, bounds)
        assert max(jaxs) < 0.15  # the inputs are not so extreme that nothing is right


def test_a_long_memory_survives_bfloat16():
    """Gates of 0.999 that are kept in 8 bits are 1, and the gradient of a state 512 steps ago is
    not a quarter of that of the last but one."""
    op, call, _, cases = OPS["recurrence"]
    with jax.enable_x64(True):
        x, h, u, c = (jnp.asarray(a).astype(jnp.bfloat16) for a in cases["long memory"])
        args = x, h.astype("float32"), u, c.astype("float32")
        exact = gradients(call, op.fun, [a.astype("float64") for a in args], "bfloat16")
        in_8_bits = jax.custom_vjp(op.fun, nondiff_argnums=op.nondiff_argnums)
        in_8_bits.defvjp(op.fwd, lambda *args: op.bwd(*args[:-2], *map_kept(to_8_bits, args[-2:])))
        for f, near in ((op, True), (in_8_bits, False)):
            error = np.abs(gradients(call, f, args, "bfloat16")[0] - exact[0]).max()
            assert (error < 0.01 * np.abs(exact[0]).max()) == near


def to_8_bits(x):
    return x.astype(jnp.bfloat16).astype(x.dtype)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_gradients_of_parts_add_up_in_float32(dtype):
    """Sixteen parts are as near to the exact mean as one; fifteen of them, or sums in bfloat16 of
    what is in float32, are not."""
    x_BxD, w_D = normal(0, 64, 8), normal(1, 8).astype(np.float32)

    def summed_loss(params, batch):
        x, w = batch["x"], params["w"].astype(batch["x"].dtype)
        loss = jnp.square((x * w[None]).astype(params["w"].dtype).sum(-1))
        return loss.sum(), jnp.ones_like(loss).sum()

    def gradient(x, w, parts):
        compute = jax.jit(mean_loss_and_gradient, static_argnums=(0, 3))
        return np.asarray(compute(summed_loss, {"w": w}, {"x": x}, parts)[1]["w"], np.float64)

    w_D = np.asarray(jnp.asarray(w_D, dtype), np.float32)
    narrow = jnp.asarray(x_BxD).astype(dtype)
    with jax.enable_x64(True):
        exact = gradient(narrow.astype("float64"), jnp.asarray(w_D, "float64"), 1)
    size = np.abs(exact).max()
    one, many = (np.abs(gradient(narrow, w_D, n) - exact).max() / size for n in (1, 16))
    assert many <= 2 * one + 16 * ROUNDING["float32"]
    parts = [jnp.asarray(gradient(narrow[i::16], w_D, 1), jnp.float32) for i in range(16)]
    assert np.abs(np.mean(parts[1:], axis=0) - exact).max() / size > 2 * one + 16 * 2.0**-24
    in_bfloat16 = sum((x.astype(jnp.bfloat16) for x in parts), start=jnp.zeros(8, jnp.bfloat16))
    wrong = np.abs(np.asarray(in_bfloat16, np.float64) / 16 - exact).max() / size
    assert wrong > 2 * one + 16 * 2.0**-24 or dtype == "bfloat16"


@pytest.mark.slow
def test_group_normalization_far_from_zero():
    """Value and gradient, against float64; as E x² − (E x)² there would be neither."""
    from research.models.resnet import GROUP, GroupNorm

    x = 3000 * np.arange(1, 2 * GROUP + 1) + normal(0, 2, 6, 6, 2 * GROUP)
    norm, g = GroupNorm(), normal(1, *x.shape)
    params = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32))

    def plain(x):
        groups = x.reshape(2, 36, 2, GROUP)
        centered = groups - groups.mean((1, 3), keepdims=True)
        variance = jnp.square(centered).mean((1, 3), keepdims=True)
        return (centered / jnp.sqrt(variance + 1e-5)).reshape(x.shape)

    def fast(x):
        groups = x.reshape(2, 36, 2, GROUP)
        mean, square = (y.mean((1, 3), keepdims=True) for y in (groups, jnp.square(groups)))
        variance = jnp.maximum(square - jnp.square(mean), 0)
        return ((groups - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape)

    def both(f, dtype):
        value, back = jax.vjp(f, jnp.asarray(x, jnp.float32).astype(dtype))
        return [np.asarray(y, np.float64) for y in (value, back(jnp.asarray(g, dtype))[0])]

    with jax.enable_x64(True):
        exact = both(plain, "float64")
        own = both(lambda x: norm.apply(params, x), "float32")
        for a, b in zip(own, exact, strict=True):
            assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
    near = 30_000 + normal(0, 2, 6, 6, 2 * GROUP)  # where the groups differ by nothing but noise
    x = near
    with jax.enable_x64(True):
        exact = both(plain, "float64")
        own = both(lambda x: norm.apply(params, x), "float32")
        wrong = both(fast, "float32")
    errors = [np.abs(f[0] - exact[0]).max() for f in (own, wrong)]
    assert errors[0] < 5e-3 < 0.1 < errors[1]
