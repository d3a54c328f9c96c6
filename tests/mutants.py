"""Configs with something wrong in them, by chance, for `tests/test_mutants.py`.

A mutant is a good config after one to three changes of the kinds below, some of which leave it a
good one. Nothing here knows what the product accepts.
"""

import copy
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

Config = dict[str, Any]

WHOLE = (0, 1, -1, 2, 3, 5, 7, 13, 100, 1009, 2**20, 2**31 - 1, 2**31, 2**40, 2**53 - 1)
REAL = (0.0, -0.5, 1e-300, 1e-45, 1e-9, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-12, 1.0, 3.0, 1e6, 1e30, 1e300)
TEXT = ("", " ", "x", "none", "1e-3", "3", ".", "/", "../..", "a\0b", "\ud800", "é", "x" * 5000)
NASTY: tuple[Any, ...] = (
    *(None, True, False, 2**64, 10**400, math.nan, math.inf, -math.inf, *WHOLE, *REAL, *TEXT),
    *([], [1], ["x"], [[]], [None], {}, {"a": 1}, {"name": "x"}, {"a": {"b": {}}}),
)
FACTORS = (0, -1, 2, 3, 10, 1000, 10**6, 10**9, 10**15)


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        out |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def section(config: Config, path: str) -> tuple[Config, str]:
    """What holds `path`, and the last key of it; a key may be a path itself."""
    for key, value in config.items():
        if path.startswith(f"{key}.") and isinstance(value, dict) and value:
            return section(value, path.removeprefix(f"{key}."))
    return config, path


def put(config: Config, path: str, value: object) -> None:
    inner, last = section(config, path)
    inner[last] = copy.deepcopy(value)


class Mutator:
    """Changes configs by the numbers of `rng`; `sound` are good ones, whose parts are mixed in."""

    def __init__(self, rng: random.Random, sound: list[Config]):
        self.rng, self.sound = rng, sound
        self.kinds: list[Callable[[Config], str]] = [
            *[self.kindred] * 6,
            *[self.near, self.scaled, self.part, self.foreign] * 3,
            *(self.value, self.dropped, self.typo, self.added, self.swapped, self.flattened),
        ]

    def mutant(self) -> tuple[Config, str]:
        """A config of its own, and in words what was done to a sound one."""
        config, words = copy.deepcopy(self.rng.choice(self.sound)), []
        words.append(str(config["name"]))
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            words.append(self.rng.choice(self.kinds)(config))
        return config, "; ".join(words)

    def _leaf(self, config: Config) -> str:
        return self.rng.choice(list(leaves(config)))

    def _number(self, config: Config) -> tuple[str, Any]:
        numbers = {
            path: value
            for path, value in leaves(config).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        return self.rng.choice(list(numbers.items())) if numbers else ("seed", 0)

    def value(self, config: Config) -> str:
        """Any leaf becomes anything."""
        path, value = self._leaf(config), self.rng.choice(NASTY)
        put(config, path, value)
        return f"{path} = {value!r:.40}"

    def kindred(self, config: Config) -> str:
        """A leaf becomes another value of its own type, or none."""
        path = self._leaf(config)
        old = section(config, path)[0][path.rpartition(".")[2]]
        pools = {bool: (True, False), int: WHOLE, float: REAL, str: TEXT}
        value = self.rng.choice((None, *pools.get(type(old), (*WHOLE, *REAL, *TEXT))))
        put(config, path, value)
        return f"{path} = {value!r:.40}"

    def scaled(self, config: Config) -> str:
        """A number becomes larger, smaller or negative, of its own type."""
        path, value = self._number(config)
        factor = self.rng.choice(FACTORS)
        made = int(value * factor) if isinstance(value, int) else value * factor
        put(config, path, made)
        return f"{path} = {made!r:.40}"

    def near(self, config: Config) -> str:
        """A number moves a little: what divided no longer does."""
        path, value = self._number(config)
        made = value + self.rng.choice((-1, 1, 2, 5))
        put(config, path, made)
        return f"{path} = {made!r:.40}"

    def foreign(self, config: Config) -> str:
        """A leaf is as another config has it."""
        theirs = leaves(self.rng.choice(self.sound))
        path = self.rng.choice(list(theirs))
        put(config, path, theirs[path])
        return f"{path} = {theirs[path]!r:.40}"

    def part(self, config: Config) -> str:
        """A section is as another config has it: this model on that data, that task."""
        name = self.rng.choice(("model", "data", "task", "optim", "batch", "eval", "horizon"))
        other = self.rng.choice(self.sound)
        config[name] = copy.deepcopy(other[name])
        if name in ("model", "data") and self.rng.random() < 0.7:
            config["size"] = other["size"]
        return f"{name} of {other['name']}"

    def dropped(self, config: Config) -> str:
        path = self.rng.choice([*leaves(config), *config])
        inner, last = section(config, path)
        inner.pop(last, None)
        return f"no {path}"

    def typo(self, config: Config) -> str:
        """A key is written wrong."""
        path = self._leaf(config)
        inner, last = section(config, path)
        at = self.rng.randrange(len(last) + 1)
        wrong = self.rng.choice(
            (last[:at] + last[at + 1 :], last[:at] + "e" + last[at:], last.upper())
        )
        if last in inner:
            inner[wrong] = inner.pop(last)
        return f"{path} as {wrong}"

    def added(self, config: Config) -> str:
        """A key that does not belong there, or a path that is written as one key."""
        path = self._leaf(config)
        inner, _ = section(config, path)
        key = self.rng.choice(
            (path, "extra", "name", "size", "", "optim.lr", "model.width", "__class__")
        )
        inner[key] = self.rng.choice(NASTY)
        return f"{path} beside {key!r:.40}"

    def swapped(self, config: Config) -> str:
        """Two leaves change places."""
        (one, a), (other, b) = (self.rng.choice(list(leaves(config).items())) for _ in range(2))
        put(config, one, b)
        put(config, other, a)
        return f"{one} for {other}"

    def flattened(self, config: Config) -> str:
        """A section is no section."""
        path, value = self.rng.choice(list(config)), self.rng.choice(NASTY)
        config[path] = copy.deepcopy(value)
        return f"{path} = {value!r:.40}"
