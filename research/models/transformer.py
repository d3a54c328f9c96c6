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
from jax.ad_checkpoint import checkpoint_name as named

from research.config.types import Positive, PositiveInt, ScannedLayers
from research.models import activation_sharding, attention, custom_vjp, layers

SIZED = ("width", "depth", "heads", "kv_heads", "hidden")
FIXABLE = ("depth",)  # may be given beside `size`
DIVISIBILITY = (("heads", "width"), ("kv_heads", "heads"))
SIZE_RULE = (
    "width in steps of 8 (of 64 above 512, of 128 above 1024); depth = round(2 (width/32)^0.57), "
    "at least 2, which meets GPT-2 small (768, 12) and Llama 7B (4096, 32); head size = the even "
    "divisor of the width (above 512: 64 or 128) nearest to 2.15 sqrt(width); feed-forward 4 x "
    "width, 8/3 x width for SwiGLU (above 512 in steps of 256)"
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
TRANSFER = (  # the roles of training.transfer
    ("(embed|position)/embedding", "embedding"),
    ("attn/query/kernel", "query"),
    ("(attn/(key|value)|mlp/(up|gate))/kernel", "hidden"),
    ("(attn/out|mlp/down)/kernel", "branch"),
    ("attn/query/bias", "query_vector"),
    (r"((key|value|up|gate)/bias|(attn|mlp)_norm/(scale|bias))", "vector"),
    ("(out|down)/bias", "branch_vector"),
    ("query_norm/scale", "query_gain"),
    ("key_norm/scale", "key_gain"),
    ("final_norm/(scale|bias)", "final_vector"),
    ("head/kernel", "output"),
)

# Fields that a mesh axis must divide, so that no attention head is split across devices.
MESH_DIVIDES = {"tensor": ("heads", "kv_heads")}

Angles = tuple[Array, Array] | None  # cos and sin of rotary positions
Cache = tuple[Array, Array] | None  # keys and values, each [S, G, K] for every block and example
Mask = Array | None  # [B, T], whether a token is no padding


@dataclass(frozen=True)
class TransformerConfig:
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
    attention: Literal["auto", "own", "xla", "cudnn", "splash"]
    remat: Literal["none", "dots", "projections", "offload", "full"]
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
        return Transformer(self)

    def attend(self, q: Array, k: Array, v: Array, real: Mask) -> Array:
        del real  # padding follows the text, and no token looks ahead
        return attention.causal_attention(self.attention, q, k, v)


class Transformer(nn.Module):
    """Token ids [B, T] → hidden states [B·T, D]; `unembed` → logits [B·T, V] in float32."""

    cfg: TransformerConfig

    def setup(self) -> None:
        cfg = self.cfg
        embed_init = nn.initializers.normal(1 / math.sqrt(cfg.width))
        self.embed = nn.Embed(cfg.vocab, cfg.width, embedding_init=embed_init)
        if cfg.positions == "learned":
            self.position = nn.Embed(cfg.context, cfg.width, embedding_init=embed_init)
        self.blocks = scanned(cfg, self.is_initializing())
        self.final_norm = layers.Norm(cfg.norm, cfg.bias, cfg.dtype)
        if not cfg.tie_embeddings:
            self.head = layers.Dense(cfg.vocab, False, cfg.dtype, wide=True)

    @property
    def max_length(self) -> int:
        """Tokens that a cache can hold: positions beyond the context were never trained."""
        return self.cfg.context

    def __call__(self, tokens_BxT: Array) -> Array:
        return self.decode(tokens_BxT, None, 0)[0]

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty key-value cache for `length` tokens."""
        cfg = self.cfg
        shape = (cfg.depth, batch, length, cfg.kv_heads, cfg.head_size)
        return jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)

    def decode(self, tokens_BxT: Array, cache: Cache, offset: Array | int) -> tuple[Array, Cache]:
        """Hidden states [B·T, D] of tokens [B, T] from position `offset`, and the new `cache`."""
        B, T = tokens_BxT.shape
        dtype = self.cfg.dtype if self.cfg.positions == "rotary" else "float32"
        ids_M, table_VxD = tokens_BxT.reshape(-1), self.embed.embedding
        x_MxD, angles = activation_sharding.embedding_lookup(table_VxD, ids_M, dtype), None
        if self.cfg.positions == "rotary":
            angles = layers.rotary_angles(T, self.cfg.head_size, self.cfg.rotary_theta, offset)
        else:
            p_TxD = self.position(offset + jnp.arange(T))
            x_MxD = (x_MxD.reshape(B, T, -1) + p_TxD[None]).reshape(B * T, -1)
        x_MxD = activation_sharding.scatter_tokens(x_MxD.astype(self.cfg.dtype))
        x_MxD, cache = self.blocks(x_MxD, cache, T, angles, offset, None)
        return activation_sharding.gather_tokens(self.final_norm(x_MxD)), cache

    def unembed(self, x_MxD: Array) -> Array:
        head = self.embed if self.cfg.tie_embeddings else self.head
        return layers.logits(x_MxD, head, self.cfg.dtype)


def scanned(cfg: TransformerConfig, initializing: bool) -> nn.Module:
    """All blocks, as one."""
    return nn.scan(
        _remat(cfg.remat),
        variable_axes={"params": 0, "intermediates": 0},  # the latter where they are asked for
        split_rngs={"params": True},
        in_axes=(0, *[nn.broadcast] * 4),  # pyright: ignore[reportArgumentType]
        length=cfg.depth,
        unroll=min(cfg.unroll, cfg.depth),
        check_constancy_invariants=initializing,  # a second trace, by which parameters are drawn
    )(cfg)


class Block(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + feed_forward(norm(x)); returns x and the cache."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self, x_MxD: Array, cache: Cache, T: int, angles: Angles, offset: Array | int, real: Mask
    ) -> tuple[Array, Cache]:
        cfg = self.cfg
        # With weights of variance ∝ 1/depth, the branches sum to a variance independent of depth.
        out_init = nn.initializers.variance_scaling(0.5 / cfg.depth, "fan_in", "truncated_normal")
        x_MxD = named(x_MxD, "block_input")
        norm = layers.Norm(cfg.norm, cfg.bias, cfg.dtype, name="attn_norm")
        y_MxD = activation_sharding.gather_tokens(norm(x_MxD))
        y_MxD, cache = Attention(cfg, out_init, name="attn")(y_MxD, cache, T, angles, offset, real)
        x_MxD += activation_sharding.scatter_tokens(y_MxD)
        y_MxD = layers.Norm(cfg.norm, cfg.bias, cfg.dtype, name="mlp_norm")(x_MxD)
        y_MxD = layers.FeedForward(
            cfg.width, cfg.hidden, cfg.activation, cfg.bias, cfg.dtype, out_init, name="mlp"
        )(activation_sharding.gather_tokens(y_MxD))
        return x_MxD + activation_sharding.scatter_tokens(y_MxD), cache


def _remat(saved: str) -> type[nn.Module]:
    """Block, of which the backward pass computes again what is not `saved`."""
    if saved == "none":
        return Block
    from research.models.rematerialization import policy  # which many runs do not need

    return nn.remat(Block, prevent_cse=False, policy=policy(saved), static_argnums=(3,))  # T


class Attention(nn.Module):
    """Self-attention of x [B·T, D] as `cfg` attends, over the cached positions before `offset`."""

    cfg: TransformerConfig
    out_init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self, x_MxD: Array, cache: Cache, T: int, angles: Angles, offset: Array | int, real: Mask
    ) -> tuple[Array, Cache]:
        cfg = self.cfg

        def proj(count: int, name: str) -> Array:
            y = layers.Dense(count * cfg.head_size, cfg.bias, cfg.dtype, name=name)(x_MxD)
            return named(y.reshape(-1, T, count, cfg.head_size), "projection")

        q, k, v = proj(cfg.heads, "query"), proj(cfg.kv_heads, "key"), proj(cfg.kv_heads, "value")
        if cfg.qk_norm:
            q = layers.Norm("rms", False, cfg.dtype, name="query_norm")(q)
            k = layers.Norm("rms", False, cfg.dtype, name="key_norm")(k)
        if angles is not None:
            q, k = layers.rotate(q, angles), layers.rotate(k, angles)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, offset, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, offset, axis=1)
            cache = k, v
            y = custom_vjp.causal_attention_vjp(q, k, v, offset)
        else:
            y = cfg.attend(q, k, v, real)
        out = layers.Dense(cfg.width, cfg.bias, cfg.dtype, self.out_init, name="out")
        return named(out(y.reshape(-1, cfg.width)), "projection"), cache


def check_platform(cfg: TransformerConfig, platform: str) -> None:
    """Raise ValueError if the platform does not support the model's attention implementation."""
    if cfg.attention in ("cudnn", "splash"):
        from research.models import attention_kernels as kernels

        kernels.check(cfg.attention, cfg.dtype, cfg.head_size, cfg.context, platform)


def nth_size(i: int, *, activation: str, **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest transformer, i ≥ 1, by SIZE_RULE."""
    width = max(8 * min(i, 64), min(512 + 64 * (i - 64), 1024), 1024 + 128 * (i - 72))
    sizes = [k for k in range(2, width + 1, 2) if width % k == 0] if width <= 512 else [64, 128]
    head_size = min(sizes, key=lambda k: abs(math.log(k / (2.15 * math.sqrt(width)))))
    step = 8 if width <= 512 else 256
    hidden = step * round(8 * width / 3 / step) if activation == "swiglu" else 4 * width
    return {
        "width": width,
        "depth": max(2, round(2 * (width / 32) ** 0.57)),
        "heads": width // head_size,
        "kv_heads": width // head_size,
        "hidden": hidden,
    }


def unwritten_map(cfg: TransformerConfig, platform: str) -> tuple[int, ...]:
    """The sizes of a head's attention map where a kernel of the platform keeps it to itself."""
    sizes = cfg.dtype, cfg.head_size, cfg.context, platform
    fused = attention.choose_implementation(cfg.attention, *sizes) in ("cudnn", "splash")
    return (cfg.context, cfg.context) if fused else ()


def forward_flops(cfg: TransformerConfig) -> dict[str, int]:
    """Forward matmul FLOPs of one example of T tokens, by part; a multiply-add is 2.

    `attention_full` counts the whole T×T map, as computed; `attention_causal` what is unmasked.
    """
    T, K = cfg.context, cfg.head_size
    kernels = cfg.width * K * (2 * cfg.heads + 2 * cfg.kv_heads)
    feed_forward = cfg.width * cfg.hidden * (3 if cfg.activation == "swiglu" else 2)
    return {
        "projections": 2 * T * cfg.depth * kernels,
        "feed_forward": 2 * T * cfg.depth * feed_forward,
        "attention_full": 4 * T * T * cfg.depth * cfg.heads * K,
        "attention_causal": 2 * T * (T + 1) * cfg.depth * cfg.heads * K,
        "head": 2 * T * cfg.width * cfg.vocab,
    }
