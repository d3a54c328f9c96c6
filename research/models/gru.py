"""A GRU language model, p(w_1 … w_T) = ∏ p(w_t | w_<t) (Cho et al. 2014).

The state h [B, D] of a layer is updated by every token:

    r = σ(x W_r + b_r + h U_r)                reset gate: the state that the candidate sees
    z = σ(x W_z + b_z + h U_z)                update gate: the state that is retained
    n = tanh(x W_n + b_n + r · (h U_n + c))   candidate
    h ← (1 − z) · n + z · h

The reset gate is applied after the recurrent product, as in cuDNN and PyTorch, so a step needs one
matmul h U; the input projections x W of all steps are one matmul before the recurrence.
Dimensions as in `layers`; V vocabulary, E = 3D the concatenated gates r, z, n.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from research.config.types import PositiveInt, UnrolledLayers
from research.models import activation_sharding, layers, parameter_sharding, recurrence

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
TRANSFER = (  # the roles of training.transfer
    ("embed/embedding", "scaled_embedding"),
    ("(input|recurrent)/kernel", "hidden"),
    ("(input|recurrent)/bias", "vector"),
    ("head/kernel", "output"),
)


@dataclass(frozen=True)
class GRUConfig:
    """Hyperparameters of a GRU; `module()` builds the network. `unroll` is the number of time steps
    per iteration of the compiled loop."""

    vocab: PositiveInt
    context: PositiveInt
    width: PositiveInt
    depth: UnrolledLayers
    tie_embeddings: bool
    dtype: Literal["float32", "bfloat16"]
    unroll: PositiveInt

    def module(self) -> nn.Module:
        return GRU(self)


class GRU(nn.Module):
    """Token ids [B, T] → hidden states [B·T, D]; `unembed` → logits [B·T, V] in float32."""

    cfg: GRUConfig
    max_length = None  # tokens that a state can hold: unlimited

    def setup(self) -> None:
        cfg = self.cfg
        embed_init = nn.initializers.normal(1 / math.sqrt(cfg.width))
        self.embed = nn.Embed(cfg.vocab, cfg.width, embedding_init=embed_init)
        self.layers = [Layer(cfg, name=f"layer{i}") for i in range(cfg.depth)]
        if not cfg.tie_embeddings:
            self.head = layers.Dense(cfg.vocab, False, cfg.dtype, wide=True)

    def __call__(self, tokens_BxT: Array) -> Array:
        return self.decode(tokens_BxT, self.init_cache(tokens_BxT.shape[0], 0), 0)[0]

    def init_cache(self, batch: int, length: int) -> list[Array]:
        """The initial state [B, D] of each layer; its size does not depend on `length`."""
        del length
        return [jnp.zeros((batch, self.cfg.width), jnp.float32)] * self.cfg.depth

    def decode(
        self, tokens_BxT: Array, state: list[Array], offset: Array | int
    ) -> tuple[Array, list[Array]]:
        """Hidden states [B·T, D] of the next tokens [B, T], and the updated state."""
        del offset  # a recurrent state has no positions
        # Unit variance at the gates; the embedding table may also be the head.
        table_VxD, dtype = self.embed.embedding, self.cfg.dtype
        x_MxD = activation_sharding.embedding_lookup(table_VxD, tokens_BxT.reshape(-1), dtype)
        x_MxD *= math.sqrt(self.cfg.width)
        after = []
        for layer, h_BxD in zip(self.layers, state, strict=True):
            x_MxD = activation_sharding.shard_rows(x_MxD.astype(self.cfg.dtype))
            x_MxD, h_BxD = layer(x_MxD, h_BxD)
            after.append(h_BxD)
        return x_MxD, after

    def unembed(self, x_MxD: Array) -> Array:
        return layers.logits(
            x_MxD, self.embed if self.cfg.tie_embeddings else self.head, self.cfg.dtype
        )


class Layer(nn.Module):
    """x [B·T, D] and the initial state [B, D] → all states [B·T, D] and the final one [B, D]."""

    cfg: GRUConfig

    @nn.compact
    def __call__(self, x_MxD: Array, h_BxD: Array) -> tuple[Array, Array]:
        gates_MxE = layers.Dense(3 * self.cfg.width, True, self.cfg.dtype, name="input")(x_MxD)
        return Recurrence(self.cfg, name="recurrent")(gates_MxE, h_BxD)


class Recurrence(nn.Module):
    """The recurrence over time, given the input projections x W + b [B·T, E]."""

    cfg: GRUConfig

    @nn.compact
    def __call__(self, x_MxE: Array, h_BxD: Array) -> tuple[Array, Array]:
        cfg, (B, D) = self.cfg, h_BxD.shape
        u_DxE = self.param("kernel", _orthogonal_gates, (D, 3 * D)).astype(cfg.dtype)
        # Replicated, like the gates: sharded, every time step would communicate the state.
        u_DxE = parameter_sharding.gather(u_DxE, (None, None), ("fsdp", "tensor"))
        c_D = self.param("bias", nn.initializers.zeros, (D,))

        x_TxBxE = x_MxE.reshape(B, -1, 3 * D).swapaxes(0, 1)
        h_TxBxD: Any = recurrence.recurrence(x_TxBxE, h_BxD, u_DxE, c_D, cfg.unroll)
        return h_TxBxD.astype(cfg.dtype).swapaxes(0, 1).reshape(-1, D), h_TxBxD[-1]


def _orthogonal_gates(key: Array, shape: tuple[int, int]) -> Array:
    """One random orthogonal matrix per gate, [D, 3D] (Saxe et al. 2014).

    Polar factors of Gaussian matrices, by Newton–Schulz iteration; QR would be shorter, but LAPACK
    inside a compiled program can deadlock on several CPU devices.
    """
    D = shape[0]

    def newton_schulz_step(_: Array, x_GxDxD: Array) -> Array:
        square = jnp.einsum("gij,gkj->gik", x_GxDxD, x_GxDxD, precision="highest")
        cube = jnp.einsum("gij,gjk->gik", square, x_GxDxD, precision="highest")
        return 1.5 * x_GxDxD - 0.5 * cube

    x_GxDxD = jax.random.normal(key, (3, D, D))
    x_GxDxD /= jnp.linalg.norm(x_GxDxD, axis=(1, 2), keepdims=True)  # no singular value above 1
    x_GxDxD = jax.lax.fori_loop(0, 64, newton_schulz_step, x_GxDxD)  # enough for one of 1e-10
    return x_GxDxD.swapaxes(0, 1).reshape(shape)


def nth_size(i: int, **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest GRU, i ≥ 1, by SIZE_RULE."""
    return {"width": 8 * i if i <= 64 else 512 + 64 * (i - 64), "depth": 2}


def forward_flops(cfg: GRUConfig) -> dict[str, int]:
    """Forward matmul FLOPs of one example of T tokens, by part; a multiply-add is 2."""
    T, gates = cfg.context, cfg.depth * 3 * cfg.width**2
    return {
        "input": 2 * T * gates,
        "recurrent": 2 * T * gates,
        "head": 2 * T * cfg.width * cfg.vocab,
    }
