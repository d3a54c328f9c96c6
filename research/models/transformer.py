"""A decoder-only transformer, p(w_1 … w_T) = ∏ p(w_t | w_<t) (Vaswani et al. 2017).

The blocks are one block scanned over depth: compile time is independent of depth, and block
parameters are stacked along a leading axis L. Dimensions as in `layers`; V vocabulary, L depth.
"""

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from research.config.types import Positive, PositiveInt, ScannedLayers
from research.models import activation_sharding, attention, custom_vjp, layers

SIZED = ("width", "depth", "heads", "kv_heads", "hidden")
FIXABLE = ("depth",)  # may be given beside `size`
DIVIDES = (("heads", "width"), ("kv_heads", "heads"))
SIZE_RULE = (
    "width in steps of 8 (of 64 above 512); depth = round(2 (width/32)^0.57), at least 2, which "
    "meets GPT-2 small (768, 12) and Llama 7B (4096, 32); head size = the even divisor of the "
    "width nearest to 2.15 sqrt(width); feed-forward 4 x width, 8/3 x width for SwiGLU"
)

GROUPS = (
    ("embed/embedding", "embedding"),
    ("position/embedding", "position"),
    ("blocks/attn/(query|key|value|out)/(kernel|bias)", "attention"),
    ("blocks/mlp/(up|gate|down)/(kernel|bias)", "feed_forward"),
    (r"\w*norm/(scale|bias)", "norm"),
    ("head/kernel", "head"),
)
SHARDING = (
    ("embed/embedding", ("tensor", "fsdp")),  # V, D
    ("position/embedding", (None, "fsdp")),  # T, D
    ("attn/(query|key|value)/kernel", ("fsdp", "tensor")),  # D, H·K
    ("attn/out/kernel", ("tensor", "fsdp")),  # H·K, D
    ("mlp/(up|gate)/kernel", ("fsdp", "tensor")),  # D, F
    ("mlp/down/kernel", ("tensor", "fsdp")),  # F, D
    ("head/kernel", ("fsdp", "tensor")),  # D, V
    ("(query|key|value|up|gate)/bias", ("tensor",)),
    (r"((out|down)/bias|\w*norm/(scale|bias))", ()),
)

# Fields that a mesh axis must divide, so that no attention head is split across devices.
SPLIT = {"tensor": ("heads", "kv_heads")}

Cache = tuple[Array, Array]  # keys and values, each [S, G, K] for every block and example


@dataclass(frozen=True)
class Transformer:
    """Hyperparameters of a transformer; `module()` builds the network. Raises ValueError for an odd
    head size with rotary positions."""

    vocab: PositiveInt
    context: PositiveInt
    width: PositiveInt
    depth: ScannedLayers
    heads: PositiveInt
    kv_heads: PositiveInt
    hidden: PositiveInt
    norm: Literal["rms", "layer"]
    positions: Literal["rotary", "learned"]
    rotary_theta: Positive
    activation: Literal["swiglu", "gelu", "relu2"]
    qk_norm: bool
    bias: bool
    tie_embeddings: bool
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["auto", "own", "xla", "cudnn"]
    remat: Literal["none", "dots", "full"]
    unroll: PositiveInt

    def __post_init__(self) -> None:
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"heads: {self.heads} of {self.head_size} features in a width of {self.width}; "
                "expected heads of an even size, whose features rotary positions turn in pairs"
            )

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def module(self) -> nn.Module:
        return Decoder(self)


class Decoder(nn.Module):
    """Token ids [B, T] → hidden states [B·T, D]; `unembed` → logits [B·T, V] in float32."""

    m: Transformer

    def setup(self) -> None:
        m = self.m
        embed_init = nn.initializers.normal(1 / math.sqrt(m.width))
        self.embed = nn.Embed(m.vocab, m.width, embedding_init=embed_init)
        if m.positions == "learned":
            self.position = nn.Embed(m.context, m.width, embedding_init=embed_init)
        self.blocks = nn.scan(
            _remat(m.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=m.depth,
            unroll=min(m.unroll, m.depth),
        )(m)
        self.final_norm = layers.Norm(m.norm, m.bias)
        if not m.tie_embeddings:
            self.head = layers.Dense(m.vocab, False, m.dtype)

    @property
    def limit(self) -> int:
        """Tokens that a state can hold: positions beyond the context were never trained."""
        return self.m.context

    def __call__(self, tokens_BxT: Array) -> Array:
        return self.decode(tokens_BxT, None, 0)[0]

    def start(self, batch: int, length: int) -> Cache:
        """An empty key-value cache for `length` tokens."""
        m = self.m
        shape = (m.depth, batch, length, m.kv_heads, m.head_size)
        return jnp.zeros(shape, m.dtype), jnp.zeros(shape, m.dtype)

    def decode(
        self, tokens_BxT: Array, state: Cache | None, at: Array | int
    ) -> tuple[Array, Cache | None]:
        """Hidden states [B·T, D] of tokens [B, T] at positions at … at + T − 1, and the updated
        cache. `state` None: there are no earlier tokens and no cache."""
        B, T = tokens_BxT.shape
        x_MxD = activation_sharding.embedding_lookup(
            self.embed.embedding, tokens_BxT.reshape(B * T)
        )
        if self.m.positions == "learned":
            p_TxD = self.position(at + jnp.arange(T))
            x_MxD = (x_MxD.reshape(B, T, -1) + p_TxD[None]).reshape(B * T, -1)
        angles = layers.rotary_angles(T, self.m.head_size, self.m.rotary_theta, at)
        x_MxD = activation_sharding.shard_rows(x_MxD.astype(self.m.dtype))
        x_MxD, state = self.blocks(x_MxD, state, angles, at)
        return self.final_norm(x_MxD).astype(self.m.dtype), state

    def unembed(self, x_MxD: Array) -> Array:
        return layers.logits(
            x_MxD, self.embed if self.m.tie_embeddings else self.head, self.m.dtype
        )


class Block(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + feed_forward(norm(x)); returns x and the cache."""

    m: Transformer

    @nn.compact
    def __call__(
        self, x_MxD: Array, cache: Cache | None, angles: tuple[Array, Array], at: Array | int
    ) -> tuple[Array, Cache | None]:
        m = self.m
        # With weights of variance ∝ 1/depth, the branches sum to a variance independent of depth.
        out_init = nn.initializers.variance_scaling(0.5 / m.depth, "fan_in", "truncated_normal")
        y_MxD = layers.Norm(m.norm, m.bias, name="attn_norm")(x_MxD).astype(m.dtype)
        y_MxD, cache = Attention(m, out_init, name="attn")(y_MxD, cache, angles, at)
        x_MxD = activation_sharding.shard_rows(x_MxD + y_MxD)
        y_MxD = layers.Norm(m.norm, m.bias, name="mlp_norm")(x_MxD).astype(m.dtype)
        x_MxD += layers.FeedForward(
            m.width, m.hidden, m.activation, m.bias, m.dtype, out_init, name="mlp"
        )(y_MxD)
        return activation_sharding.shard_rows(x_MxD), cache


def _remat(saved: str) -> type[nn.Module]:
    """Block with activation checkpointing (Chen et al. 2016). Saved for the backward pass: "none",
    all activations; "dots", matmul outputs without the attention maps, which grow as T²; "full",
    only the block's input."""
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return Block if saved == "none" else nn.remat(Block, prevent_cse=False, policy=policies[saved])


class Attention(nn.Module):
    """Causal self-attention of x [B·T, D], T from the rotary `angles`, over itself and the cached
    positions before `at`."""

    m: Transformer
    out_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self, x_MxD: Array, cache: Cache | None, angles: tuple[Array, Array], at: Array | int
    ) -> tuple[Array, Cache | None]:
        m, T = self.m, angles[0].shape[0]

        def heads(count: int, name: str) -> Array:
            y = layers.Dense(count * m.head_size, m.bias, m.dtype, name=name)(x_MxD)
            return y.reshape(-1, T, count, m.head_size)

        q, k, v = heads(m.heads, "query"), heads(m.kv_heads, "key"), heads(m.kv_heads, "value")
        if m.qk_norm:
            q = layers.Norm("rms", name="query_norm")(q).astype(m.dtype)
            k = layers.Norm("rms", name="key_norm")(k).astype(m.dtype)
        if m.positions == "rotary":
            q, k = layers.rotate(q, angles), layers.rotate(k, angles)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, at, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, at, axis=1)
            cache = k, v
            y = custom_vjp.causal_attention(q, k, v, at)
        else:
            y = attention.causal_attention(m.attention, q, k, v)
        out = layers.Dense(m.width, m.bias, m.dtype, self.out_init, name="out")
        return out(y.reshape(-1, m.width)), cache


def check(m: Transformer, platform: str) -> None:
    """Raise ValueError if the platform does not support the model's attention implementation."""
    attention.check(m.attention, m.dtype, m.head_size, platform)


def rung(i: int, *, activation: str, **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest transformer, i ≥ 1, by SIZE_RULE."""
    width = 8 * i if i <= 64 else 512 + 64 * (i - 64)
    sizes = [k for k in range(2, width + 1, 2) if width % k == 0]
    head_size = min(sizes, key=lambda k: abs(math.log(k / (2.15 * math.sqrt(width)))))
    hidden = 8 * round(width / 3) if activation == "swiglu" else 4 * width
    return {
        "width": width,
        "depth": max(2, round(2 * (width / 32) ** 0.57)),
        "heads": width // head_size,
        "kv_heads": width // head_size,
        "hidden": hidden,
    }


def is_attention_map(m: Transformer, shape: tuple[int, ...]) -> bool:
    """Whether `shape` is that of the attention map, which a fused kernel never materializes."""
    sizes = [size for size in shape if size > 1]
    return len(shape) > 3 and sizes[-2:] == [m.context, m.context]


def forward_flops(m: Transformer) -> dict[str, int]:
    """Forward matmul FLOPs of one example of T tokens, by part; a multiply-add is 2.

    `attention_full` counts the whole T×T map, as computed; `attention_causal` only the unmasked
    entries.
    """
    T, K = m.context, m.head_size
    kernels = m.width * K * (2 * m.heads + 2 * m.kv_heads)
    feed_forward = m.width * m.hidden * (3 if m.activation == "swiglu" else 2)
    return {
        "projections": 2 * T * m.depth * kernels,
        "feed_forward": 2 * T * m.depth * feed_forward,
        "attention_full": 4 * T * T * m.depth * m.heads * K,
        "attention_causal": 2 * T * (T + 1) * m.depth * m.heads * K,
        "head": 2 * T * m.width * m.vocab,
    }
