"""Properties of the transformer: what sees what, and that its variants are the same function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.models import accounting, custom_vjp, layers
from research.models.transformer import TransformerConfig

SMALL = {
    "vocab": 61,
    "context": 16,
    "width": 32,
    "depth": 3,
    "heads": 4,
    "kv_heads": 4,
    "hidden": 48,
    "norm": "rms",
    "positions": "rotary",
    "rotary_theta": 1e4,
    "activation": "swiglu",
    "qk_norm": False,
    "bias": False,
    "tie_embeddings": False,
    "dtype": "float32",
    "attention": "own",
    "remat": "none",
    "unroll": 1,
}
VARIANTS = [
    {},
    {
        "norm": "layer",
        "positions": "learned",
        "activation": "gelu",
        "tie_embeddings": True,
        "bias": True,
    },
    {"kv_heads": 2, "qk_norm": True, "activation": "relu2"},
    {"kv_heads": 1, "dtype": "bfloat16", "remat": "full"},
]


def build(**changes):
    return models.build("transformer", **SMALL | changes)


def tokens(batch=2, length=16, seed=0):
    return np.random.default_rng(seed).integers(0, 61, (batch, length), np.int32)


def logits(model, params, inputs):
    out = model.unembed(params, model.apply(params, inputs))
    return out.reshape(*inputs.shape, -1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_see_the_past_and_the_present_and_nothing_else(changes):
    model = build(**changes)
    params = model.init(jax.random.key(0), tokens())
    at = 7

    def logit_from_embeddings(embedded):
        """The logits at `at`, as a function of what is looked up for every position."""
        table = params | {"embed": {"embedding": embedded}}
        places = jnp.arange(16, dtype=jnp.int32)[None]  # token t is row t: its own embedding
        hidden = model.apply(table, places)
        # The head must not look at the table that is differentiated.
        head = (
            params["embed"]["embedding"].T
            if model.spec.tie_embeddings
            else params["head"]["kernel"]
        )
        return jnp.sum((hidden.astype(jnp.float32) @ head)[at] ** 2)

    grads = jax.grad(logit_from_embeddings)(params["embed"]["embedding"])[:16]
    size = np.abs(np.asarray(grads)).sum(-1)
    assert (size[at + 1 :] == 0).all()
    assert (size[: at + 1] > 0).all()


def test_attention_without_its_mask_would_be_caught():
    q = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
    grads = jax.grad(lambda k: custom_vjp.causal_attention_vjp(q, k, q)[:, 3].sum())(q)
    assert (np.asarray(grads)[:, 4:] == 0).all()
    grads = jax.grad(lambda k: jax.nn.dot_product_attention(q, k, q)[:, 3].sum())(q)
    assert (np.asarray(grads)[:, 4:] != 0).any()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_that_of_jax(kv_heads):
    keys = jax.random.split(jax.random.key(1), 3)
    q = jax.random.normal(keys[0], (2, 8, 4, 16))
    k, v = (jax.random.normal(key, (2, 8, kv_heads, 16)) for key in keys[1:])
    ours = custom_vjp.causal_attention_vjp(q, k, v)
    theirs = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.abs(ours - jax.nn.dot_product_attention(q, k, v)).max() > 1e-2


def test_rotary_scores_depend_on_the_distance_alone():
    angles = layers.rotary_angles(12, 8, 1e4)
    q, k = (
        jnp.broadcast_to(jax.random.normal(jax.random.key(i), (8,)), (1, 12, 1, 8)) for i in (0, 1)
    )
    scores = jnp.einsum("bthk,bshk->ts", layers.rotate(q, angles), layers.rotate(k, angles))
    for distance in range(-11, 12):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(np.asarray(scores)) > 0.1


@pytest.mark.parametrize("change", [{"unroll": 3}, {"remat": "full"}])
def test_unrolling_and_remat_do_not_change_the_function(change):
    plain, other = build(), build(**change)
    params = plain.init(jax.random.key(0), tokens())
    same = other.init(jax.random.key(0), tokens())
    jax.tree.map(np.testing.assert_array_equal, params, same)

    def loss(model):
        return lambda p: jnp.mean(logits(model, p, tokens()) ** 2)

    grads = [jax.jit(jax.grad(loss(m)))(params) for m in (plain, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), *grads)


def test_remat_really_recomputes():
    def recomputed(model):
        params = model.init(jax.random.key(0), tokens())
        grad = jax.grad(lambda p: jnp.sum(logits(model, p, tokens())))
        return "remat" in str(jax.make_jaxpr(grad)(params))

    assert recomputed(build(remat="full"))
    assert not recomputed(build())


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights_and_logits():
    model = build(dtype="bfloat16")
    params = model.init(jax.random.key(0), tokens())
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hidden = model.apply(params, tokens())
    assert hidden.dtype == jnp.bfloat16
    assert model.unembed(params, hidden).dtype == jnp.float32
    exact = logits(build(), params, tokens())
    difference = np.abs(logits(model, params, tokens()) - exact).max()
    assert 0 < difference < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("width", "depth", "count"), [(64, 2, 123_200), (128, 4, 836_736), (256, 4, 3_246_336)]
)
def test_gpt2_shape_has_the_published_parameter_counts(width, depth, count):
    """nanoGPT without biases and nanodo, at context 128 and vocabulary 256."""
    from configs import lm_gpt2

    fields = dict(lm_gpt2.get_config().model) | {"width": width, "depth": depth}
    fields |= {"hidden": 4 * width, "vocab": 256, "context": 128}
    model = models.build(**fields)
    inputs = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    assert accounting.params(model, inputs)["params"] == count


def test_layers_differ_at_init_and_the_key_decides():
    model = build()
    params = model.init(jax.random.key(0), tokens())
    kernel = params["blocks"]["attn"]["query"]["kernel"]
    assert kernel.shape[0] == 3
    assert np.abs(kernel[0] - kernel[1]).max() > 0
    other = model.init(jax.random.key(1), tokens())
    assert np.abs(kernel - other["blocks"]["attn"]["query"]["kernel"]).max() > 0


def test_first_loss_is_near_that_of_a_uniform_guess():
    model = build()
    out = logits(model, model.init(jax.random.key(0), tokens(8)), tokens(8))
    nats = jax.nn.logsumexp(out, -1) - jnp.take_along_axis(out, tokens(8)[..., None], -1)[..., 0]
    assert abs(float(nats.mean()) - np.log(61)) < 1.0


def test_size_rule_meets_the_models_it_was_drawn_through():
    from research.models.transformer import nth_size

    gpt2, llama = (nth_size(i, activation="gelu") for i in (64 + 4, 72 + 24))
    assert (gpt2["width"], gpt2["depth"], gpt2["heads"]) == (768, 12, 12)
    assert (llama["width"], llama["depth"], llama["heads"]) == (4096, 32, 32)


@pytest.mark.slow
def test_every_rung_is_a_valid_model_and_larger_than_the_one_below():
    inputs = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    before = 0
    for i in [*range(1, 24), 63, 64, 65, 66]:
        fields = models.family("transformer").nth_size(i, activation="swiglu")
        spec = TransformerConfig(**SMALL | fields)
        assert spec.width % spec.heads == 0
        assert spec.head_size % 2 == 0
        count = accounting.params(models.build("transformer", **dataclasses.asdict(spec)), inputs)
        assert count["params"] > before
        before = count["params"]
