"""Steps whose loss or gradient norm is a spike, or not finite, are skipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from research.config.types import Positive


class SkipState(NamedTuple):
    """How many steps were `seen` and are in the moving `mean` and mean `square`, each [2], of loss
    and gradient norm; how many were `skipped`."""

    seen: Array
    mean: Array
    square: Array
    skipped: Array
    inner: Any


SEEN = 32  # steps that are looked at before one is skipped
MEMORY = 0.98  # what a step leaves of the mean before it: about the last fifty count


def skip_spikes(
    inner: optax.GradientTransformation, sigmas: Positive
) -> optax.GradientTransformationExtraArgs:
    """`inner`, but a step that is not finite, or whose loss or gradient norm lies more than
    `sigmas` standard deviations above its moving mean, changes neither parameters nor moments.

    The update needs `loss` and `norm`. What is skipped does not enter the mean. The first SEEN
    steps are skipped only where they are not finite.
    """

    def init(params: Any) -> SkipState:
        zero = jnp.zeros(2, jnp.float32)
        return SkipState(jnp.int32(0), zero, zero, jnp.int32(0), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **metrics: Array) -> tuple[Any, Any]:
        now = jnp.stack([metrics["loss"], metrics["norm"]]).astype(jnp.float32)
        seen = state.seen.astype(jnp.float32)
        known = jnp.maximum(1 - jnp.float32(MEMORY) ** seen, 1e-6)  # as Adam's correction
        mean, square = state.mean / known, state.square / known
        spread = jnp.sqrt(jnp.maximum(square - mean**2, 1e-6 * mean**2))  # above what rounding does
        high = mean + sigmas * spread
        good = jnp.isfinite(now).all() & ((state.seen < SEEN) | (now <= high).all())

        stepped, moments = inner.update(updates, state.inner, params)
        new = SkipState(
            state.seen + 1,
            MEMORY * state.mean + (1 - MEMORY) * now,
            MEMORY * state.square + (1 - MEMORY) * now**2,
            state.skipped,
            moments,
        )
        old = state._replace(skipped=state.skipped + 1)
        blank = jax.tree.map(jnp.zeros_like, stepped)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), (stepped, new), (blank, old))

    return optax.GradientTransformationExtraArgs(init, update)
