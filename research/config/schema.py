"""What a valid config is. Everything that can be known without jax is checked here, all at once.

A config is a nested dict. Its own keys are in SECTIONS; a section that names a plug (`model`,
`data`, `task`, `optim.optimizer`, `optim.schedule`) has the keys of that plug, read from its source
by `registry`. All keys must be present, whatever default the code behind them has for callers in
Python: a choice that is not written in the config is not in the record of the run either.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace

from research.config import registry
from research.config.registry import Field
from research.config.types import RANGES

# Model fields that the data set determines; never written in a config. See data.Dataset.facts.
FACTS = ("vocab", "context", "features", "outputs", "classes", "image_shape")
# Units of a horizon in training FLOPs: exact, or as other conventions count (see accounting).
FLOPS_UNITS = ("flops", "flops_6nd", "flops_6nd_non_embedding", "flops_exact_causal")
_UNITS = ("steps", "tokens", "examples", "tokens_per_param", "epochs", *FLOPS_UNITS)
_WARMUP_UNITS = ("fraction", "steps", "tokens")
_TRACKERS = tuple(registry.table("runs/trackers.py", "TRACKERS"))
_BATCH_RULES = ("constant", "sqrt_tokens", "power_lines", "step_law", "deepseek", "fitted")
_RATE_RULES = ("constant", "inverse_width", "step_law", "deepseek", "fitted")
_HORIZON_RULES = ("none", "power_lines", "complete_p", "marin", "token_horizon")
SECTIONS: dict[str, Field] = {
    "name": Field("str"),
    "seed": Field("Seed"),
    "size": Field("Parameters", optional=True),
    "data.seed": Field("NonNegativeInt"),  # of the order of the training examples
    "batch.size": Field("PositiveInt", optional=True),
    "batch.grad_accumulation": Field("PositiveInt"),
    "batch.rule": Field("str", choices=_BATCH_RULES),
    "optim.lr": Field("Positive"),
    "optim.lr_rule": Field("str", choices=_RATE_RULES),
    "optim.horizon_rule.rule": Field("str", choices=_HORIZON_RULES),
    "optim.horizon_rule.tokens": Field("Positive", optional=True),
    "optim.horizon_rule.batch": Field("PositiveInt", optional=True),
    "optim.recipe": Field("str", optional=True),
    "optim.clip": Field("Positive", optional=True),
    "optim.ema": Field("OpenUnit", optional=True),
    "optim.skip": Field("Positive", optional=True),
    "optim.transfer.rule": Field("str", choices=("none", "mup", "complete_p", "spectral")),
    "optim.transfer.width": Field("PositiveInt", optional=True),
    "optim.transfer.depth": Field("PositiveInt", optional=True),
    "optim.transfer.head_size": Field("PositiveInt", optional=True),
    "optim.paths": Field("PathRules", optional=True, absent=True),
    "optim.warmup.unit": Field("str", choices=_WARMUP_UNITS),
    "optim.warmup.amount": Field("NonNegative"),
    "init.run": Field("str", optional=True),
    "init.step": Field("NonNegativeInt", optional=True),
    "init.what": Field("str", choices=("params", "state", "shape")),
    "horizon.unit": Field("str", choices=_UNITS),
    "horizon.amount": Field("Positive"),
    "mesh.data": Field("int"),
    "mesh.fsdp": Field("int"),
    "mesh.tensor": Field("int"),
    "mesh.indivisible": Field("str", choices=("error", "replicate")),
    "eval.examples": Field("PositiveInt", optional=True),
    "eval.batch": Field("PositiveInt"),
    "eval.every": Field("NonNegativeInt"),
    "eval.at": Field("Moments", optional=True, absent=True),
    "eval.sets": Field("EvalSets", optional=True, absent=True),  # see json_values
    "eval.headline": Field("str", optional=True, absent=True),
    "save.every": Field("NonNegativeInt"),
    "save.at": Field("Moments", optional=True, absent=True),
    "save.every_minutes": Field("Positive", optional=True),
    "save.keep": Field("PositiveInt"),
    "save.best": Field("str", optional=True),
    "save.asynchronous": Field("bool"),
    "save.on_error": Field("str", choices=("stop", "continue")),
    "log.every": Field("PositiveInt"),
    "log.internals": Field("bool", absent=True),
    "log.trackers": Field("str", many=True, choices=_TRACKERS),
    "loop.steps_per_dispatch": Field("PositiveInt", word="auto"),
    "loop.hang_seconds": Field("Positive", optional=True),
    "loop.hang_first_seconds": Field("Positive", optional=True),
}
JSON = {  # values that are nested, on the command line as JSON
    "EvalSets": 'a list of objects like {"name": "val", "path": "val.txt"}',
    "Section": 'an object like {"unit": "tokens", "amount": 1e6}',
    "Moments": 'a list like ["powers of 2", "10%", 500], in steps',
    "PathRules": 'a list of pairs like ["blocks/.*", {"lr": 0.1}] or ["embed/.*", "frozen"]',
}
PLUGS = {
    "model": ("models/__init__.py", "MODELS"),
    "data": ("data/__init__.py", "DATASETS"),
    "task": ("training/tasks.py", "TASKS"),
    "optim.optimizer": ("training/optimizers.py", "OPTIMIZERS"),
    "optim.schedule": ("training/schedules.py", "SCHEDULES"),
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


def schema(config: Mapping[str, object]) -> dict[str, Field]:
    """Every dotted key of this config, given the plugs that it names."""
    names = (_get(config, f"{section}.name") for section in PLUGS)
    return dict(_schema(tuple(name if isinstance(name, str) else None for name in names)))


@functools.cache  # every point of a sweep asks several times
def _schema(names: tuple[str | None, ...]) -> dict[str, Field]:
    known = dict(SECTIONS)
    for (section, (file, table)), name in zip(PLUGS.items(), names, strict=True):
        rows = registry.table(file, table)
        known[f"{section}.name"] = Field("str", choices=tuple(rows))
        if name in rows:
            fields = registry.fields(*rows[name])
            sized = registry.literal(rows[name][0], "SIZED")
            for key, field in fields.items():
                if section == "model" and key in FACTS:
                    continue
                by_size = section == "model" and key in sized  # type: ignore[operator]
                known[f"{section}.{key}"] = replace(field, optional=True) if by_size else field
    return known


def expected(field: Field) -> str:
    """In words, what a field takes."""
    if field.choices:
        words = "one of " + ", ".join(map(str, field.choices))
    elif field.type in RANGES:
        words = RANGES[field.type][-1]
    else:
        words = {"str": "text", "bool": "true or false", **JSON}.get(field.type, f"a {field.type}")
    words = f"a list, each {words}" if field.many else words
    words = f"{words}, or {field.word}" if field.word else words
    return f"{words}, or none" if field.optional else words


def _get(config: object, path: str) -> object:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config
