"""The sweeps of a config: functions beside get_config() that yield overrides."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from research.config import places, validation
from research.config.loading import ModuleLike, call_user_code
from research.config.schema import flatten
from research.errors import BadInput

MOST_POINTS = 100_000  # of a sweep, which may be a generator without end


def sweep_points(config: dict, module: ModuleLike | None, sweep: str) -> list[tuple[dict, dict]]:
    """(overrides, checked config) of every point that the config's `sweep` function yields.

    Raises BadInput naming the points and everything wrong with them.
    """
    function: Callable[..., Any] | None = getattr(module, sweep, None)
    if not callable(function):
        there = ", ".join(sweep_names(module)) or "no sweep at all"
        raise BadInput(
            f"--sweep={sweep}: the config has no function {sweep}(), which must return a list of "
            f"overrides; it has {there}"
        )
    out, errors, wrong = [], [], []
    yielded = call_user_code(function, config)
    yielded = () if yielded is None else yielded
    if not isinstance(yielded, Iterable):
        raise BadInput(f"{sweep}() gives {yielded!r:.50}; expected a list of overrides")
    points = call_user_code(lambda: list(itertools.islice(yielded, MOST_POINTS + 1)))
    if len(points) > MOST_POINTS:
        raise BadInput(f"{sweep}() yields more than {MOST_POINTS:,} points")
    for index, point in enumerate(points):
        if not isinstance(point, Mapping):
            errors.append(f"{sweep}() point {index}: {point!r} is not a dict of overrides")
            continue
        if odd := [key for key in point if not isinstance(key, str)]:
            errors.append(f"{sweep}() point {index}: {odd[0]!r:.50} is not a config key")
            continue
        resolved, problems = validation.override(config, point)
        point = flatten(point)
        place = getattr(module, "__file__", None)
        problems = problems or places.located(validation.problems(resolved), place, resolved)
        wrong += [(f"{index} {dict(point)}", line) for line in problems]
        out.append((dict(point), validation.coerce(resolved)))
    if errors := errors + [f"{sweep}() {line}" for line in problems_of_points(wrong)]:
        raise BadInput(*errors)
    if not out:
        raise BadInput(f"{sweep}() yields no points")
    return out


def problems_of_points(found: Iterable[tuple[str, str]]) -> list[str]:
    """(point, problem) pairs as lines: a problem that several points have is said once."""
    points: dict[str, list[str]] = {}
    for point, problem in found:
        points.setdefault(problem, []).append(point)
    return [
        f"point {those[0]}{f' and {len(those) - 1} others' if len(those) > 1 else ''}: {problem}"
        for problem, those in points.items()
    ]


def sweep_names(module: ModuleLike | None) -> list[str]:
    """The sweeps of a config: its public functions of one parameter, `config`."""
    public = {k: v for k, v in vars(module or object).items() if not k.startswith("_")}
    functions = {k: v for k, v in public.items() if inspect.isfunction(v)}
    return [k for k, v in functions.items() if [*inspect.signature(v).parameters] == ["config"]]
