"""Learning-rate schedules. Every number is traced, a bool is static: one compiled step serves all
values."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from research.config.types import OpenUnit, Positive, UnitInterval


def constant(step: Array, warmup: Array, total: Array) -> Array:
    """1 after the warm-up."""
    return jnp.ones_like(step, jnp.float32)


def cosine(step: Array, warmup: Array, total: Array, *, final: UnitInterval) -> Array:
    """Half a cosine from 1 at the end of the warm-up to `final` at the last step."""
    share = _share(step, warmup, total)
    return final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * share))


def linear(step: Array, warmup: Array, total: Array, *, final: UnitInterval) -> Array:
    """A line from 1 at the end of the warm-up to `final` at the last step."""
    return 1 - (1 - final) * _share(step, warmup, total)


def _share(step: Array, warmup: Array, total: Array) -> Array:
    """Of the way from the end of the warm-up to the last step."""
    return jnp.clip((step - warmup) / jnp.maximum(total - 1 - warmup, 1), 0, 1)


def inverse_sqrt(step: Array, warmup: Array, total: Array, *, timescale: Positive) -> Array:
    """1/√(1 + t/timescale), t steps after the warm-up (Zhai et al. 2022); whatever the length.

    A timescale of the warm-up's length is the schedule of Vaswani et al. (2017)."""
    return 1 / jnp.sqrt(1 + jnp.maximum(step - warmup, 0) / timescale)


def wsd(step: Array, warmup: Array, total: Array, *, decay: OpenUnit, final: UnitInterval) -> Array:
    """Warmup–stable–decay: 1, then over the last share `decay` of the run linearly to `final`."""
    length = jnp.maximum(decay * total, 1)
    share = jnp.clip((total - 1 - step) / length, 0, 1)
    return final + (1 - final) * share


SCHEDULES: dict[str, Callable[..., Array]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
}


class Choice(NamedTuple):
    """What a config chooses by name, as the compiled step knows it: the name, and those of its
    keywords that are static. Those that are numbers are traced beside it, as Run.hyper."""

    name: str
    static: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The choice of a section of a checked config, and its numbers (None where one is off).
        In a checked config a value is a bool where the keyword is annotated so, and only there."""
        keywords = {k: v for k, v in section.items() if k != "name"}
        static = {k: v for k, v in keywords.items() if isinstance(v, bool)}
        numbers = {k: v for k, v in keywords.items() if k not in static}
        return cls(section["name"], tuple(sorted(static.items()))), numbers


def learning_rate(
    schedule: Choice,
    step: Array,
    peak: Array,
    warmup: Array,
    total: Array,
    numbers: Mapping[str, Array],
) -> Array:
    """Peak rate × linear warm-up × schedule, at `step` counted from 0, of `total` steps and
    `warmup` of them; `numbers` are the schedule's own."""
    step = step.astype(jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup, 1))
    keywords = {**dict(schedule.static), **numbers}
    return peak * warm * SCHEDULES[schedule.name](step, warmup, total, **keywords)
