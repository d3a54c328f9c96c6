"""A bidirectional encoder of text, p(w_t | all tokens but those that are masked), as BERT is one
(Devlin et al. 2019).

Its blocks are the transformer's with attention to both sides; a token that is masked has an
embedding of its own. Dimensions as in `layers`; V vocabulary, L depth.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from research.config.types import Positive, PositiveInt, ScannedLayers
from research.models import activation_sharding, layers, transformer
from research.models.transformer import MESH_DIVIDES, SIZE_RULE, TransformerConfig, nth_size

__all__ = ["MESH_DIVIDES", "SIZE_RULE", "nth_size"]  # sized and split as a transformer is

SIZED = ("width", "depth", "heads", "kv_heads", "hidden")
FIXABLE = ("depth",)  # may be given beside `size`
DIVISIBILITY = (("heads", "width"), ("kv_heads", "heads"))
GROUPS = (*transformer.GROUPS, ("mask/embedding", "embedding"))
SHARDING = (*transformer.SHARDING, ("mask/embedding", (None, "fsdp")))  # 1, D
# The roles of training.transfer: those of the transformer, read from this text.
TRANSFER = (
    ("(embed|position|mask)/embedding", "embedding"),
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


@dataclass(frozen=True)
class EncoderConfig:
    """Hyperparameters of an encoder; `module()` builds the network. Raises ValueError for an odd
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
    remat: Literal["none", "dots", "projections", "offload", "full"]
    unroll: PositiveInt

    def __post_init__(self) -> None:
        self.blocks()

    def module(self) -> nn.Module:
        return Encoder(self)

    def blocks(self) -> "Bidirectional":
        return Bidirectional(**dataclasses.asdict(self), attention="xla")


class Bidirectional(TransformerConfig):
    """A transformer whose tokens look at all tokens that are no padding."""

    def attend(self, q: Array, k: Array, v: Array, real: transformer.Mask) -> Array:
        seen_Bx1x1xT = None if real is None else real[:, None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=seen_Bx1x1xT)


class Encoder(nn.Module):
    """Token ids [B, T], where the id V is a mask → hidden states [B·T, D]; `unembed` → logits
    [B·T, V] in float32. `real` [B, T] says which tokens are no padding; without it, all are."""

    cfg: EncoderConfig
    causal = False

    def setup(self) -> None:
        cfg = self.cfg
        embed_init = nn.initializers.normal(1 / math.sqrt(cfg.width))
        self.embed = nn.Embed(cfg.vocab, cfg.width, embedding_init=embed_init)
        # Not a row of the table: that is split over devices, and may be the head.
        self.mask = nn.Embed(1, cfg.width, embedding_init=embed_init)
        if cfg.positions == "learned":
            self.position = nn.Embed(cfg.context, cfg.width, embedding_init=embed_init)
        self.blocks = transformer.scanned(cfg.blocks(), self.is_initializing())
        self.final_norm = layers.Norm(cfg.norm, cfg.bias, cfg.dtype)
        if not cfg.tie_embeddings:
            self.head = layers.Dense(cfg.vocab, False, cfg.dtype, wide=True)

    def __call__(self, tokens_BxT: Array, real_BxT: transformer.Mask = None) -> Array:
        (B, T), cfg = tokens_BxT.shape, self.cfg
        ids_M = tokens_BxT.reshape(-1)
        masked_M = ids_M == cfg.vocab
        dtype = cfg.dtype if cfg.positions == "rotary" else "float32"
        x_MxD = activation_sharding.embedding_lookup(
            self.embed.embedding, jnp.where(masked_M, 0, ids_M), dtype
        )
        mask_1xD, angles = self.mask.embedding.astype(dtype), None
        x_MxD = jnp.where(masked_M[:, None], mask_1xD, x_MxD)
        if cfg.positions == "rotary":
            angles = layers.rotary_angles(T, cfg.width // cfg.heads, cfg.rotary_theta)
        else:
            p_TxD = self.position(jnp.arange(T))
            x_MxD = (x_MxD.reshape(B, T, -1) + p_TxD[None]).reshape(B * T, -1)
        x_MxD = activation_sharding.scatter_tokens(x_MxD.astype(cfg.dtype))
        x_MxD, _ = self.blocks(x_MxD, None, T, angles, 0, real_BxT)  # type: ignore[operator]
        return activation_sharding.gather_tokens(self.final_norm(x_MxD))

    def unembed(self, x_MxD: Array) -> Array:
        head = self.embed if self.cfg.tie_embeddings else self.head
        return layers.logits(x_MxD, head, self.cfg.dtype)


def forward_flops(cfg: EncoderConfig) -> dict[str, int]:
    """As of a transformer, at all T tokens of an example, masked or not. No entry of the attention
    map is masked, so it counts whole under every convention."""
    parts = transformer.forward_flops(cfg.blocks())
    return parts | {"attention_causal": parts["attention_full"]}
