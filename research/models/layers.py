"""Layers shared by the language models. Dimensions, one letter each:

B batch, T time (context), S cached time, M = B·T, D width, H heads, G key-value heads,
R = H/G, K head size, F hidden width of the feed-forward.

Activations between blocks are flat, x_MxD: with [B, T, D] a kernel's gradient contracts two
dimensions, for which XLA on CPU first writes a transposed copy.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from research.models import activation_sharding, custom_vjp

NormName = Literal["rms", "layer"]


class Norm(nn.Module):
    """RMSNorm or LayerNorm, computed in float32, with a scale and optionally a bias."""

    kind: NormName
    bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = x.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, shape)
        y: Any = custom_vjp.normalize(x, scale_D, self.kind == "layer")
        if self.bias:
            bias_D = self.param("bias", nn.initializers.zeros, shape)
            y += bias_D.reshape((1,) * (y.ndim - 1) + shape)
        return y.astype(self.dtype)


class Dense(nn.Module):
    """x_MxI → x w + b, [M, O], computed in `dtype` from weights in float32; `wide`: the sums are
    returned in float32, as they are."""

    features: int
    bias: bool
    dtype: str
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    wide: bool = False

    @nn.compact
    def __call__(self, x_MxI: Array) -> Array:
        # Flax asks for a draw wherever it wants a shape; to trace one takes longer than the layer.
        init = self.kernel_init if self.is_initializing() else nn.initializers.zeros
        w_IxO = self.param("kernel", init, (x_MxI.shape[-1], self.features))
        y: Any = custom_vjp.dense(x_MxI.astype(self.dtype), w_IxO.astype(self.dtype), self.wide)
        if not self.bias:
            return y
        b_O = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + b_O.astype(y.dtype)[None]


def rotary_angles(
    length: int, head_size: int, theta: float, offset: Array | int = 0
) -> tuple[Array, Array]:
    """cos and sin, each [T, K], of the rotary angles at T positions from `offset` (Su et al. 2021).

    Feature j of a head is paired with feature j + K/2 ("rotate-half", as in Llama).
    """
    freq = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle_TxJ = jnp.outer(offset + jnp.arange(length, dtype=jnp.float32), freq)
    angle_TxK = jnp.concatenate([angle_TxJ, angle_TxJ], axis=-1)
    return jnp.cos(angle_TxK), jnp.sin(angle_TxK)


def rotate(x_BxTxHxK: Array, angles: tuple[Array, Array]) -> Array:
    """Apply rotary position embeddings to queries or keys [B, T, H, K]."""
    cos, sin = (a[None, :, None, :].astype(x_BxTxHxK.dtype) for a in angles)
    left, right = jnp.split(x_BxTxHxK, 2, axis=-1)
    return x_BxTxHxK * cos + jnp.concatenate([-right, left], axis=-1) * sin


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
        def dense(features: int, name: str, **kwargs) -> Dense:
            return Dense(features, self.bias, self.dtype, name=name, **kwargs)

        up_MxF = dense(self.hidden, "up")(x_MxD)
        if self.activation == "swiglu":
            hidden_MxF = nn.silu(dense(self.hidden, "gate")(x_MxD)) * up_MxF
        elif self.activation == "relu2":
            hidden_MxF = jnp.square(nn.relu(up_MxF))
        else:
            hidden_MxF = custom_vjp.gelu(up_MxF)
        return dense(self.width, "down", kernel_init=self.out_init)(hidden_MxF)


def logits(x_MxD: Array, head: nn.Module, dtype: str) -> Array:
    """Logits [M, V] in float32; `head` is a wide Dense layer or, with tied embeddings, the
    embedding."""
    if isinstance(head, nn.Embed):
        logits_MxV: Any = custom_vjp.dense(x_MxD, head.embedding.astype(dtype).T, True)
    else:
        logits_MxV = head(x_MxD)
    return activation_sharding.shard_rows(logits_MxV, "tensor")
