"""Config files and their sweeps: loaded, overridden, checked."""

import dataclasses
import importlib.util
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from research.config import registry, schema, validation
from research.errors import BadInput
from research.io import files

ModuleLike = Any
MOST_POINTS = 100_000  # of a sweep, which may be a generator without end
LARGEST = 1 << 20  # bytes of a .json config


def validated(config: dict) -> dict:
    """The config with numbers in their types. Raises BadInput listing every problem."""
    if problems := validation.problems(config):
        raise BadInput(*problems)
    return validation.coerce(config)


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
    out, found = [], []
    made = _call(function, config)
    made = () if made is None else made
    if not isinstance(made, Iterable):
        raise BadInput(f"{sweep}() gives {made!r:.50}; expected a list of overrides")
    given = _call(lambda: list(itertools.islice(made, MOST_POINTS + 1)))
    if len(given) > MOST_POINTS:
        raise BadInput(f"{sweep}() yields more than {MOST_POINTS:,} points")
    for index, point in enumerate(given):
        if not isinstance(point, Mapping):
            found.append(f"{sweep}() point {index}: {point!r} is not a dict of overrides")
            continue
        if odd := [key for key in point if not isinstance(key, str)]:
            found.append(f"{sweep}() point {index}: {odd[0]!r:.50} is no key of a config")
            continue
        resolved, problems = validation.override(config, point)
        problems = problems or validation.problems(resolved)
        found += [f"{sweep}() point {index} {dict(point)}: {line}" for line in problems]
        out.append((dict(point), validation.coerce(resolved)))
    if found:
        raise BadInput(*found)
    if not out:
        raise BadInput(f"{sweep}() yields no points")
    return out


def sweep_names(module: ModuleLike | None) -> list[str]:
    """The sweeps of a config: its public functions of one parameter, `config`."""
    public = {k: v for k, v in vars(module or object).items() if not k.startswith("_")}
    made = {k: v for k, v in public.items() if inspect.isfunction(v)}
    return [k for k, v in made.items() if [*inspect.signature(v).parameters] == ["config"]]


def load_config(path: str) -> tuple[dict, ModuleLike | None]:
    """A config as a plain nested dict. Raises BadInput."""
    suffix = Path(path).suffix
    if suffix == ".json":
        return files.read_json(path, LARGEST), None
    if suffix != ".py":
        raise BadInput(f"--config={path}: expected a .py file with get_config(), or a .json file")
    if not os.path.isfile(path):
        raise BadInput(f"--config={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"isoflop_config_{Path(path).stem}", path)
    assert spec
    assert spec.loader
    _importable(Path(path).resolve())
    module = importlib.util.module_from_spec(spec)
    _call(spec.loader.exec_module, module, what=path)
    if not hasattr(module, "get_config"):
        raise BadInput(f"--config={path}: the file has no function get_config()")
    config = _call(module.get_config, what=f"{path}: get_config()")
    config = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(config, dict):
        raise BadInput(f"{path}: get_config() must return a ConfigDict")
    return config, module


def _importable(path: Path) -> None:
    """What a config may import beside what is installed: modules of its own folder and of the
    working directory, and of a folder `configs` around it the package of that name."""
    around = [folder.parent for folder in path.parents if folder.name == "configs"]
    for folder in (path.parent, Path.cwd(), *around):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # last: nothing that is installed is hidden


def _call(function: Callable, *args: object, what: str = "") -> Any:
    """Report an exception of the user's code by its own file and line, not by our traceback."""
    try:
        return function(*args)
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else what
        if isinstance(error, SyntaxError):  # the frame is the importer's
            raise BadInput(f"{error.filename}:{error.lineno}: {error.msg}") from error
        raise BadInput(f"{where}: {type(error).__name__}: {error}") from error


def parse_value(text: str, field: registry.Field) -> object:
    """A value from the command line, by the type of its field. Raises ValueError."""
    kind = field.type
    if text.lower() in ("none", "null") and (field.optional or kind != "str"):
        return None
    if field.many:
        one = dataclasses.replace(field, many=False)
        return [parse_value(part, one) for part in text.split(",") if part]
    if kind in schema.RANGES:
        number = float(text)
        if schema.RANGES[kind][0] is float:
            return number
        if number != int(number):
            raise ValueError(text)
        return int(text) if text.lstrip("+-").isdigit() else int(number)
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return text
