"""Schedules, optimizers and weight decay. Every number is traced: one compiled step serves all.

An optimizer here is a function of its (traced) numbers, called inside the step; its state does not
depend on them. The learning rate is applied last, by the step.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from research import paths, trees
from research.kinds import Amount, Fraction, Positive, Share

# What is decayed: matrices. Scales and biases are not, they are few and their size has a meaning.
DECAY = (("kernel|embedding", True), ("scale|bias", False))


def decay_mask(params: dict) -> dict:
    """True for the leaves that weight decay acts on."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: paths.match(DECAY, trees.key_path(path), "decay rule"), params
    )


def adamw(
    *, b1: Fraction, b2: Fraction, eps: Positive, weight_decay: Amount
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), matrices only."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw}


def constant(step: Array, warmup: Array, total: Array) -> Array:
    """1 after the warm-up."""
    return jnp.ones_like(step, jnp.float32)


def cosine(step: Array, warmup: Array, total: Array, *, final: Fraction) -> Array:
    """Half a cosine from 1 at the end of the warm-up to `final` at the last step."""
    share = jnp.clip((step - warmup) / jnp.maximum(total - 1 - warmup, 1), 0, 1)
    return final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * share))


def wsd(step: Array, warmup: Array, total: Array, *, decay: Share, final: Fraction) -> Array:
    """Warmup–stable–decay: 1, then over the last share `decay` of the run linearly to `final`."""
    length = jnp.maximum(decay * total, 1)
    share = jnp.clip((total - 1 - step) / length, 0, 1)
    return final + (1 - final) * share


SCHEDULES: dict[str, Callable[..., Array]] = {"constant": constant, "cosine": cosine, "wsd": wsd}


def learning_rate(name: str, step: Array, hyper: Mapping) -> Array:
    """Peak rate × linear warm-up × schedule, at `step` counted from 0. All of `hyper` is traced:
    "lr", "warmup" and "total" (steps), "schedule" (its own numbers)."""
    step = step.astype(jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(hyper["warmup"], 1))
    factor = SCHEDULES[name](step, hyper["warmup"], hyper["total"], **hyper["schedule"])
    return hyper["lr"] * warm * factor
