"""Whether the numbers of a config transfer: measured, beside the standard parametrization.

The stage `coordinates` looks at ten steps of models of several widths, and of several depths at the
base width: sizes of activations and of their changes, and their slopes against the shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from research.config import validation
from research.config.loading import validated
from research.errors import BadInput
from research.io import files
from research.training import coordinates
from research.training.make_run import make_run
from research.training.run import Run

STEPS, FIRST = 10, 2  # of a check; the step from which slopes count: before, logits are noise
NOT_FLAT = 0.05  # a slope beyond which a check has failed


@dataclass(frozen=True)
class Check:
    """What a coordinate check varies, with how many seeds. With `zeros`, what a rule draws smaller
    along an axis starts at 0 there, so that slopes are of what is learned: the head over widths,
    the last matrices of residual branches too over depths."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    seeds: int
    lr: float | None = None  # none: that of the config at its base shape
    zeros: bool = True


def default_check(config: Mapping[str, Any]) -> Check:
    """One, two, four and eight times the base width, and depths from 2 to 32."""
    width = config["optim"]["transfer"]["width"]
    return Check(tuple(width * m for m in (1, 2, 4, 8)), (2, 4, 8, 16, 32), 3)


def coordinate_check(
    config: dict, check: Check, folder: Path, show: Callable[[str], None]
) -> dict[str, Any]:
    """The document of the stage. Every shape that is measured is kept in `folder`, so that a check
    that was interrupted goes on. Raises BadInput for a config without a rule."""
    if config["optim"]["transfer"]["rule"] == "none":
        raise BadInput("optim.transfer.rule: none; expected the rule that is to be checked")
    rules = {"rule": config["optim"]["transfer"]["rule"], "standard": "none"}
    base, out = config["optim"]["transfer"], {}
    for name, rule in rules.items():
        by_width = {w: (w, base["depth"] or 2) for w in check.widths}
        by_depth = {d: (base["width"], d) for d in check.depths}
        measured = []
        for shapes, zeros in ((by_width, "head"), (by_depth, "outputs")):
            found, start = {}, zeros if check.zeros else "none"
            for at, shape in shapes.items():
                found[at] = _measured(config, rule, shape, check, start, folder)
                show(f"{name} {rule}: width {shape[0]}, depth {shape[1]}")
            measured.append(found)
        out[name] = _describe(*measured) | {"transfer": rule}
    shapes = {"widths": list(check.widths), "depths": list(check.depths)}
    how = {"seeds": check.seeds, "steps": STEPS, "lr": _lr(config, check)}
    return {**shapes, **how, "start": "zero" if check.zeros else "drawn", **out}


def _measured(
    config: dict, rule: str, shape: tuple[int, int], check: Check, zeros: str, folder: Path
) -> dict[str, np.ndarray]:
    run = _run(config, rule, shape, check)
    path = folder / f"{run.id}-{check.seeds}-{zeros}.json"
    if not path.exists():
        found = coordinates.measure(run, check.seeds, STEPS, zeros)
        if wild := [name for name, x in found.items() if not np.isfinite(x).all()]:
            raise BadInput(
                f"--lr={_lr(config, check):g}: width {shape[0]}, depth {shape[1]}, rule {rule}: "
                f"{wild[0]} is not finite within {STEPS} steps; expected a lower rate"
            )
        files.write_json(path, {name: x.tolist() for name, x in found.items()})
    return {name: np.array(x) for name, x in files.read_json(path).items()}


def _run(config: dict, rule: str, shape: tuple[int, int], check: Check) -> Run:
    """A run of this shape, whose learning rate is constant and the same for all, with and without
    the rule."""
    changes: dict[str, Any] = {
        **at_shape(config, rule, shape, _lr(config, check)),
        "optim.schedule": {"name": "constant"},
        "optim.warmup": {"unit": "steps", "amount": 0.0},
        "horizon": {"unit": "steps", "amount": float(STEPS)},
        "batch.rule": "constant",
        "eval.every": 0,
        "eval.examples": None,
    }
    out = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for section in ("optim.schedule", "optim.warmup", "horizon"):
        *parents, last = section.split(".")
        (out[parents[0]] if parents else out)[last] = changes.pop(section)
    changed, problems = validation.override(out, changes)
    if problems:
        raise BadInput(*problems)
    return make_run(validated(changed))


def _lr(config: Mapping[str, Any], check: Check) -> float:
    return base_lr(config) if check.lr is None else check.lr


def base_lr(config: Mapping[str, Any]) -> float:
    """The learning rate of a config at its base shape."""
    by_width = config["optim"]["lr_rule"] == "inverse_width"
    return config["optim"]["lr"] / (config["optim"]["transfer"]["width"] if by_width else 1)


def at_shape(
    config: Mapping[str, Any], rule: str, shape: tuple[int, int], lr: float
) -> dict[str, Any]:
    """The overrides by which a config has this width and depth, this rule and learning rate. Head
    size and the ratio of `hidden` to the width are the base's."""
    width, depth = shape
    base, model = config["optim"]["transfer"], config["model"]
    out: dict[str, Any] = {
        "size": None,
        "model.width": width,
        "model.depth": depth,
        "optim.lr": lr,
        "optim.lr_rule": "constant",
        "optim.transfer.rule": rule,
    }
    if "heads" in model:
        heads = width // base["head_size"]
        ratio = 1.0 if model["heads"] is None else model["kv_heads"] / model["heads"]
        out |= {"model.heads": heads, "model.kv_heads": max(1, round(heads * ratio))}
    if "hidden" in model:
        given = model["hidden"] is not None and model["width"] is not None
        swiglu = model.get("activation") == "swiglu"
        ratio = model["hidden"] / model["width"] if given else 8 / 3 if swiglu else 4
        out["model.hidden"] = 8 * math.ceil(width * ratio / 8)
    return out


def _describe(
    by_width: Mapping[int, Mapping[str, np.ndarray]],
    by_depth: Mapping[int, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """Slopes against the width by module and step, the largest of them, and the ratio of the last
    residual (or logits) over the depths."""
    modules: dict[str, Any] = {}
    for name in next(iter(by_width.values())):
        sizes = np.stack([measured[name] for measured in by_width.values()])  # W, S, T, 2
        modules[name] = {
            kind: _slopes(list(by_width), sizes[..., i])
            for i, kind in enumerate(("size", "change"))
        }
    told = ("embedding", "blocks/attn", "blocks/mlp", "residual", "logits")
    kept = [name for name in told if name in modules] or list(modules)
    largest = max(
        abs(entry["slope"])
        for name in kept
        for slopes in modules[name].values()
        for entry in slopes
    )
    last = "residual" if "residual" in modules else "logits"
    ends = {d: float(measured[last][:, -1, 0].mean()) for d, measured in by_depth.items()}
    finite = [x if math.isfinite(x) else math.inf for x in ends.values()]
    return {
        "max_abs_slope_width": largest,
        "depth_ratio": max(finite) / min(finite) if len(finite) > 1 else None,
        "flat": largest <= NOT_FLAT,
        "by_depth": {"module": last, "size": {str(d): x for d, x in ends.items()}},
        "modules": modules,
        "counted": kept,
        "sizes": {
            name: {str(w): measured[name].mean(0).tolist() for w, measured in by_width.items()}
            for name in kept
        },
    }


def _slopes(widths: Sequence[int], sizes_WxSxT: np.ndarray) -> list[dict[str, Any]]:
    """Slopes of log size against log width at the steps from FIRST: their mean over the seeds, with
    a 95 % interval by Student's t."""
    x = np.log(np.array(widths, float))
    x -= x.mean()
    out = []
    for step in range(FIRST, sizes_WxSxT.shape[-1]):
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = x @ np.log(sizes_WxSxT[..., step]) / (x @ x)
        mean, count = float(np.mean(slopes)), len(slopes)
        t = float(stdtrit(count - 1, 0.975))
        off = t * float(np.std(slopes, ddof=1)) / math.sqrt(count)
        out.append({"step": step, "slope": mean, "interval": [mean - off, mean + off]})
    return out
