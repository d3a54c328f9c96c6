"""A config becomes a Run: here names and numbers are turned into objects. Nothing below reads a
config."""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from research import data, models
from research.config import registry, schema, validation
from research.data import Dataset
from research.errors import BadInput, ErrorCollector
from research.io import files
from research.models import Model, accounting
from research.parallel import device_mesh, sharding
from research.runs.schema import PATH_KEYS
from research.training import horizon
from research.training.execution import Execution
from research.training.optimizers import Optimizer
from research.training.schedules import Choice
from research.training.step import Hyper, TrainState
from research.training.tasks import TASKS, Task, task_class

if TYPE_CHECKING:
    from research.training.fine_tuning import StartingPoint
    from research.training.transfer import Transfer
from research.training.run import Cadence, Run, Saving, example_inputs, identity

# Of one dispatch, where the config leaves them free: enough to make the host's part small, few
# enough to be held twice and sent in no time.
MOST_STEPS, MOST_BYTES = 50, 2**22
_Of = tuple[Model, Mapping[str, Any], Mapping[str, float]]  # what horizon_rules.point takes


def make_run(config: Mapping[str, Any], dataset: Dataset | None = None) -> Run:
    """The Run of a checked config (see loading.validated), on `dataset` where its own need not be
    there. Trains nothing and compiles nothing.

    Raises BadInput for what only the data or the model can tell: files, lengths, a size that
    cannot be met.
    """
    config = copy.deepcopy(dict(config))
    options = {key: value for key, value in config["data"].items() if key != "seed"}
    loaded = None
    if dataset is None:
        dataset = data.load(**options)
        if config["eval"].get("sets") is not None:
            from research.training import evaluation_sets  # which few runs need

            loaded = evaluation_sets.load(config["eval"], config["data"], dataset)
            dataset, config["eval"] = loaded.data, loaded.section
    collect, inputs = ErrorCollector(), example_inputs(dataset)
    task, sized = collect(_task, config, dataset), collect(_model, config, dataset, inputs)
    collect.raise_errors()
    assert task
    assert sized
    model, size_rule = sized
    dataset = task.prepared(dataset, model)
    others = loaded.others if loaded else ()
    others = tuple(one._replace(data=task.prepared(one.data, model)) for one in others)
    examples = config["eval"]["examples"] = config["eval"]["examples"] or len(dataset.heldout)
    config["eval"] = {k: v for k, v in config["eval"].items() if v is not None}  # none is no key
    with _prefix_errors("model.name", config["model"]["name"]):
        counts = accounting.params(model, inputs)
    per = horizon.per_example(model, counts, dataset.tokens_per_example, len(dataset.train))
    batch, batch_rule = _batch(config, dataset, (model, counts, per))
    config["batch"] |= {"size": batch, "rule": "constant"}
    parts = config["batch"]["grad_accumulation"]
    collect(_check_counts, dataset, batch, parts, examples)
    steps, horizon_rule = collect(horizon.training_steps, config["horizon"], batch, per) or (0, "")
    optim, per_step = config["optim"], batch * dataset.tokens_per_example
    rated = collect(_peak_rate, optim, batch, steps, (model, counts, per))
    lr, lr_rule = rated or (0.0, "")
    warmup = collect(_warmup, optim, steps, per_step) if steps else 0
    transfer, transfer_words = collect(_transfer, optim, model, inputs) or (None, "")
    start = collect(_starting_point, config, dataset, model, inputs, steps, loaded)
    collect.raise_errors()
    assert warmup is not None
    resolved = _resolved(config, model, steps, lr, warmup)
    optimizer, schedule, hyper = _traced(resolved)
    _check_tables(model, inputs, optimizer, hyper)
    rules = [size_rule, batch_rule, horizon_rule, lr_rule, transfer_words]
    rules += [task.describe_rule(model, per_step // parts), loaded.rule if loaded else ""]
    facts = _facts(config, dataset, task, start, rules)
    facts |= counts | _amounts(model, dataset, counts, steps, batch)
    if config["horizon"]["unit"] in schema.FLOPS_UNITS:
        from research.training import horizon_rules  # which few runs need

        facts |= horizon_rules.isoflop_budget(config["horizon"], steps * batch, per)
    facts |= {"lr": lr, "warmup_steps": warmup, **(loaded.facts if loaded else {})}
    run = Run(
        id=identity(resolved, dataset.digest, start),
        model=model,
        task=task,
        data=dataset,
        examples=_examples(options, dataset),
        optimizer=optimizer,
        schedule=schedule,
        hyper=hyper,
        transfer=transfer,
        seed=config["seed"],
        data_seed=config["data"]["seed"],
        batch=batch,
        execution=Execution.of_parts(parts, task, model.spec),
        steps=steps,
        mesh={axis: n for axis, n in config["mesh"].items() if axis != "indivisible"},
        replicate_indivisible=config["mesh"]["indivisible"] == "replicate",
        eval_examples=examples,
        eval_batch=config["eval"]["batch"],
        cadence=_cadence(config, batch, dataset, steps),
        saving=Saving(**config["save"] | {"at": _moments(config, "save", steps)}),
        hang_limits=_hang_limits(config["loop"]),
        trackers=tuple(config["log"]["trackers"]),
        start=start,
        facts=facts,
        config=resolved,
        sets=others,
    )
    if run.saving.best is not None:
        from research.runs import best  # which few runs need

        best.direction(run.saving.best, run.columns)
    return run


def _batch(config: dict, dataset: Dataset, of: _Of) -> tuple[int, str]:
    """Examples in a batch, and the rule in words."""
    batch, length = config["batch"], config["horizon"]
    if batch["rule"] == "constant":
        return batch["size"] or len(dataset.train), ""
    from research.training import horizon_rules as rules  # which few runs need

    run = rules.point(*of, rules.examples(batch["rule"], length, of[-1]))
    return rules.batch_size(batch, config["optim"]["recipe"], length, run)


def _peak_rate(optim: dict, batch: int, steps: int, of: _Of) -> tuple[float, str]:
    """The peak rate, and the rules in words; what else follows the length of the run is set."""
    if optim["horizon_rule"]["rule"] == "none" and optim["lr_rule"] in horizon.OF_WIDTH:
        return horizon.peak_learning_rate(optim, of[0])
    from research.training import horizon_rules as rules  # which few runs need

    return rules.apply(optim, of[0], rules.point(*of, max(steps, 1) * batch), batch)


def _examples(options: Mapping[str, Any], dataset: Dataset) -> str:
    """A digest of all that decides the examples of a step, but for their order."""
    chosen = {k: v for k, v in options.items() if k not in PATH_KEYS}
    return files.digest_of({"content": dataset.digest, "options": chosen})


def _cadence(config: dict, batch: int, dataset: Dataset, steps: int) -> Cadence:
    dispatch = _dispatch(config["loop"]["steps_per_dispatch"], batch, dataset)
    at = _moments(config, "eval", steps)
    return Cadence(config["eval"]["every"], config["log"]["every"], *dispatch, at)


def _moments(config: dict, section: str, steps: int) -> frozenset[int]:
    if (moments := config[section].get("at")) is None:
        return frozenset()
    from research.training.moments import steps_at  # which few runs need

    return steps_at(f"{section}.at", moments, steps)


def _hang_limits(loop: Mapping[str, Any]) -> tuple[float, float]:
    least, first = loop["hang_seconds"], loop["hang_first_seconds"]
    return math.inf if least is None else least, math.inf if first is None else first


def _dispatch(requested: int | str, batch: int, dataset: Dataset) -> tuple[int, bool]:
    """The most steps in one dispatch, and whether fewer are taken if they take long. The most is
    part of the compiled program, so it depends on the config alone."""
    if isinstance(requested, int):
        return requested, False
    one = sum(x.nbytes for x in dataset.train.rows(np.zeros(1, np.int64)).values())
    return max(1, min(MOST_STEPS, MOST_BYTES // (batch * one))), True


def _check_counts(dataset: Dataset, batch: int, parts: int, examples: int) -> None:
    problems = []
    if batch % parts:
        problems.append(
            f"batch.grad_accumulation: {parts} does not divide a batch of {batch} examples"
        )
    if len(dataset.train) < batch:
        problems.append(f"batch.size: {batch}, but only {len(dataset.train)} training examples")
    if not len(dataset.heldout):
        problems.append(
            "data.heldout: none holds nothing out; expected a share of the data, or eval.headline, "
            "one of eval.sets"
        )
    elif len(dataset.heldout) < examples:
        problems.append(
            f"eval.examples: {examples}, but there are {len(dataset.heldout)} held-out examples; "
            "none takes all of them"
        )
    if problems:
        raise BadInput(*problems)


@contextlib.contextmanager
def _prefix_errors(key: str, value: str) -> Iterator[None]:
    """Prefix the errors raised inside with a config key and its value."""
    try:
        yield
    except BadInput as error:
        raise BadInput(*(f"{key}: {value}: {line}" for line in error.problems)) from error


def _check_tables(model: Model, inputs: Any, optimizer: Optimizer, hyper: Hyper) -> None:
    """Raise BadInput where a parameter matches no row of a table, or two: where the optimizer does
    not know how to treat it, or its family does not say how it is sharded."""
    params = model.shapes(inputs)
    with _prefix_errors("optim.optimizer.name", optimizer.name):
        opt_state = jax.eval_shape(optimizer.transform(hyper.optimizer).init, params)
    step: Any = jax.ShapeDtypeStruct((), np.int32)
    state = TrainState(step, params, opt_state)
    with _prefix_errors("model.name", model.described()["name"]):
        mesh = device_mesh.abstract_mesh(dict.fromkeys(device_mesh.AXES, 1))  # of one device
        sharding.state_shardings(state, model.sharding, mesh)


def _task(config: dict, dataset: Dataset) -> Task:
    name = config["task"]["name"]
    task = task_class(name)(**{k: v for k, v in config["task"].items() if k != "name"})
    if task.targets != dataset.targets:
        fitting = [k for k in TASKS if task_class(k).targets == dataset.targets]
        raise BadInput(
            f"task.name: {name} measures {task.targets}, but the targets of data.name = "
            f"{config['data']['name']} are {dataset.targets}; expected {' or '.join(fitting)}"
        )
    return task


def _fields(config: dict, dataset: Dataset) -> dict[str, Any]:
    """The model's fields. Those that only the data know come from there."""
    name = config["model"]["name"]
    takes = registry.fields(*registry.table("models/__init__.py", "MODELS")[name])
    fields = {k: v for k, v in config["model"].items() if k != "name"}
    fields |= {k: v for k, v in dataset.facts.items() if k in takes}
    if config["size"] is None and (run := config["init"]["run"]) is not None:
        from research.training import fine_tuning  # which few runs need

        shape = fine_tuning.model_shape(run, name)
        fields |= {k: shape[k] for k, v in fields.items() if v is None and k in shape}
    if "vocab" in fields and "classes" in dataset.facts:  # a language model becomes a classifier
        fields |= {k: dataset.facts[k] for k in ("classes", "pad")}
    if missing := [k for k in takes if k not in fields]:
        raise BadInput(
            f"model.name: {name} needs data with {', '.join(missing)}; data.name = "
            f"{config['data']['name']} has {', '.join(dataset.facts)}"
        )
    return fields


def _model(config: dict, dataset: Dataset, inputs: Any) -> tuple[Model, str]:
    """The model, and how its size was chosen."""
    name = config["model"]["name"]
    fields, family = _fields(config, dataset), models.family(name)
    try:
        if config["size"] is None:
            return models.build(name, **fields), "size given by its fields"
        from research.models import sizing  # which runs of given fields do not need

        fields = sizing.without_sized(name, fields)
        model = sizing.model_at_size(config["size"], name, fields, inputs)
    except ValueError as error:  # what a family says of its own numbers
        raise BadInput(f"model.{error}") from error
    filled = ", ".join(f"{k} {getattr(model.spec, k)}" for k in family.SIZED)
    fixed = "".join(f"; {k} held at {fields[k]}" for k in family.SIZED if k in fields)
    return model, f"size rule: {family.SIZE_RULE}{fixed}\nsize {config['size']:g}: {filled}"


def _transfer(optim: dict, model: Model, inputs: Any) -> "tuple[Transfer | None, str]":
    """How the optimizer's numbers follow the model's shape and paths, and that in words."""
    transfer, words, paths = None, "", optim.get("paths")
    if optim["transfer"]["rule"] == "none":
        optim["transfer"] = dict.fromkeys(optim["transfer"]) | {"rule": "none"}
    else:
        from research.training.transfer import transfer_rule  # which few runs need

        name = optim["optimizer"]["name"]
        transfer, words = transfer_rule(optim["transfer"], model, inputs, name)
    if paths is None:
        optim.pop("paths", None)  # none is no key
        return transfer, words
    from research.training.optim_paths import with_paths  # as above

    return with_paths(paths, transfer, model, inputs, words)


def _starting_point(
    config: dict, dataset: Dataset, model: Model, inputs: Any, steps: int, loaded: Any
) -> "StartingPoint | None":
    init = config["init"]
    if init["run"] is None and init["step"] is not None:
        raise BadInput(f"init.step: {init['step']} is given, but init.run is none")
    if init["run"] is None or init["what"] == "shape":
        return None
    from research.training import fine_tuning, heldout_check  # which few runs need

    start = fine_tuning.starting_point(config, dataset, model, inputs, steps)
    return heldout_check.checked(start, dataset, loaded.measured if loaded else dataset)


def _facts(
    config: dict, dataset: Dataset, task: Task, start: "StartingPoint | None", rules: list[str]
) -> dict[str, Any]:
    """What a table says of a run beside its numbers."""
    family, scaled = config["model"]["name"], "target_scale" in dataset.notes
    return {
        "name": config["name"],
        "family": family,
        "task": config["task"]["name"],
        "loss_unit": task.unit + (" of standardized targets" if scaled else ""),
        "group": f"{family} from {start.name}" if start else family,
        "size": config["size"],
        "seed": config["seed"],
        "optimizer": config["optim"]["optimizer"]["name"],
        "schedule": config["optim"]["schedule"]["name"],
        "rules": "\n".join(filter(None, [*rules, start.rule if start else ""])),
    }


def _amounts(
    model: Model, dataset: Dataset, counts: Mapping[str, Any], steps: int, batch: int
) -> dict[str, Any]:
    """Tokens and FLOPs of the whole run, under every convention."""
    tokens = steps * batch * dataset.tokens_per_example
    flops = accounting.flops(model, counts, tokens, steps * batch)
    return {
        "steps": steps,
        "batch": batch,
        "context": dataset.tokens_per_example,
        "train_examples": len(dataset.train),
        "tokens": tokens,
        "unique_tokens": _unique(dataset, tokens),
        "epochs": tokens / dataset.unique_tokens,
        **flops,
        **accounting.shares(model),
        "flops": flops[f"flops_{accounting.FLOPS_CONVENTION}"],
        "flops_convention": accounting.FLOPS_CONVENTION,
    }


def _unique(dataset: Dataset, tokens: int) -> int:
    """How many different tokens are seen; of a mixture, each source at its own rate."""
    if sources := dataset.notes.get("sources"):
        total = sum(s["weight"] for s in sources)
        return sum(min(round(tokens * s["weight"] / total), s["unique_tokens"]) for s in sources)
    return min(tokens, dataset.unique_tokens)


def _warmup(optim: Mapping[str, Any], steps: int, tokens: int) -> int:
    """The steps of the warm-up, in a run of `steps` of so many `tokens`."""
    unit, amount = optim["warmup"]["unit"], optim["warmup"]["amount"]
    exact = {"fraction": amount * steps, "steps": amount, "tokens": amount / tokens}[unit]
    count = round(min(exact, 2.0**53))
    if wrong := validation.long_warmup(count / steps, optim["schedule"].get("decay", 0.0)):
        raise BadInput(f"optim.warmup.amount: {amount:g} ({unit}) in {steps} steps is {wrong}")
    return count


def _resolved(config: dict, model: Model, steps: int, lr: float, warmup: int) -> dict:
    """The config with every rule applied: it resolves to itself, and repeats the run."""
    sized = {k: getattr(model.spec, k) for k in models.family(config["model"]["name"]).SIZED}
    warmed = {"unit": "steps", "amount": float(warmup)}
    out = config | {
        "model": config["model"] | sized,
        "size": None,
        "horizon": {"unit": "steps", "amount": float(steps)},
        "optim": config["optim"] | {"lr": lr, "lr_rule": "constant", "warmup": warmed},
    }
    if out["init"]["what"] == "shape":  # which is written in the model's fields by now
        out["init"] = {"run": None, "step": None, "what": "params"}
    return out


def _traced(resolved: dict) -> tuple[Optimizer, Choice, Hyper]:
    """The optimizer and its schedule, and the traced numbers of both as float32 scalars."""
    optim = resolved["optim"]
    optimizer, of_optimizer = Optimizer.from_config(optim["optimizer"])
    schedule, of_schedule = Choice.from_config(optim["schedule"])
    numbers = Hyper(
        **{key: optim[key] for key in ("lr", "clip", "ema", "skip")},
        warmup=optim["warmup"]["amount"],
        total=resolved["horizon"]["amount"],
        optimizer=of_optimizer,
        schedule=of_schedule,
    )
    return optimizer, schedule, jax.tree.map(np.float32, numbers)
