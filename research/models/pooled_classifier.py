"""A language model as a classifier of texts: its hidden states are pooled."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

POOLED_GROUPS = (("classifier/(kernel|bias)", "head"),)
POOLED_SHARDING = (("classifier/(kernel|bias)", ()),)
POOLED_TRANSFER = (("classifier/kernel", "output"), ("classifier/bias", "output_vector"))


class Pooled(nn.Module):
    """Token ids [B, T] → class logits [B, C]: a linear classifier on the hidden states of a
    language model, the `backbone`, averaged over the tokens that are not `pad`."""

    backbone: nn.Module
    classes: int
    pad: int

    @nn.compact
    def __call__(self, tokens_BxT: Array) -> Array:
        B, T = tokens_BxT.shape
        real_BxT = tokens_BxT != self.pad
        # Of a causal one, no token sees the padding after it.
        mask = () if getattr(self.backbone, "causal", True) else (real_BxT,)
        x_BxTxD = self.backbone(tokens_BxT, *mask).reshape(B, T, -1).astype(jnp.float32)  # type: ignore[operator]
        real_BxTx1 = real_BxT[..., None].astype(jnp.float32)
        x_BxD = (x_BxTxD * real_BxTx1).sum(1) / jnp.maximum(real_BxTx1.sum(1), 1)
        return nn.Dense(self.classes, name="classifier")(x_BxD)
