"""Adafactor: second moments that need little memory."""

import optax

from research.config.types import NonNegative, OpenUnit, Positive, UnitInterval
from research.training import optimizers


def adafactor(
    *,
    decay_rate: OpenUnit,
    clip_threshold: Positive,
    scale_by_params: bool,
    momentum: UnitInterval | None,
    weight_decay: NonNegative,
) -> optax.GradientTransformation:
    """Adam with second moments by rows and columns (Shazeer & Stern 2018).

    Only the two largest dimensions of a leaf are factored, and only if both are at least 128; small
    models keep whole moments. β₂ at step t is 1 - t^-decay_rate. The update's RMS is clipped, then
    times the parameter's RMS (at least 1e-3) if asked; a scanned kernel is one block for both.
    Without `momentum` no memory is held for it. Weight decay is decoupled, matrices only.
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate),
        optax.clip_by_block_rms(clip_threshold),
        optax.scale_by_param_block_rms() if scale_by_params else optax.identity(),
        optax.identity() if momentum is None else optax.ema(momentum, debias=False),
        optimizers.decayed(weight_decay),
    )
