"""Validation of a config: all errors are reported together, without jax."""

import copy
import dataclasses
import difflib
import math
import re
import reprlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from research.config import registry
from research.config.registry import Field
from research.config.schema import JSON, PLUGS, expected, flatten, schema
from research.config.types import RANGES

# What these sections hold of fractions is traced, and so a float32 to the program.
_TRACED = ("optim.", "model.")
_SMALLEST = 2.0**-126  # of float32, below which a CPU takes a number for 0
LONGEST = 4096  # characters of a text, as of a path
_NO_TEXT = re.compile("[\\0-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
PLAIN = {"optim.transfer.rule": "none", "optim.horizon_rule.rule": "none"}
PLAIN |= {"optim.lr_rule": "constant", "batch.rule": "constant"}  # rules that need no check
_words = reprlib.Repr()
_words.maxstring = _words.maxother = _words.maxlong = 60


def override(config: dict, changes: Mapping[str, object]) -> tuple[dict, list[str]]:
    """A copy of `config` with dotted `changes`, and the problems met.

    Only keys that the schema knows are accepted; a section takes a mapping of some. Another plug,
    chosen by its name, drops the keys that it does not have; those that it lacks are then missing.
    """
    paths = [path for key in changes for path in flatten({key: changes[key]})]
    problems = sorted({f"{p}: set twice, also in its section" for p in paths if paths.count(p) > 1})
    out, changes = copy.deepcopy(config), flatten(changes)
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


def problems(config: Mapping[str, object]) -> list[str]:
    """Everything that is wrong with `config`, one line each: dotted path, value, what would do."""
    flat, known = flatten(config), schema(config)
    out = [_unknown(path, known) for path in flat if path not in known]
    out += _dotted(config)
    for path, field in known.items():
        if path in flat:
            out += value_problems(path, flat[path], field)
        elif not field.absent:
            out.append(f"{path}: missing; expected {expected(field)}")
    wrong = {line.partition(":")[0] for line in out}
    right = {path: value for path, value in flat.items() if path not in wrong}
    if "model.name" not in wrong:
        model = registry.table(*PLUGS["model"])[str(flat["model.name"])][0]
        out += [*_size(right, model), *divides(right, model), *_rules(right, model)]
    if right.get("eval.headline") is not None and "eval.sets" not in wrong:
        from research.config import json_values  # which few configs have

        out += json_values.headline_problems(right)
    return [*out, *_divides_batch(right), *_mesh(right), *_warmup(right), *_best(right)]


def coerce(config: dict) -> dict:
    """A copy in which whole numbers in float fields are floats, and -0.0 is 0.0, so that one config
    has one id."""
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
            if isinstance(value, int | float):
                section[last] = float(value) + 0.0
            elif isinstance(value, list):
                section[last] = [float(item) + 0.0 for item in value]
    return out


def _unknown(path: str, known: Mapping[str, Field]) -> str:
    from research.config import suggestions  # which few configs need

    return suggestions.unknown_key(path, known, format_value(path))


def _dotted(config: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """A key that contains a dot would be read as a path, and hide what is there."""
    for key, value in config.items():
        if "." in str(key):
            where = prefix.rstrip(".") or "config"
            key = format_value(key)
            yield f"{where}: has a key {key}, with a dot; expected a section for each part"
        elif isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def format_value(value: object) -> str:
    """A value as Python writes it, not longer than a line."""
    try:
        return _words.repr(value)
    except ValueError:  # Python writes no more than some thousand digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value"


def value_problems(path: str, value: object, field: Field) -> Iterator[str]:
    if (value is None and field.optional) or (value is not None and value == field.word):
        return
    hint = f"; expected {expected(field)}"
    if field.type in JSON:
        from research.config import json_values  # as above

        yield from json_values.PROBLEMS[field.type](path, value, hint)
        return
    if field.many:
        if not isinstance(value, list | tuple):
            yield f"{path}: {format_value(value)} is {_describe_type(value)}{hint}"
            return
        one = dataclasses.replace(field, many=False, optional=False)
        for item in value:
            yield from value_problems(path, item, one)
        return
    if field.type in RANGES:
        if wrong := _number_error(path, value, field):
            yield f"{path}: {format_value(value)} is {wrong}{hint}"
    elif field.type in ("str", "bool") and type(value).__name__ != field.type:
        yield f"{path}: {format_value(value)} is {_describe_type(value)}{hint}"
    elif field.choices and value not in field.choices:
        close = difflib.get_close_matches(str(value)[:100], map(str, field.choices), n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        yield f"{path}: {format_value(value)} is unknown{hint}{guess}"
    elif isinstance(value, str) and (wrong := _text_error(value)):
        yield f"{path}: {format_value(value)} {wrong}{hint}"


def _number_error(path: str, value: object, field: Field) -> str:
    """What is wrong with a number, or ""."""
    kind, low, low_allowed, high, _ = RANGES[field.type]
    if not isinstance(value, int if kind is int else (int, float)) or isinstance(value, bool):
        return _describe_type(value)

    def within(x: float) -> bool:
        return low <= x < high and (low_allowed or x > low)  # of NaN all comparisons are false

    if not within(value) or (kind is float and isinstance(value, int) and abs(value) >= 2**1000):
        most = kind is int and isinstance(value, int) and value >= high >= 2**31
        return f"out of range (below 2^{math.log2(high):.0f})" if most else "out of range"
    if kind is float and path.startswith(_TRACED) and not within(single := _single(value)):
        return f"{single:g} in float32, out of range"
    return "" if not field.choices or value in field.choices else "not an allowed value"


def _single(value: float) -> float:
    """The number that a program in float32 sees."""
    try:
        (out,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return out if abs(out) >= _SMALLEST else 0.0


def _text_error(value: str) -> str:
    """Why `value` cannot be a file, a name or terminal output, or ""."""
    if not value:
        return "is empty"
    if len(value) > LONGEST:
        return f"has {len(value):,} characters, more than {LONGEST:,}"
    bad = _NO_TEXT.search(value)
    return f"holds the character U+{ord(bad[0]):04X}" if bad else ""


def _describe_type(value: object) -> str:
    return "none" if value is None else f"of type {type(value).__name__}"


def _size(flat: Mapping[str, object], model: Path) -> Iterator[str]:
    """`size` and the fields that it fills: one or the other."""
    sized = [f"model.{key}" for key in registry.literal(model, "SIZED")]  # type: ignore[union-attr]
    if "size" not in flat:
        return  # missing or wrong, which is reported elsewhere
    if flat["size"] is not None:
        fixable = {f"model.{k}" for k in registry.literal(model, "FIXABLE")}  # type: ignore[union-attr]
        for path in sized:
            if flat.get(path) is not None and path not in fixable:
                yield (
                    f"{path}: {flat[path]!r} is given, but `size` ({flat['size']!r}) fills it; "
                    "give one of them and set the other to none"
                )
    elif flat.get("init.run") is not None:
        return  # they are those of that run
    elif missing := [path for path in sized if flat.get(path, 0) is None]:
        yield f"size: none, so {', '.join(missing)} must be given"


def divides(flat: Mapping[str, object], model: Path) -> Iterator[str]:
    for small, large in registry.literal(model, "DIVISIBILITY"):  # type: ignore[union-attr]
        a, b = flat.get(f"model.{small}"), flat.get(f"model.{large}")
        if isinstance(a, int) and isinstance(b, int) and b % a:
            yield f"model.{small}: {a} does not divide model.{large} = {b}"


def _rules(flat: Mapping[str, object], model: Path) -> Iterator[str]:
    """Of rules by which numbers follow the model's shape and the run's length."""
    if any(flat.get(path, plain) not in (plain, "inverse_width") for path, plain in PLAIN.items()):
        from research.config import scaling_rules  # which few configs need

        yield from scaling_rules.problems(flat, registry.literal(model, "TRANSFER"))  # type: ignore[arg-type]


def _divides_batch(flat: Mapping[str, object]) -> Iterator[str]:
    size, parts = flat.get("batch.size"), flat.get("batch.grad_accumulation")
    if flat.get("batch.rule") != "constant":
        return  # the size is not known yet
    if isinstance(size, int) and isinstance(parts, int) and size % parts:
        yield f"batch.grad_accumulation: {parts} does not divide batch.size = {size}"


def _mesh(flat: Mapping[str, object]) -> Iterator[str]:
    axes = {path: flat.get(path, 1) for path in ("mesh.data", "mesh.fsdp", "mesh.tensor")}
    for path, value in axes.items():
        if isinstance(value, int) and value < 1 and value != -1:
            yield f"{path}: {value} devices; expected at least 1, or -1 for all that are left"
    if sum(value == -1 for value in axes.values()) > 1:
        yield "mesh: more than one axis is -1; only one can take the devices that are left"


def _best(flat: Mapping[str, object]) -> Iterator[str]:
    if flat.get("save.best") and not (flat.get("eval.every", 1) or flat.get("eval.at")):
        yield f"save.best: {flat['save.best']!r}, but eval.every = 0 evaluates only the end"


def _warmup(flat: Mapping[str, object]) -> Iterator[str]:
    """Of a warm-up whose share of the run needs no data to be known."""
    keys = ("optim.warmup.unit", "optim.warmup.amount", "horizon.unit", "horizon.amount")
    unit, amount, of, length = (flat.get(key) for key in keys)
    decay = flat.get("optim.schedule.decay", 0.0)
    numbers = (amount, length, decay)
    if all(isinstance(x, int | float) for x in numbers) and unit in ("fraction", of):
        share = float(amount) / (1.0 if unit == "fraction" else float(length))  # type: ignore[arg-type]
        if wrong := long_warmup(share, float(decay)):  # type: ignore[arg-type]
            yield f"optim.warmup.amount: {amount:g} ({unit}) is {wrong}"


def long_warmup(share: float, decay: float) -> str:
    """What is wrong with a warm-up of this share of a run whose last share `decay` is cooled down,
    or ""."""
    if share > 1:
        return f"{share:.3g} times the run; expected at most the whole of it"
    if decay and share + decay > 1:
        return (
            f"{share:.3g} of the run, and optim.schedule.decay is {decay:g} of it; expected at "
            "most the whole of it from both"
        )
    return ""
