"""A GRU language model, P(w_1 … w_T) = ∏ P(w_t | w_<t) (Cho et al. 2014).

What is known of the past is a state h, which every token changes:

    r = σ(x W_r + b_r + h U_r)                reset: what the candidate sees of the state
    z = σ(x W_z + b_z + h U_z)                update: what stays of the state
    n = tanh(x W_n + b_n + r · (h U_n + c))   candidate
    h ← (1 − z) · n + z · h

The reset gate comes after the recurrent product, as in cuDNN and PyTorch, so the three products of
a step are one. Those of the inputs are one for all steps, and only h U waits for the step before.
Dimensions as in `layers`; V vocabulary, E = 3D the gates r, z, n side by side.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from research.config.types import PositiveInt, UnrolledLayers
from research.models import activation_sharding, layers, recurrence

SIZED = ("width", "depth")
FIXABLE = ("depth",)  # may be given beside `size`
SIZE_RULE = (
    "width in steps of 8 (of 64 above 512); depth 2 at every size: the steps of a layer follow "
    "each other, so depth costs time that width does not"
)

GROUPS = (
    ("embed/embedding", "embedding"),
    (r"layer\d+/input/(kernel|bias)", "input"),
    (r"layer\d+/recurrent/(kernel|bias)", "recurrent"),
    ("head/kernel", "head"),
)
SHARDING = (
    ("embed/embedding", ("tensor", "fsdp")),  # V, D
    ("(input|recurrent)/kernel", ("fsdp", "tensor")),  # D, E
    ("(input|recurrent)/bias", ("tensor",)),  # E; D
    ("head/kernel", ("fsdp", "tensor")),  # D, V
)


@dataclass(frozen=True)
class GRU:
    """The numbers that make a GRU; `module()` is the network. `unroll` steps of time are one turn
    of the compiled loop."""

    vocab: PositiveInt
    context: PositiveInt
    width: PositiveInt
    depth: UnrolledLayers
    tie_embeddings: bool
    dtype: Literal["float32", "bfloat16"]
    unroll: PositiveInt

    def module(self) -> nn.Module:
        return Recurrent(self)


class Recurrent(nn.Module):
    """Token ids [B, T] → hidden states [B·T, D]; `unembed` → logits [B·T, V] in float32."""

    m: GRU
    limit = None  # tokens that a state can take up: without end

    def setup(self) -> None:
        m = self.m
        embed_init = nn.initializers.normal(1 / math.sqrt(m.width))
        self.embed = nn.Embed(m.vocab, m.width, embedding_init=embed_init)
        self.layers = [Layer(m, name=f"layer{i}") for i in range(m.depth)]
        if not m.tie_embeddings:
            self.head = layers.Dense(m.vocab, False, m.dtype)

    def __call__(self, tokens_BxT: Array) -> Array:
        return self.decode(tokens_BxT, self.start(tokens_BxT.shape[0], 0), 0)[0]

    def start(self, batch: int, length: int) -> list[Array]:
        """The state [B, D] of each layer before the first token; its size is that of any length."""
        del length
        return [jnp.zeros((batch, self.m.width), jnp.float32)] * self.m.depth

    def decode(
        self, tokens_BxT: Array, state: list[Array], at: Array | int
    ) -> tuple[Array, list[Array]]:
        """Hidden states [B·T, D] of the next T tokens, and the state after them."""
        del at  # the state knows no positions
        # Unit variance where the gates look; the table itself may also be the head.
        x_MxD = activation_sharding.embedding_lookup(self.embed.embedding, tokens_BxT.reshape(-1))
        x_MxD *= math.sqrt(self.m.width)
        after = []
        for layer, h_BxD in zip(self.layers, state, strict=True):
            x_MxD, h_BxD = layer(activation_sharding.shard_rows(x_MxD.astype(self.m.dtype)), h_BxD)
            after.append(h_BxD)
        return x_MxD, after

    def unembed(self, x_MxD: Array) -> Array:
        return layers.logits(
            x_MxD, self.embed if self.m.tie_embeddings else self.head, self.m.dtype
        )


class Layer(nn.Module):
    """x_MxD and the state before it → the states after every token, [B·T, D], and the last."""

    m: GRU

    @nn.compact
    def __call__(self, x_MxD: Array, h_BxD: Array) -> tuple[Array, Array]:
        gates_MxE = layers.Dense(3 * self.m.width, True, self.m.dtype, name="input")(x_MxD)
        return Recurrence(self.m, name="recurrent")(gates_MxE, h_BxD)


class Recurrence(nn.Module):
    """The steps of a layer, given what the inputs add to the gates."""

    m: GRU

    @nn.compact
    def __call__(self, x_MxE: Array, h_BxD: Array) -> tuple[Array, Array]:
        m, (B, D) = self.m, h_BxD.shape
        u_DxE = self.param("kernel", _orthogonal_gates, (D, 3 * D)).astype(m.dtype)
        # Whole on every device, and the gates of its rows: over a mesh axis, every token would wait
        # for what the other devices have of the state.
        u_DxE = activation_sharding.replicate(u_DxE, None, None)
        c_D = self.param("bias", nn.initializers.zeros, (D,))

        x_TxBxE = x_MxE.reshape(B, -1, 3 * D).swapaxes(0, 1)
        h_TxBxD: Any = recurrence.recurrence(x_TxBxE, h_BxD, u_DxE, c_D, m.unroll)
        return h_TxBxD.astype(m.dtype).swapaxes(0, 1).reshape(-1, D), h_TxBxD[-1]


def _orthogonal_gates(key: Array, shape: tuple[int, int]) -> Array:
    """One random orthogonal matrix for each gate, side by side (Saxe et al. 2014).

    They are the polar factors of Gaussian ones, by the iteration of Newton and Schulz. By QR it
    would be shorter; but on several CPU devices LAPACK in a compiled program can wait for itself.
    """
    D = shape[0]

    def nearer(_: Array, x_GxDxD: Array) -> Array:
        square = jnp.einsum("gij,gkj->gik", x_GxDxD, x_GxDxD, precision="highest")
        cube = jnp.einsum("gij,gjk->gik", square, x_GxDxD, precision="highest")
        return 1.5 * x_GxDxD - 0.5 * cube

    x_GxDxD = jax.random.normal(key, (3, D, D))
    x_GxDxD /= jnp.linalg.norm(x_GxDxD, axis=(1, 2), keepdims=True)  # no singular value above 1
    x_GxDxD = jax.lax.fori_loop(0, 64, nearer, x_GxDxD)  # enough for one of 1e-10
    return x_GxDxD.swapaxes(0, 1).reshape(shape)


def rung(i: int, **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest GRU, i ≥ 1, by SIZE_RULE."""
    return {"width": 8 * i if i <= 64 else 512 + 64 * (i - 64), "depth": 2}


def forward_flops(m: GRU) -> dict[str, int]:
    """FLOPs of the dot products in one forward pass over one example of T tokens, by part.

    A multiply and an add are two.
    """
    T, gates = m.context, m.depth * 3 * m.width**2
    return {
        "input": 2 * T * gates,
        "recurrent": 2 * T * gates,
        "head": 2 * T * m.width * m.vocab,
    }
