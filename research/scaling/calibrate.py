"""How often intervals contain the truth, and how wide they are: the calibration of each method.

Simulated tables (research/scaling/worlds.py) go through `analyze`, and estimates and intervals are
read from the document that a user gets.
"""

import functools
import math
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling import laws
from research.scaling.analysis import analyze
from research.scaling.compute_optimal import has_optimum
from research.scaling.options import NOT_FOR
from research.scaling.worlds import GROUPS, WORLDS, Shape, Simulator
from research.tables import table

NOMINAL = 0.95
FURTHER = (10, 100)  # times the largest budget: where is predicted
QUANTITIES = ("exponent", *(f"{name}_{k}x" for name in ("n_star", "loss") for k in FURTHER))
# Estimates of compute-optimal runs.
METHODS: dict[str, dict[str, Any]] = {
    "envelope": {"law": "envelope"},
    **{name: {"law": "isoflop", "method": name} for name in laws.METHODS_OF_MINIMA},
    "chinchilla": {"law": "chinchilla"},
    "auto": {"law": "auto"},
}


@dataclass(frozen=True)
class Plan:
    """What is measured: `tables` simulated tables of a shape in each of `worlds`, by each of
    `methods`. `options` are those of every fit (see Options)."""

    shape: Shape
    worlds: Sequence[str]
    methods: Sequence[str]
    tables: int
    seed: int
    options: Mapping[str, Any]

    def tasks(self) -> list[tuple[str, int]]:
        """(world, number) of every table, the worlds in turn."""
        return [(world, number) for number in range(self.tables) for world in self.worlds]

    def truths(self, world: str) -> dict[str, float]:
        return true_values(Simulator(self.shape, WORLDS[world]))


# What a method says of a quantity: estimate and interval, whose ends are None where open.
Answer = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Measured:
    """What one method answered on one table; no answers where it refused the table."""

    world: str
    number: int
    method: str
    answers: Mapping[str, Answer]
    seconds: float


def chosen_methods(names: Sequence[str]) -> list[str]:
    """The methods by their names (those of METHODS, and any law of params and tokens), or all of
    METHODS. Raises BadInput for others."""
    known = list(METHODS)
    others = [name for name, law in laws.LAWS.items() if name not in known and _has_optimum(law())]
    if unknown := [name for name in names if name not in (*known, *others)]:
        raise BadInput(
            f"--methods={unknown[0]}: expected some of {', '.join([*known, *others])}, joined by "
            "commas"
        )
    return list(dict.fromkeys(names)) or known


def _has_optimum(law: laws.Law) -> bool:
    return has_optimum(law) and "unique_tokens" not in law.columns


def chosen_worlds(names: Sequence[str]) -> list[str]:
    """The worlds by their names or those of groups, or all. Raises BadInput for others."""
    if unknown := [name for name in names if name not in (*WORLDS, *GROUPS)]:
        raise BadInput(
            f"--worlds={unknown[0]}: expected some of {', '.join([*WORLDS, *GROUPS])}, joined by "
            "commas"
        )
    every = [world for name in names for world in GROUPS.get(name, (name,))]
    return list(dict.fromkeys(every)) or list(WORLDS)


def true_values(simulator: Simulator) -> dict[str, float]:
    """What is true of each quantity."""
    out = {"exponent": simulator.exponent()}
    for k in FURTHER:
        n, loss = simulator.optimum(k * simulator.shape.largest_budget)
        out |= {f"n_star_{k}x": n, f"loss_{k}x": loss}
    return out


def measure(plan: Plan, processes: int, made: Iterable[Measured] = ()) -> Iterator[list[Measured]]:
    """The measurements of every table but those that are made, in the order in which they are
    done."""
    done = {(one.world, one.number, one.method) for one in made}
    left = {task: [m for m in plan.methods if (*task, m) not in done] for task in plan.tasks()}
    tasks = [(*task, methods) for task, methods in left.items() if methods]
    work = functools.partial(measure_task, plan)
    if processes == 1 or not tasks:
        yield from map(work, tasks)
        return
    # Workers leave Ctrl-C to this process, which ends them when it leaves the pool.
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap_unordered(work, tasks)


def measure_task(plan: Plan, task: tuple[str, int, Sequence[str]]) -> list[Measured]:
    """Some methods on one table: (world, number, methods)."""
    world, number, methods = task
    rows = Simulator(plan.shape, WORLDS[world]).table(plan.seed, number)
    out = []
    for method in methods:
        began = time.perf_counter()
        answers = _answers(method, rows, plan, number)
        out.append(Measured(world, number, method, answers, time.perf_counter() - began))
    return out


def _answers(method: str, rows: Sequence[table.Row], plan: Plan, number: int) -> dict[str, Answer]:
    options = {**METHODS.get(method, {"law": method}), "seed": number}
    law = options.pop("law")
    options |= {k: v for k, v in plan.options.items() if law not in NOT_FOR.get(k, ())}
    flops = [k * plan.shape.largest_budget for k in FURTHER]
    try:
        document = analyze(
            law, rows, {**options, "predict_flops": flops, "mix": True}, checks_too=False
        ).document
    except BadInput:
        return {}
    out: dict[str, Answer] = {}
    if optimal := document["optimal"]:
        out["exponent"] = (
            optimal["params_exponent"], *optimal["intervals"]["params_exponent"],
        )  # fmt: skip
    for k, predicted in zip(FURTHER, document["predictions"], strict=True):
        intervals = predicted.get("intervals", {})
        for name, key in (("n_star", "params"), ("loss", "loss")):
            if predicted[key] is not None:
                out[f"{name}_{k}x"] = (predicted[key], *intervals[key])
    return {name: answer for name, answer in out.items() if answer[0] is not None}


def summarize(plan: Plan, measured: Iterable[Measured]) -> dict[str, Any]:
    """The document of calibration.json."""
    by_cell: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        by_cell.setdefault((one.world, one.method), []).append(one)
    worlds = {}
    for world in plan.worlds:
        truths = plan.truths(world)
        worlds[world] = {
            method: {
                name: _calibration(
                    [one.answers.get(name) for one in by_cell.get((world, method), [])],
                    truths[name],
                    relative=name != "exponent",
                )
                for name in QUANTITIES
            }
            for method in plan.methods
        }
    return {
        "nominal": NOMINAL,
        "tables": plan.tables,
        "seed": plan.seed,
        "standard_error": math.sqrt(NOMINAL * (1 - NOMINAL) / plan.tables),
        "options": dict(plan.options),
        "shape": {
            "rows": len(plan.shape.rows),
            "sizes": len({row["params"] for row in plan.shape.rows}),
            "largest_budget": plan.shape.largest_budget,
            "truth": dict(plan.shape.truth),
            "noise": plan.shape.noise,
            "scatter": plan.shape.scatter,
        },
        "warnings": list(plan.shape.warnings),
        "truths": {world: plan.truths(world) for world in plan.worlds},
        "worlds": worlds,
    }


def _calibration(
    answers: Sequence[Answer | None], truth: float, relative: bool
) -> dict[str, float | int | None]:
    """Coverage among the tables with an answer, and the median width, which is that of the exponent
    in its own units and of all else relative to the truth; None if it is open, or nothing is there.
    An open end contains the truth on its side."""
    given = [answer for answer in answers if answer is not None]
    ends = np.array(
        [
            (-math.inf if low is None else low, math.inf if high is None else high)
            for _, low, high in given
        ]
    ).reshape(-1, 2)
    widths = (ends[:, 1] - ends[:, 0]) / (truth if relative else 1)
    width = float(np.median(widths)) if len(given) else math.inf
    inside = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return {
        "tables": len(answers),
        "coverage": float(inside.mean()) if len(given) else None,
        "width": width if math.isfinite(width) else None,
        "open": int((~np.isfinite(ends)).any(1).sum()),
        "failed": len(answers) - len(given),
    }
