"""Cross-entropy."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits_MxV: Array, target_M: Array) -> Array:
    """−log softmax(logits)[target], [M]."""
    chosen_M = jnp.take_along_axis(logits_MxV, target_M[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits_MxV, axis=-1) - chosen_M
