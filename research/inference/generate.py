"""Text from a trained language model, token by token.

What has been read is kept as a state (keys and values, or the carry of a recurrence), so a further
token costs the work of one token. Dimensions: B samples, T time, N new tokens, V vocabulary,
D width.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.errors import BadInput
from research.io import host
from research.models import Model
from research.models.device_scope import on_device_of
from research.params import leaves_by_path


class Sampling(NamedTuple):
    """How the next token is drawn; all of it is traced, so other numbers are the same program."""

    temperature: Array
    top_k: Array
    top_p: Array


def generate(
    model: Model,
    params: dict,
    prompt: Sequence[int],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    samples: int = 1,
) -> np.ndarray:
    """Continuations [samples, tokens] of `prompt`, as token ids.

    The temperature divides the logits (0 is greedy); then the `top_k` likeliest tokens stay (0: all
    of them), and of these the fewest whose probabilities add up to `top_p` (nucleus sampling,
    Holtzman et al. 2020). `seed`, the number of the sample and that of the token decide every draw.

    A model may read no more than `model.max_length` tokens. Whatever is longer, the prompt or
    prompt and text together, is re-encoded from its last max_length // 2; earlier ones are dropped.

    Raises BadInput when the model is no language model, or the prompt is empty or holds other ids.
    """
    _check_prompt(model, params, prompt)
    _check_memory(model, len(prompt) + tokens, samples)
    params = jax.device_put(params)
    how = Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(samples))
    text = np.tile(np.asarray(prompt, np.int32), (samples, 1))
    generated = 0
    while generated < tokens:
        window = text
        if model.max_length is not None and text.shape[1] > model.max_length:
            window = text[:, -max(1, model.max_length // 2) :]
        room = tokens if model.max_length is None else model.max_length - window.shape[1] + 1
        more = min(room, tokens - generated)
        with on_device_of(params):
            token, state = _prefill(model, params, window, how, keys, generated)
        # All stretches of a text share one program, whose buffer holds the longest.
        length = tokens if model.max_length is None else model.max_length
        out = jnp.zeros((samples, length), jnp.int32)
        with on_device_of(params):
            out = _decode_tokens(
                model, params, token, state, window.shape[1], out, more, how, keys, generated
            )
        text = np.concatenate([text, np.asarray(out)[:, :more]], axis=1)
        generated += more
    return text[:, len(prompt) :]


def check_ids(model: Model, ids: Sequence[int]) -> None:
    """Raise BadInput for ids that are no tokens of the model, whose rows jax would make up."""
    if outside := [i for i in ids if not 0 <= i < model.spec.vocab]:
        raise BadInput(f"the text holds token {outside[0]}; expected ids below {model.spec.vocab}")


def _check_prompt(model: Model, params: dict, prompt: Sequence[int]) -> None:
    if model.classes or not hasattr(model.module, "decode"):
        raise BadInput("this model predicts no next token; expected a language model")
    if not len(prompt):
        raise BadInput("the prompt is empty; expected at least one token")
    check_ids(model, prompt)
    abstract = model.shapes(jax.ShapeDtypeStruct((1, 1), np.int32))
    expected, shapes = (
        {path: x.shape for path, x in leaves_by_path(tree).items()} for tree in (abstract, params)
    )
    for k in sorted(expected.keys() | shapes.keys()):
        if expected.get(k) != shapes.get(k):
            raise BadInput(
                f"parameter {k}: holds {shapes.get(k)}, but the model has {expected.get(k)}"
            )


def _check_memory(model: Model, tokens: int, samples: int) -> None:
    """Raise BadInput if what is kept of a text is more than this machine has memory."""
    cache = jax.eval_shape(lambda: model.init_cache(samples, model.max_length or tokens))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) + 4 * samples * tokens
    if size > (memory := host.memory()):
        raise BadInput(
            f"what is kept of {samples} texts of {model.max_length or tokens:,} tokens takes "
            f"{size / 1e9:,.1f} GB; this machine has {memory / 1e9:,.1f} GB"
        )


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
    model: Model, params: dict, text_BxT: Array, how: Sampling, keys_B: Array, number: Array
) -> tuple[Array, Any]:
    """The token [B] after a text, which is the new token `number`, and the state after the text."""
    B, T = text_BxT.shape
    state = model.init_cache(B, T if model.max_length is None else model.max_length)
    hidden_MxD, state = model.decode(params, text_BxT, state, 0)
    last_BxD = hidden_MxD.reshape(B, T, -1)[:, -1]
    return _sample_token(model.unembed(params, last_BxD), how, keys_B, number), state


@functools.partial(jax.jit, static_argnums=0)
def _decode_tokens(
    model: Model,
    params: dict,
    token_B: Array,
    state: Any,
    at: Array,
    out_BxN: Array,
    count: Array,
    how: Sampling,
    keys_B: Array,
    number: Array,
) -> Array:
    """`out_BxN` with `count` tokens, of which `token_B` is the first and at position `at`."""

    def step(i: Array, carry: tuple) -> tuple:
        token_B, state, out_BxN = carry
        hidden_BxD, state = model.decode(params, token_B[:, None], state, at + i - 1)
        token_B = _sample_token(model.unembed(params, hidden_BxD), how, keys_B, number + i)
        return token_B, state, out_BxN.at[:, i].set(token_B)

    first = (token_B, state, out_BxN.at[:, 0].set(token_B))
    return jax.lax.fori_loop(1, count, step, first)[2]


def _sample_token(logits_BxV: Array, how: Sampling, keys_B: Array, number: Array) -> Array:
    """The new token `number` of every sample, [B]."""
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
    order_BxV, ranked_BxV = filter_logits(logits_BxV, how)
    rank_B = jax.vmap(jax.random.categorical)(keys_B, ranked_BxV)
    return jnp.take_along_axis(order_BxV, rank_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


def filter_logits(logits_BxV: Array, how: Sampling) -> tuple[Array, Array]:
    """The tokens from the likeliest on, [B, V], and their logits, -inf where none is drawn.

    Of equals the lower id comes first, so the first is that of argmax, and it is always kept.
    """
    order_BxV = jnp.argsort(-logits_BxV, axis=-1, stable=True)
    ranked_BxV = jnp.take_along_axis(logits_BxV, order_BxV, axis=-1)
    ranked_BxV /= jnp.where(how.temperature > 0, how.temperature, 1.0)
    rank_V = jnp.arange(logits_BxV.shape[-1])
    among_V = (rank_V < jnp.where(how.top_k > 0, how.top_k, rank_V.size)) & (how.temperature > 0)
    among_V |= rank_V == 0
    chance_BxV = jax.nn.softmax(jnp.where(among_V[None], ranked_BxV, -jnp.inf), axis=-1)
    before_BxV = jnp.cumsum(chance_BxV, axis=-1) - chance_BxV
    nucleus_BxV = (before_BxV < how.top_p) | (how.top_p >= 1) | (rank_V == 0)[None]
    return order_BxV, jnp.where(among_V[None] & nucleus_BxV, ranked_BxV, -jnp.inf)
