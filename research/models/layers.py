"""What two language-model families share. Dimensions, one letter each:

B batch, T time (context), S time that is cached, M = B·T, D width, H heads, G key-value heads,
R = H/G, K head size, F hidden width of the feed-forward.

Activations between blocks are flat, x_MxD: with [B, T, D] the gradient of a kernel contracts two
dimensions, for which XLA on CPU first writes a transposed copy (a third of the step at width 128).
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

NormName = Literal["rms", "layer"]


def norm(kind: str, bias: bool, name: str | None = None) -> nn.Module:
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm, in float32, with a scale and perhaps a bias."""
    if kind == "rms":
        return nn.RMSNorm(epsilon=1e-5, dtype=jnp.float32, name=name)
    return nn.LayerNorm(epsilon=1e-5, use_bias=bias, dtype=jnp.float32, name=name)


def rotary_angles(
    length: int, head_size: int, theta: float, at: Array | int = 0
) -> tuple[Array, Array]:
    """cos and sin, each [T, K], of the rotation at positions `at` … at + T−1 (Su et al. 2021).

    The halves of a head are rotated against each other ("rotate-half", the layout of Llama).
    """
    freq = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle_TxJ = jnp.outer(at + jnp.arange(length, dtype=jnp.float32), freq)
    angle_TxK = jnp.concatenate([angle_TxJ, angle_TxJ], axis=-1)
    return jnp.cos(angle_TxK), jnp.sin(angle_TxK)


def rotate(x_BxTxHxK: Array, angles: tuple[Array, Array]) -> Array:
    """Rotary positions applied to queries or keys."""
    cos, sin = (a[None, :, None, :].astype(x_BxTxHxK.dtype) for a in angles)
    left, right = jnp.split(x_BxTxHxK, 2, axis=-1)
    return x_BxTxHxK * cos + jnp.concatenate([-right, left], axis=-1) * sin


def causal_attention(
    q_BxTxHxK: Array, k_BxSxGxK: Array, v_BxSxGxK: Array, at: Array | int = 0
) -> Array:
    """softmax(q kᵀ / √K) v over the past and the present, softmax in float32; shape of q.

    Keys and values are those of positions 0 … S−1, queries those of `at` … at + T−1. Fewer
    key-value heads than heads: each serves H/G neighbouring heads (Ainslie et al. 2023).
    """
    B, T, H, K = q_BxTxHxK.shape
    S, G = k_BxSxGxK.shape[1:3]
    q_BxTxGxRxK = q_BxTxHxK.reshape(B, T, G, H // G, K) / math.sqrt(K)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q_BxTxGxRxK, k_BxSxGxK)
    past_TxS = at + jnp.arange(T)[:, None] >= jnp.arange(S)[None]
    scores = jnp.where(past_TxS[None, None, None], scores.astype(jnp.float32), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxSxGxK.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, v_BxSxGxK).reshape(B, T, H, K)


POOLED_GROUPS = (("classifier/(kernel|bias)", "head"),)
POOLED_SHARDING = (("classifier/(kernel|bias)", ()),)


class Pooled(nn.Module):
    """Token ids [B, T] → class logits [B, C]: the mean of a language model's hidden states over
    the tokens that are not `pad`, and a linear map."""

    trunk: nn.Module
    classes: int
    pad: int

    @nn.compact
    def __call__(self, tokens_BxT: Array) -> Array:
        B, T = tokens_BxT.shape
        x_BxTxD = self.trunk(tokens_BxT).reshape(B, T, -1).astype(jnp.float32)  # type: ignore[operator]
        real_BxTx1 = (tokens_BxT != self.pad)[..., None].astype(jnp.float32)
        x_BxD = (x_BxTxD * real_BxTx1).sum(1) / jnp.maximum(real_BxTx1.sum(1), 1)
        return nn.Dense(self.classes, name="classifier")(x_BxD)


class FeedForward(nn.Module):
    """x → down(act(up x)), or down(silu(gate x) · up x) for SwiGLU (Shazeer 2020)."""

    width: int
    hidden: int
    activation: str
    bias: bool
    dtype: str
    out_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x_MxD: Array) -> Array:
        def dense(features: int, name: str, **kwargs) -> nn.Dense:
            return nn.Dense(features, self.bias, self.dtype, name=name, **kwargs)

        up_MxF = dense(self.hidden, "up")(x_MxD)
        if self.activation == "swiglu":
            hidden_MxF = nn.silu(dense(self.hidden, "gate")(x_MxD)) * up_MxF
        elif self.activation == "relu2":
            hidden_MxF = jnp.square(nn.relu(up_MxF))
        else:
            hidden_MxF = nn.gelu(up_MxF)
        return dense(self.width, "down", kernel_init=self.out_init)(hidden_MxF)
