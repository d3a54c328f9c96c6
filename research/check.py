"""What a valid config is. Everything that can be known without jax is checked here, all at once.

A config is a nested dict. Its own keys are in SECTIONS; a section that names a plug (`model`,
`data`, `task`, `optim.optimizer`, `optim.schedule`) has the keys of that plug, read from its source
by `plugs`. All keys must be present: a scientific choice has no hidden default.
"""

import copy
import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from research import plugs
from research.kinds import RANGES
from research.plugs import Field

# What a data set tells its model; never written in a config. See data.Dataset.facts.
FACTS = ("vocab", "context", "features", "outputs", "classes", "image_shape")

# Units of a horizon in training FLOPs: exact, or as other conventions count (see accounting).
FLOPS_UNITS = ("flops", "flops_6nd", "flops_6nd_non_embedding", "flops_exact_causal")
_UNITS = ("steps", "tokens", "examples", "tokens_per_param", "epochs", *FLOPS_UNITS)
_WARMUP_UNITS = ("fraction", "steps", "tokens")
_SINKS = tuple(plugs.table("sinks.py", "SINKS"))

SECTIONS: dict[str, Field] = {
    "name": Field("str"),
    "seed": Field("Whole"),
    "size": Field("Positive", optional=True),
    "batch.size": Field("Count", optional=True),
    "batch.seed": Field("Whole"),
    "batch.accumulate": Field("Count"),
    "batch.rule": Field("str", choices=("constant", "sqrt_tokens"), required=False),
    "optim.lr": Field("Positive"),
    "optim.lr_rule": Field("str", choices=("constant", "inverse_width")),
    "optim.clip": Field("Positive", optional=True),
    "optim.ema": Field("Share", optional=True),
    "optim.skip": Field("Positive", optional=True, required=False),
    "optim.warmup.unit": Field("str", choices=_WARMUP_UNITS),
    "optim.warmup.amount": Field("Amount"),
    "init.run": Field("str", optional=True),
    "init.step": Field("Whole", optional=True),
    "init.what": Field("str", choices=("params", "state", "shape")),
    "horizon.unit": Field("str", choices=_UNITS),
    "horizon.amount": Field("Positive"),
    "mesh.data": Field("int"),
    "mesh.fsdp": Field("int"),
    "mesh.tensor": Field("int"),
    "eval.examples": Field("Count", optional=True),
    "eval.batch": Field("Count"),
    "eval.every": Field("Whole"),
    "save.every": Field("Whole"),
    "save.keep": Field("Count"),
    "save.on_error": Field("str", choices=("stop", "go_on"), required=False),
    "log.every": Field("Count"),
    "log.sinks": Field("str", many=True, choices=_SINKS),
    "loop.steps_per_dispatch": Field("Count", word="auto"),
}
PLUGS = {
    "model": ("models/__init__.py", "MODELS"),
    "data": ("data/__init__.py", "DATASETS"),
    "task": ("tasks.py", "TASKS"),
    "optim.optimizer": ("optim.py", "OPTIMIZERS"),
    "optim.schedule": ("optim.py", "SCHEDULES"),
}


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted path -> value. An empty section stays as a leaf, so that it is seen."""
    out: dict[str, object] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{path}.")
        else:
            out[path] = value
    return out


def override(config: dict, changes: Mapping[str, object]) -> tuple[dict, list[str]]:
    """A copy of `config` with dotted `changes`, and the problems met.

    Only keys that the schema knows are accepted. Choosing another plug by its name drops the keys
    that the new one does not have; those that it lacks are then reported as missing.
    """
    out, problems = copy.deepcopy(config), []
    for path in sorted(changes, key=lambda path: not path.endswith(".name")):  # plugs first
        known = schema(out)
        *parents, last = path.split(".")
        section: object = out
        for key in parents:
            section = section.get(key) if isinstance(section, dict) else None
        if path not in known or not isinstance(section, dict):
            problems.append(_unknown(path, known))
        elif last == "name" and section.get("name") != changes[path]:
            section["name"] = changes[path]
            known = schema(out)
            prefix = path.removesuffix("name")
            for key in [k for k in section if f"{prefix}{k}" not in known and parents]:
                if not isinstance(section[key], dict):
                    del section[key]
        else:
            section[last] = changes[path]
    return out, problems


def schema(config: Mapping[str, object]) -> dict[str, Field]:
    """Every dotted key that this config must or may have, given the plugs that it names."""
    names = (_get(config, f"{section}.name") for section in PLUGS)
    return dict(_schema(tuple(name if isinstance(name, str) else None for name in names)))


@functools.cache  # every point of a sweep asks several times
def _schema(names: tuple[str | None, ...]) -> dict[str, Field]:
    known = dict(SECTIONS)
    for (section, (file, table)), name in zip(PLUGS.items(), names, strict=True):
        rows = plugs.table(file, table)
        known[f"{section}.name"] = Field("str", choices=tuple(rows))
        if name in rows:
            fields = plugs.fields(*rows[name])
            sized = plugs.literal(rows[name][0], "SIZED")
            for key, field in fields.items():
                if section == "model" and key in FACTS:
                    continue
                by_size = section == "model" and key in sized  # type: ignore[operator]
                known[f"{section}.{key}"] = (
                    Field(field.type, True, field.choices, field.required) if by_size else field
                )
    return known


def problems(config: Mapping[str, object]) -> list[str]:
    """Everything that is wrong with `config`, one line each: dotted path, value, what would do."""
    flat, known = flatten(config), schema(config)
    out = [_unknown(path, known) for path in flat if path not in known]
    for path, field in known.items():
        if path in flat:
            out += _value(path, flat[path], field)
        elif field.required:
            out.append(f"{path}: missing; expected {expected(field)}")
    wrong = {line.partition(":")[0] for line in out}
    if "model.name" not in wrong:
        model = plugs.table(*PLUGS["model"])[str(flat["model.name"])][0]
        given = {path: value for path, value in flat.items() if path not in wrong}
        out += [*_size(given, model), *_divides(given, model)]
    right = {path: value for path, value in flat.items() if path not in wrong}
    return [*out, *_accumulate(right), *_mesh(right)]


def coerce(config: dict) -> dict:
    """A copy in which whole numbers in float fields are floats, so that one config has one id."""
    out = copy.deepcopy(config)
    for path, field in schema(config).items():
        *parents, last = path.split(".")
        section = out
        for key in parents:
            section = section.get(key, {})
        value = section.get(last)
        if isinstance(value, tuple):  # JSON has lists alone
            section[last] = value = list(value)
        if field.type in RANGES and RANGES[field.type][0] is float:
            if isinstance(value, int):
                section[last] = float(value)
            elif isinstance(value, list):
                section[last] = [float(item) for item in value]
    return out


def expected(field: Field) -> str:
    """In words, what a field takes."""
    if field.choices:
        words = "one of " + ", ".join(map(str, field.choices))
    elif field.type in RANGES:
        words = RANGES[field.type][-1]
    else:
        words = {"str": "text", "bool": "true or false"}.get(field.type, f"a {field.type}")
    words = f"a list, each {words}" if field.many else words
    words = f"{words}, or {field.word}" if field.word else words
    return f"{words}, or none" if field.optional else words


def _get(config: object, path: str) -> object:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _unknown(path: str, known: Mapping[str, Field]) -> str:
    if inside := [key for key in known if key.startswith(f"{path}.")]:
        return f"{path}: is a section; expected its keys, such as {inside[0]}"
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{path}: no such key{hint}"


def _value(path: str, value: object, field: Field) -> Iterator[str]:
    if (value is None and field.optional) or (value is not None and value == field.word):
        return
    wanted = f"; expected {expected(field)}"
    if field.many:
        if not isinstance(value, list | tuple):
            yield f"{path}: {value!r} is {_a(value)}{wanted}"
            return
        one = dataclasses.replace(field, many=False, optional=False)
        for item in value:
            yield from _value(path, item, one)
        return
    if field.type in RANGES:
        kind, low, low_allowed, high, _ = RANGES[field.type]
        number = isinstance(value, int if kind is int else (int, float))
        if not number or isinstance(value, bool):
            yield f"{path}: {value!r} is {_a(value)}{wanted}"
        elif (
            not math.isfinite(value)
            or value < low
            or (value == low and not low_allowed)
            or value >= high
        ):  # type: ignore[arg-type, operator]
            yield f"{path}: {value!r} is out of range{wanted}"
        elif field.choices and value not in field.choices:
            yield f"{path}: {value!r} is not offered{wanted}"
    elif field.type in ("str", "bool") and type(value).__name__ != field.type:
        yield f"{path}: {value!r} is {_a(value)}{wanted}"
    elif field.choices and value not in field.choices:
        close = difflib.get_close_matches(str(value), map(str, field.choices), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        yield f"{path}: {value!r} is not offered{wanted}{hint}"


def _a(value: object) -> str:
    return "none" if value is None else f"of type {type(value).__name__}"


def _size(flat: Mapping[str, object], model: Path) -> Iterator[str]:
    """`size` and the fields that it fills: one or the other."""
    sized = [f"model.{key}" for key in plugs.literal(model, "SIZED")]  # type: ignore[union-attr]
    if "size" not in flat:
        return  # missing or wrong, which is told elsewhere
    if flat["size"] is not None:
        for path in sized:
            if flat.get(path) is not None:
                yield (
                    f"{path}: {flat[path]!r} is given, but `size` ({flat['size']!r}) fills it; "
                    "give one of them and set the other to none"
                )
    elif flat.get("init.run") is not None:
        return  # they are those of that run
    elif missing := [path for path in sized if flat.get(path, 0) is None]:
        yield f"size: none, so {', '.join(missing)} must be given"


def _divides(flat: Mapping[str, object], model: Path) -> Iterator[str]:
    for small, large in plugs.literal(model, "DIVIDES"):  # type: ignore[union-attr]
        a, b = flat.get(f"model.{small}"), flat.get(f"model.{large}")
        if isinstance(a, int) and isinstance(b, int) and b % a:
            yield f"model.{small}: {a} does not divide model.{large} = {b}"


def _accumulate(flat: Mapping[str, object]) -> Iterator[str]:
    size, parts = flat.get("batch.size"), flat.get("batch.accumulate")
    if "batch.rule" in flat and flat["batch.rule"] != "constant":
        return  # the size is not known yet
    if isinstance(size, int) and isinstance(parts, int) and size % parts:
        yield f"batch.accumulate: {parts} does not divide batch.size = {size}"


def _mesh(flat: Mapping[str, object]) -> Iterator[str]:
    axes = {path: flat[path] for path in flat if path in SECTIONS and path.startswith("mesh.")}
    for path, value in axes.items():
        if isinstance(value, int) and value < 1 and value != -1:
            yield f"{path}: {value} devices; expected at least 1, or -1 for all that are left"
    if sum(value == -1 for value in axes.values()) > 1:
        yield "mesh: more than one axis is -1; only one can take the devices that are left"
