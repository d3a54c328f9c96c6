"""A config becomes a Run: the only room that turns names and numbers into objects."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from research import accounting, data, files, ladder, models, plugs
from research.data import Dataset
from research.errors import BadInput
from research.models import Model
from research.tasks import TASKS, LanguageModelling

# Keys that do not change what a run means: they neither enter its id nor forbid a resume.
NOT_IN_ID = ("name", "mesh", "save", "log", "loop", "eval.every", "eval.batch")


@dataclass(frozen=True)
class Run:
    """One training run, complete. `hyper` holds the numbers that are traced: a run with others of
    the same structure uses the same compiled program."""

    id: str
    config: dict
    model: Model
    task: LanguageModelling
    data: Dataset
    steps: int
    batch: int
    hyper: dict
    facts: dict  # what a table says of the run before it is trained: sizes, tokens, FLOPs, rules

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.data.tokens_per_example


def make_run(config: Mapping[str, Any]) -> Run:
    """The Run of a checked config (see cli.checked). Trains nothing and compiles nothing.

    Raises BadInput for what only the data or the model can tell: files, lengths, a size that
    cannot be met.
    """
    config = copy.deepcopy(dict(config))
    dataset = data.load(**config["data"])
    batch = config["batch"]["size"]
    _enough(dataset, batch, config["eval"]["examples"])
    inputs = example_inputs(dataset)
    model, size_rule = _model(config, dataset, inputs)
    counts = accounting.params(model, inputs)
    tokens = dataset.tokens_per_example
    steps = ladder.steps(
        **config["horizon"],
        batch=batch,
        counts=counts,
        flops=accounting.step_flops(model, batch),
        tokens=tokens,
        n=len(dataset.train),
    )
    lr, lr_rule = ladder.learning_rate(config["optim"]["lr_rule"], config["optim"]["lr"], model)
    warmup = _warmup(**config["optim"]["warmup"], steps=steps, tokens=batch * tokens)
    horizon = config["horizon"]
    rules = (
        size_rule,
        f"{steps:,} steps of {batch} x {tokens} tokens for {horizon['amount']:g} {horizon['unit']}",
        lr_rule,
    )
    seen = steps * batch * tokens
    facts = {
        "name": config["name"],
        "family": config["model"]["name"],
        "size": config["size"],
        "seed": config["seed"],
        **counts,
        "tokens": seen,
        "unique_tokens": min(seen, dataset.unique_tokens),
        "epochs": seen / dataset.unique_tokens,
        "steps": steps,
        "batch": batch,
        "context": tokens,
        "lr": lr,
        "warmup_steps": warmup,
        "flops_convention": accounting.FLOPS_CONVENTION,
        **(flops := accounting.flops(model, counts, seen, steps * batch)),
        "flops": flops[f"flops_{accounting.FLOPS_CONVENTION}"],
        "rules": "\n".join(rules),
    }
    resolved = _resolved(config, model, steps, lr, warmup)
    task = TASKS[config["task"]["name"]]()
    run_id = identity(resolved, dataset.digest)
    hyper = _hyper(resolved)
    return Run(run_id, resolved, model, task, dataset, steps, batch, hyper, facts)


def identity(resolved: Mapping[str, Any], data_digest: str) -> str:
    """The id of a run: what it means, wherever its data lie and whatever it prints."""
    meaning = copy.deepcopy(dict(resolved))
    for path in NOT_IN_ID:
        section, _, key = path.rpartition(".")
        (meaning[section] if section else meaning).pop(key, None)
    meaning["data"].pop("path", None)
    meaning["data"]["digest"] = data_digest
    return files.digest_of(meaning)[:12]


def example_inputs(dataset: Dataset) -> jax.ShapeDtypeStruct:
    """Abstract model inputs for a batch of one example."""
    inputs = dataset.train.rows(np.zeros(1, np.int64))["inputs"]
    return jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)


def _enough(dataset: Dataset, batch: int, wanted: int) -> None:
    problems = []
    if len(dataset.train) < batch:
        problems.append(f"batch.size: {batch}, but only {len(dataset.train)} training examples")
    if len(dataset.heldout) < wanted:
        problems.append(
            f"eval.examples: {wanted}, but there are {len(dataset.heldout)} held-out examples"
        )
    if problems:
        raise BadInput(*problems)


def _model(config: dict, dataset: Dataset, inputs: Any) -> tuple[Model, str]:
    """The model, and how its size was chosen. Fields that only the data know come from there."""
    name = config["model"]["name"]
    family = models.family(name)
    takes = plugs.fields(*plugs.table("models/__init__.py", "MODELS")[name])
    given = {k: v for k, v in config["model"].items() if k != "name"}
    given |= {k: v for k, v in dataset.facts.items() if k in takes}
    if config["size"] is None:
        return models.build(name, **given), "size given by its fields"
    given = {k: v for k, v in given.items() if k not in family.SIZED}
    model = ladder.at_size(config["size"], name, given, inputs)
    filled = ", ".join(f"{k} {getattr(model.spec, k)}" for k in family.SIZED)
    return model, f"size rule: {family.SIZE_RULE}\nsize {config['size']:g}: {filled}"


def _warmup(unit: str, amount: float, steps: int, tokens: int) -> int:
    count = round({"fraction": amount * steps, "steps": amount, "tokens": amount / tokens}[unit])
    if count > steps:
        raise BadInput(f"optim.warmup.amount: {amount:g} {unit} are {count} of {steps} steps")
    return count


def _resolved(config: dict, model: Model, steps: int, lr: float, warmup: int) -> dict:
    """The config with every rule applied: it resolves to itself, and repeats the run."""
    out = copy.deepcopy(config)
    sized = {k: getattr(model.spec, k) for k in models.family(config["model"]["name"]).SIZED}
    out["model"] |= sized
    out["size"] = None
    out["horizon"] = {"unit": "steps", "amount": float(steps)}
    out["optim"] |= {"lr": lr, "lr_rule": "constant"}
    out["optim"]["warmup"] = {"unit": "steps", "amount": float(warmup)}
    return out


def _hyper(resolved: dict) -> dict:
    """The traced numbers of the optimizer and its schedule, as float32 scalars."""
    optim = resolved["optim"]
    numbers = {
        "lr": optim["lr"],
        "warmup": optim["warmup"]["amount"],
        "total": resolved["horizon"]["amount"],
        "clip": optim["clip"],
        "optimizer": {k: v for k, v in optim["optimizer"].items() if k != "name"},
        "schedule": {k: v for k, v in optim["schedule"].items() if k != "name"},
    }
    return jax.tree.map(np.float32, numbers)
