"""Config files and their sweeps: loaded, overridden, checked."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.config import registry, schema, validation
from research.errors import BadInput
from research.io import files, source

ModuleLike = Any
LARGEST = 1 << 20  # bytes of a .json config


def validated(config: dict, path: str | None = None) -> dict:
    """The config, its numbers in their types. Raises BadInput: all problems, by line of `path`."""
    if problems := validation.problems(config):
        from research.config import places

        raise BadInput(*places.located(problems, path, config))
    return validation.coerce(config)


def load_config(path: str) -> tuple[dict, ModuleLike | None]:
    """A config (a file, or a shipped one: "configs/…") as a plain nested dict. Raises BadInput."""
    suffix, shipped = Path(path).suffix, Path(__file__).parents[2] / path
    if Path(path).parts[:1] == ("configs",) and not os.path.exists(path) and shipped.is_file():
        path = str(shipped)
    if suffix == ".json":
        config = files.read_json(path, LARGEST)
        source.note_config(path)
        return config, None
    if suffix != ".py":
        raise BadInput(f"--config={path}: expected a .py file with get_config(), or a .json file")
    if not os.path.isfile(path):
        raise BadInput(f"--config={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"isoflop_config_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    _importable(Path(path).resolve())
    module = importlib.util.module_from_spec(spec)
    call_user_code(spec.loader.exec_module, module)
    if not hasattr(module, "get_config"):
        raise BadInput(f"--config={path}: the file has no function get_config()")
    config = call_user_code(module.get_config)
    source.note_config(path)
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


def call_user_code(function: Callable, *args: object) -> Any:
    """Report an exception of the user's code by the line of theirs that it came from."""
    try:
        return function(*args)
    except Exception as error:
        from research.config import places

        raise places.raised(error) from error


def parse_value(text: str, field: registry.Field) -> object:
    """A value from the command line, by the type of its field. Raises ValueError."""
    kind = field.type
    if text.lower() in ("none", "null") and (field.optional or kind != "str"):
        return None
    if kind in schema.JSON:
        return json.loads(text)
    if field.many:
        return [parse_value(part, replace(field, many=False)) for part in text.split(",") if part]
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
