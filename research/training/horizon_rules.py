"""Rules by which batch, learning rate, weight decay, epsilon and Adam's averages follow the tokens
of a run, its batch and its size. Sources disagree, some in the sign of an exponent, since each was
found at a batch, an optimizer and a schedule of its own; none is a default.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from research.errors import BadInput
from research.io import files
from research.models import Model, accounting
from research.training.horizon import TOLERANCE, peak_learning_rate

REFERENCE_TOKENS = 1e6  # at which rules with a free constant give batch.size itself
RECIPE_FORMAT = "isoflop-recipe-1"  # of scaling.recipes
LARGEST_RECIPE = 1 << 20  # bytes
LARGEST_LOG = 80.0  # of a rate or a batch: beyond it none is a float32


class Point(NamedTuple):
    """What rules ask of a run: parameters, those without embedding and head, and of the whole run
    tokens, and FLOPs without the head's; tokens of an example."""

    params: float
    inner_params: float
    tokens: float
    flops: float
    context: float


def point(
    model: Model, counts: Mapping[str, Any], per: Mapping[str, float], examples: float
) -> Point:
    """Of a run of so many examples; `per` is of `horizon.per_example`."""
    inner = 1 - accounting.shares(model)["head_share"]
    tokens, flops = examples * per["tokens"], examples * per["flops"] * inner
    return Point(counts["params"], counts["params_non_embedding"], tokens, flops, per["tokens"])


def examples(rule: str, horizon: Mapping, per: Mapping[str, float]) -> float:
    """How many a horizon is, for a rule of the batch. Raises BadInput for one in steps."""
    if horizon["unit"] == "steps":
        raise BadInput(
            f"batch.rule: {rule}, but horizon.unit is steps, which fix no tokens until the "
            "batch is known; expected constant, or a horizon of another unit"
        )
    return horizon["amount"] / per[horizon["unit"]]


def isoflop_budget(horizon: Mapping, examples: int, per: Mapping[str, float]) -> dict[str, Any]:
    """Of a horizon in FLOPs, an isoFLOP cell: how many it was given, by which convention, and by
    what part whole steps miss them."""
    unit, amount = horizon["unit"], horizon["amount"]
    name = accounting.FLOPS_CONVENTION if unit == "flops" else unit.removeprefix("flops_")
    away = examples * per[unit] / amount - 1
    return {"budget": amount, "budget_convention": name, "budget_away": away}


# Tokens of a batch, as published: Li et al. 2025 (Step Law, 2503.04715), and DeepSeek-AI 2024
# (2401.02954), whose FLOPs leave the head out.
_TOKENS_OF_BATCH = {
    "step_law": (lambda p: 0.58 * p.tokens**0.571, "0.58 tokens^0.571"),
    "deepseek": (
        lambda p: 0.292 * p.flops**0.3271,
        "0.292 FLOPs^0.3271, without the head",
    ),
}
# What batch.size is multiplied by. Zhang et al. 2024 (2410.21676) and Bergsma et al. 2025 (Power
# Lines, 2505.13738): the batch that is best for a run, whatever the model's size.
_POWER_OF_TOKENS = {"sqrt_tokens": 0.5, "power_lines": 0.383}


def batch_size(
    batch: Mapping[str, Any], recipe: str | None, horizon: Mapping, run: Point
) -> tuple[int, str]:
    """Examples in a batch by the section `batch` of a config, and the rule in words. `run` is that
    of the horizon."""
    rule, size = batch["rule"], batch["size"]
    tokens, number = run.tokens, run.tokens / run.context
    fitted = _recipe(recipe, "log_batch") if rule == "fitted" else None
    if not 0 < tokens < 2**63:
        raise BadInput(
            f"horizon.amount: {horizon['amount']:g} {horizon['unit']} are {tokens:.3g} tokens; "
            "expected fewer than 2^63, and some"
        )
    if rule in _POWER_OF_TOKENS:
        best = size * (tokens / REFERENCE_TOKENS) ** _POWER_OF_TOKENS[rule]
        power = "sqrt(tokens / 1e+06)" if rule == "sqrt_tokens" else "(tokens / 1e+06)^0.383"
        words = f"batch = {size} {power}"
    elif fitted:
        law = fitted["log_batch"]
        best = _best(law, run, None) / run.context
        words = f"batch = that of the recipe {recipe}, {_law_words(law)}, in tokens"
    else:
        law, formula = _TOKENS_OF_BATCH[rule]
        best = law(run) / run.context
        words = f"batch = {formula}, in tokens"
    chosen = 2 ** max(0, round(math.log2(max(best, 1))))
    while chosen > 1 and abs(max(1, round(number / chosen)) * chosen / number - 1) > TOLERANCE:
        chosen //= 2
    follows = "" if fitted else "; the learning rate does not follow it"
    outside = _outside(fitted, run, chosen) if fitted else ""
    return chosen, (
        f"{words}, to a power of 2, halved until whole steps are within {TOLERANCE:.0%} of the "
        f"horizon{follows}\n{tokens:.4g} tokens: batch {chosen}{outside}"
    )


# Learning rates as published, times optim.lr.
_RATES = {
    "step_law": (
        lambda p: 1.79 * p.inner_params**-0.713 * p.tokens**0.307,
        "1.79 params^-0.713 tokens^0.307, of parameters without embedding and head",
    ),
    "deepseek": (
        lambda p: 0.3118 * p.flops**-0.125,
        "0.3118 FLOPs^-0.125, without the head",
    ),
}


def apply(optim: dict[str, Any], model: Model, run: Point, batch: int) -> tuple[float, str]:
    """The peak learning rate of a run by the section `optim` of its config, and its rules in words.
    Numbers of the optimizer that follow the length of the run are set there."""
    rate, words = _rate(optim, model, run, batch)
    if optim["horizon_rule"]["rule"] != "none":
        times, numbers, more = _by_horizon(optim, run, batch)
        optim["optimizer"] |= numbers
        rate *= times
        words += f"\n{more}\n{_of(run, batch)}: learning rate {rate:.4g}"
    optim |= {"recipe": None, "horizon_rule": {"rule": "none", "tokens": None, "batch": None}}
    return rate, words


def _rate(optim: Mapping[str, Any], model: Model, run: Point, batch: int) -> tuple[float, str]:
    rule, lr = optim["lr_rule"], optim["lr"]
    if rule == "fitted":
        law = _recipe(optim["recipe"], "log_lr")
        rate = lr * _best(law["log_lr"], run, batch * run.context)
        words = f"learning rate = {lr:g} x that of the recipe {optim['recipe']}, "
        words += f"{_law_words(law['log_lr'])}\n{_of(run, batch)}: {rate:.4g}"
        words += _outside(law, run, batch)
    elif rule in _RATES:
        law, formula = _RATES[rule]
        rate = lr * law(run)
        words = f"learning rate = {lr:g} x {formula}\n{_of(run, batch)}: {rate:.4g}"
    else:
        return peak_learning_rate(optim, model)
    return rate, words


def _of(run: Point, batch: int) -> str:
    return f"{run.params:,.0f} parameters, {run.tokens:.4g} tokens, batch {batch}"


class _Rule(NamedTuple):
    """Exponents of the ratios (batch, tokens) to the base, and a word on the source."""

    lr: tuple[float, float]
    decay: tuple[float, float] = (0.0, 0.0)
    eps: tuple[float, float] = (0.0, 0.0)
    source: str = ""


_BY_HORIZON = {
    # The share of the run that weight decay remembers, batch / (lr decay tokens), stays.
    "power_lines": _Rule((0.5, 0), (0.5, -1), source="Power Lines, 2505.13738"),
    "complete_p": _Rule((0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), "Complete(d)P, 2512.22382"),
    # Found with AdamH, which has no weight decay; here that stays as it is.
    "marin": _Rule((0.5, -0.3), eps=(-0.5, 0.5), source="marin's completed_adamh"),
    "token_horizon": _Rule((0, -0.32), source="2409.19913, at one batch"),
}
_MARIN_B2 = (0.9, 0.9999)


def _by_horizon(
    optim: Mapping[str, Any], run: Point, batch: int
) -> tuple[float, dict[str, float], str]:
    """By what the learning rate is multiplied, the optimizer's new numbers, and words."""
    section, own = optim["horizon_rule"], optim["optimizer"]
    name = section["rule"]
    rule = _BY_HORIZON[name]
    m_batch, m_tokens = batch / section["batch"], run.tokens / section["tokens"]

    def power(exponents: tuple[float, float]) -> float:
        return m_batch ** exponents[0] * m_tokens ** exponents[1]

    numbers: dict[str, float] = {}
    if "weight_decay" in own:
        numbers["weight_decay"] = own["weight_decay"] * power(rule.decay)
    if "eps" in own:
        numbers["eps"] = own["eps"] * power(rule.eps)
    if name == "complete_p":
        numbers |= {b: 1 - (1 - own[b]) * m_batch / m_tokens for b in ("b1", "b2")}
        if bad := [b for b in ("b1", "b2") if not 0 <= numbers[b] < 1]:
            raise BadInput(
                f"optim.horizon_rule.rule: complete_p multiplies 1 - {bad[0]} by "
                f"{m_batch / m_tokens:.3g}, which is {1 - numbers[bad[0]]:.3g} then; expected a "
                "smaller batch.size, or another rule"
            )
    elif name == "marin":
        low, high = _MARIN_B2
        numbers["b2"] = min(max(own["b2"] ** m_batch, low), high)
    numbers = {key: value for key, value in numbers.items() if value != own[key]}
    lines = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
    words = (
        f"horizon {name} ({rule.source}): the numbers hold at {section['tokens']:.4g} tokens and "
        f"batch {section['batch']}; batch x {m_batch:.4g}, tokens x {m_tokens:.4g}: "
        f"learning rate x {power(rule.lr):.4g}"
    )
    return power(rule.lr), numbers, f"{words}, {lines}" if lines else words


# A recipe: natural logarithms, linear in those of parameters, tokens and tokens of a batch.


def _recipe(path: str | None, part: str) -> dict[str, Any]:
    """A recipe of `isoflop fit --law=recipe`. Raises BadInput unless it has this `part`."""
    recipe = files.read_json(str(path), LARGEST_RECIPE)
    if recipe.get("format") != RECIPE_FORMAT:
        raise BadInput(f"optim.recipe: {path}: its format is not {RECIPE_FORMAT!r}")
    if recipe.get(part) is None:
        told = "no law of the batch; expected another batch.rule" if part == "log_batch" else ""
        raise BadInput(f"optim.recipe: {path}: {told or f'no {part}'}")
    ranges = recipe.get("where", {})
    pairs = list(ranges.values()) if isinstance(ranges, dict) else [None]
    numbers = recipe[part] if isinstance(recipe[part], dict) else {}
    sound = all(isinstance(p, list) and len(p) == 2 and all(map(_is_number, p)) for p in pairs)
    if not sound or "constant" not in numbers or not all(map(_is_number, numbers.values())):
        raise BadInput(f"optim.recipe: {path}: {part} and where must hold numbers alone")
    return recipe


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _best(law: Mapping[str, float], run: Point, batch_tokens: float | None) -> float:
    """What a law of a recipe says of a run. Raises BadInput where that is no number."""
    log = law["constant"] + law.get("params", 0.0) * math.log(run.params)
    log += law.get("tokens", 0.0) * math.log(run.tokens)
    log += law.get("batch", 0.0) * math.log(batch_tokens) if batch_tokens else 0.0
    if not abs(log) < LARGEST_LOG:
        raise BadInput(f"optim.recipe: its law gives e^{log:.4g} for this run")
    return math.exp(log)


def _law_words(law: Mapping[str, float]) -> str:
    powers = [f"{key}^{law[key]:.3g}" for key in ("params", "tokens", "batch") if law.get(key)]
    return " ".join([f"{math.exp(min(law['constant'], 700)):.4g}", *powers])


def _outside(recipe: Mapping[str, Any], run: Point, batch: int) -> str:
    """A line that says where a run lies beyond what the recipe was fitted to, or ""."""
    here = {"params": run.params, "tokens": run.tokens, "batch_tokens": batch * run.context}
    beyond = [
        f"{name} {here[name]:.3g}, fitted from {low:.3g} to {high:.3g}"
        for name, (low, high) in recipe.get("where", {}).items()
        if name in here and not low <= here[name] <= high
    ]
    return f"\noutside the recipe: {'; '.join(beyond)}" if beyond else ""
