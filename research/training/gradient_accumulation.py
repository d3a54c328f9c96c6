"""Gradient accumulation: a batch is taken in parts, one after the other, which need the memory of
one. Dimensions: B examples of a batch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

# (params, batch) → Σ loss, Σ count of the batch
SummedLoss = Callable[[dict, Mapping[str, Array]], tuple[Array, Array]]


def mean_loss_and_gradient(
    summed_loss: SummedLoss, params: dict, batch: Mapping[str, Array], parts: int
) -> tuple[Array, dict]:
    """The mean loss of a batch, whose arrays are [B, ...], and its gradient; `parts` divides B.

    Losses and gradients of the parts are sums, divided by the count of the whole batch: so tokens
    weigh the same, whatever part they are in.
    """
    if parts == 1:

        def mean_loss(params: dict, batch: Mapping[str, Array]) -> Array:
            loss, count = summed_loss(params, batch)
            return loss / count

        return jax.value_and_grad(mean_loss)(params, batch)
    value_and_grad = jax.value_and_grad(summed_loss, has_aux=True)

    def add(sums: tuple, part: Mapping[str, Array]) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, sums, value_and_grad(params, part)), None

    zero = (jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params)
    stacked = {name: _split_rows(x, parts) for name, x in batch.items()}
    ((loss, count), grads), _ = jax.lax.scan(add, zero, stacked)
    return loss / count, jax.tree.map(lambda g: g / count, grads)


def _split_rows(x: Array, parts: int) -> Array:
    """[B, ...] → [parts, B/parts, ...]. Every part has neighbors of all rows, so where the rows
    are split over devices, each device has its share of each part already."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
