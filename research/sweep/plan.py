"""What a sweep would do and cost, told before it trains: cells that make no sense, the table of all
points, what bends a law, what a limit leaves, what would be cheaper. Works on the facts of runs
(see run.make_run); knows no model."""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from research.errors import BadInput

Facts = Mapping[str, Any]

# An isoFLOP cell outside these is dropped. Both are wide: sizes that are best lie between 5 and
# 1,000 tokens per parameter, the tiny ones at the upper end, and a cell is there to bracket them.
FEWEST_STEPS = 50
TOKENS_PER_PARAM = (0.1, 1e4)
EXACT = "exact_full"  # the convention of the column "flops" (see accounting)
# What is warned of. Porian et al. 2024 move the exponent from 0.84 to 0.57 by mending these.
SHARE = 0.1  # of the FLOPs, in a part that changes over the ladder
WARMUP = 0.2  # of the steps
AWAY = 0.01  # of a budget
DECAY = 0.2  # of the steps, in the schedule that is proposed where trunks could be shared
WORTH = 0.1  # of the FLOPs: a cheaper alternative that saves less is not told


class Row(NamedTuple):
    """A point of the plan. `seconds` to train it and to be `compiling` its `program` (once for all
    points that share it), where they can be predicted; `memory` in bytes on one device; `group` is
    what it is trained with."""

    run: str
    status: str
    facts: Facts
    seconds: float | None = None
    compiling: float = 0.0
    program: object = None
    memory: float | None = None
    group: str = ""

    @property
    def pending(self) -> bool:
        return self.status not in ("done", "diverged")

    def __str__(self) -> str:
        f = self.facts
        return f"run {self.run} ({f['params']:,} params, {f['flops']:.3g} FLOPs, seed {f['seed']})"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of planning."""
    parser.add_argument("--plan", action="store_true", help="show the points, train nothing")
    help_ = "time the smallest and the largest program here first, to predict seconds (kept)"
    parser.add_argument("--calibrate", action="store_true", help=help_)
    for name, what in (("max_flops", "training FLOPs"), ("max_hours", "predicted hours")):
        help_ = f"refuse a sweep whose pending runs need more {what}"
        parser.add_argument(f"--{name}", type=float, metavar="X", help=help_)
    help_ = "leave out the dearest runs instead of refusing"
    parser.add_argument("--trim", action="store_true", help=help_)


class Limits(NamedTuple):
    """What a sweep may cost, and whether to leave out runs (`trim`) or refuse where it costs more.
    `calibrate` asks for programs to be timed anew."""

    max_flops: float | None = None
    max_hours: float | None = None
    trim: bool = False
    calibrate: bool = False


def limits(args: argparse.Namespace) -> Limits:
    """What the flags say. Raises BadInput for limits that are none."""
    out = Limits(args.max_flops, args.max_hours, args.trim, args.calibrate)
    problems = [
        f"--{name}={value:g}: expected a finite number above 0"
        for name, value in (("max_flops", out.max_flops), ("max_hours", out.max_hours))
        if value is not None and not 0 < value < math.inf
    ]
    if out.trim and out.max_flops is None and out.max_hours is None:
        problems.append("--trim: nothing to trim to; give --max_flops or --max_hours")
    if problems:
        raise BadInput(*problems)
    return out


def nonsense(facts: Facts) -> str:
    """Why an isoFLOP cell tells nothing about its budget, or ""."""
    if "budget" not in facts:
        return ""
    ratio, (low, high) = facts["tokens"] / facts["params"], TOKENS_PER_PARAM
    if facts["steps"] < FEWEST_STEPS:
        return f"{facts['steps']} steps, fewer than {FEWEST_STEPS}"
    if not low <= ratio <= high:
        return f"{ratio:.3g} tokens per parameter, outside {low:g} to {high:g}"
    return ""


def within(rows: Sequence[Row], limits: Limits) -> tuple[list[Row], list[str]]:
    """The rows that the limits leave, and a line for each that is left out, dearest first.

    Only pending runs count. Raises BadInput, saying what would fit, where not all do and `trim` is
    not set, or none does.
    """
    kept, told = list(rows), []
    for name, limit, cost in (
        ("flops", limits.max_flops, _flops),
        ("hours", limits.max_hours, _hours),
    ):
        if limit is not None:
            kept, out = _cheapest(kept, name, limit, cost, limits.trim)
            told += [f"left out by --max_{name}={limit:g}: {row}" for row in out]
    return kept, told


def _flops(rows: Iterable[Row]) -> float:
    return sum(row.facts["flops"] for row in rows)


def _hours(rows: Iterable[Row]) -> float:
    rows = list(rows)
    if untimed := [row for row in rows if row.seconds is None]:
        raise BadInput(f"--max_hours: {untimed[0]} cannot be timed on this machine")
    return (sum(row.seconds or 0.0 for row in rows) + _compiling(rows)) / 3600


def _compiling(rows: Iterable[Row]) -> float:
    return sum({row.program: row.compiling for row in rows}.values())


def _cheapest(
    rows: list[Row], name: str, limit: float, cost: Callable[[Sequence[Row]], float], trim: bool
) -> tuple[list[Row], list[Row]]:
    """The rows without the dearest of the pending ones, and these."""
    pending = sorted((row for row in rows if row.pending), key=lambda row: cost([row]))
    total, fit = cost(pending), len(pending)
    while fit and cost(pending[:fit]) > limit:
        fit -= 1
    if fit == len(pending):
        return rows, []
    needs = f"--max_{name}={limit:g}: the {len(pending)} runs to train need {total:.3g} {name}"
    if not fit:
        raise BadInput(f"{needs}; not even the cheapest fits, with {cost(pending[:1]):.3g}")
    if not trim:
        raise BadInput(
            f"{needs}; the {fit} cheapest would fit ({cost(pending[:fit]):.3g}); --trim leaves the "
            f"{len(pending) - fit} dearest out, --max_{name}={_above(total)} takes all"
        )
    out = pending[fit:][::-1]
    left = {row.run for row in out}
    return [row for row in rows if row.run not in left], out


def _above(value: float) -> str:
    """In two digits, not less than `value`."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / scale) * scale:.2g}"


def warnings(facts: Sequence[Facts]) -> list[str]:
    """What would bend a law fitted to these runs, one line each."""
    out, count = [], len(facts)
    for group in dict.fromkeys(f["group"] for f in facts):
        for part in ("head", "attention"):
            shares = [f[f"{part}_share"] for f in facts if f["group"] == group]
            if max(shares) > SHARE and max(shares) > 1.5 * min(shares):
                out.append(
                    f"{group}: the {part} takes {min(shares):.0%} to {max(shares):.0%} of the "
                    "FLOPs; an exponent will depend on whether it is counted: compare "
                    "conventions (--multiverse of experiments.fit)"
                )
    for name in dict.fromkeys(f.get("budget_convention", EXACT) for f in facts):
        if name != EXACT:
            out.append(
                f"budgets are counted as {name}, while tables and reports count {EXACT}: fit their "
                f"minima with experiments.fit --law=isoflop --columns=flops=flops_{name}"
            )
    if warm := [f["warmup_steps"] / f["steps"] for f in facts if f["warmup_steps"]]:
        long = [share for share in warm if share > WARMUP]
        if long:
            out.append(
                f"warm-up takes over {WARMUP:.0%} of the steps of {len(long)} of {count} runs (up "
                f"to {max(long):.0%}), which raises their loss more than that of longer ones"
            )
    if again := [f["epochs"] for f in facts if f["context"] > 1 and f["epochs"] > 1]:
        out.append(
            f"{len(again)} of {count} runs see more tokens than there are unique ones (up to "
            f"{max(again):.2g} epochs); repeated tokens teach less"
        )
    if away := [abs(f["budget_away"]) for f in facts if abs(f.get("budget_away", 0)) > AWAY]:
        out.append(
            f"whole steps miss the budget of {len(away)} of {count} runs by more than {AWAY:.0%} "
            f"(up to {max(away):.1%}); a smaller batch.size, or batch.rule=sqrt_tokens, keeps it"
        )
    return out


def cheaper(rows: Sequence[Row], saved: Mapping[str, float]) -> list[str]:
    """What costs less, one line each. `saved` names what is spared already, with its FLOPs."""
    pending = [row for row in rows if row.pending]
    total, largest = _flops(pending), max((row.facts["params"] for row in pending), default=0)
    smaller = [row for row in pending if row.facts["params"] < largest]
    alone = {_but(row.facts, "seed"): row for row in reversed(pending)}.values()
    alternatives = {
        "optim.schedule.name=wsd with warm-up in steps lets the lengths of a size share a trunk": (
            total if saved else _with_trunks(pending)
        ),
        f"without the largest size ({largest:,} params), which shortens the law's reach": (
            _flops(smaller) if smaller else total
        ),
        "one seed of each point": _flops(alone),
    }
    return [
        *(f"{how}: {flops:.3g} of {total:.3g} FLOPs are saved" for how, flops in saved.items()),
        *(
            f"cheaper: {words}: {flops:.3g} FLOPs instead of {total:.3g}"
            for words, flops in alternatives.items()
            if flops < (1 - WORTH) * total
        ),
    ]


def _with_trunks(rows: Sequence[Row]) -> float:
    """FLOPs if runs that differ only in length shared all but their decay."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault(_but(row.facts, "steps"), []).append(row.facts["flops"])
    return sum(max(g) + DECAY * (sum(g) - max(g)) for g in groups.values())


def _but(facts: Facts, key: str) -> tuple:
    """What two runs that differ in `key` alone share."""
    names = ("group", "params", "lr", "batch", "schedule", "optimizer", "seed", "steps")
    return tuple(facts.get(name) for name in names if name != key)


def text(
    rows: Sequence[Row],
    saved: Mapping[str, float] | None = None,
    left_out: Sequence[str] = (),
    repeats: int = 0,
    room: float | None = None,
) -> str:
    """The plan as text: a line for every point, the rules that they share, totals, warnings, what
    is cheaper, what was left out and why. `repeats` counts the points that are the same run as
    another; `room` is the memory of one device in bytes."""
    facts = [row.facts for row in rows]
    rules = [f["rules"].splitlines() for f in facts]
    shared = [line for line in rules[0] if all(line in other for other in rules)]
    told = warnings(facts)
    if repeats:
        told.append(
            f"{repeats} points are the same run as another and train once (sizes are rounded to "
            "whole widths)"
        )
    if room and (over := [row for row in rows if (row.memory or 0) > room]):
        told.append(
            f"{len(over)} of {len(rows)} runs may not fit a device of {_size(room)} (up to "
            f"{_size(max(row.memory or 0 for row in over))} by estimate)"
        )
    return "\n".join(
        [
            *_table(rows),
            *shared,
            *_totals(rows),
            *(f"warning: {line}" for line in told),
            *cheaper(rows, saved or {}),
            *left_out,
        ]
    )


def _totals(rows: Sequence[Row]) -> list[str]:
    done = _flops(row for row in rows if row.status == "done")
    tokens = sum(row.facts["tokens"] for row in rows)
    out = [
        f"{len(rows)} runs, {tokens:,} tokens, {_flops(rows):.3g} FLOPs ({done:.3g} done); FLOPs "
        "count every dot product, forward and backward, with head and full attention map"
    ]
    pending = [row for row in rows if row.pending]
    if pending and all(row.seconds is not None for row in pending):
        train, programs = sum(row.seconds or 0.0 for row in pending), {r.program for r in pending}
        out.append(
            f"about {_time(train)} to train one after the other on these devices, and "
            f"{_time(_compiling(pending))} to compile {len(programs)} programs"
        )
    elif pending:
        out.append("seconds are not predicted yet: --calibrate times two programs on this machine")
    return out


def _table(rows: Sequence[Row]) -> list[str]:
    """Aligned columns. Those that say the same of every point, or nothing, are left out."""
    groups = list(dict.fromkeys(group for row in rows for group in row.facts["groups"]))
    columns: dict[str, Callable[[Row], str]] = {
        "run": lambda r: r.run,
        "size": lambda r: "" if r.facts["size"] is None else f"{r.facts['size']:g}",
        "params": lambda r: f"{r.facts['params']:,}",
        **{g: lambda r, g=g: f"{r.facts['groups'].get(g, 0):,}" for g in groups},
        "tokens": lambda r: f"{r.facts['tokens']:,}",
        "epochs": lambda r: f"{r.facts['epochs']:.2g}",
        "FLOPs": lambda r: f"{r.facts['flops']:.3g}",
        "batch": lambda r: f"{r.facts['batch']:,}",
        "steps": lambda r: f"{r.facts['steps']:,}",
        "lr": lambda r: f"{r.facts['lr']:.3g}",
        "seed": lambda r: str(r.facts["seed"]),
        "seconds": lambda r: "" if r.seconds is None else f"{r.seconds:,.1f}",
        "memory": lambda r: "" if r.memory is None else _size(r.memory),
        "group": lambda r: r.group or r.facts["group"],
        "status": lambda r: r.status,
    }
    cells = {name: [of(row) for row in rows] for name, of in columns.items()}
    alike = [n for n in ("size", "batch", "seconds", "memory", "group") if len({*cells[n]}) == 1]
    shown = {
        name: [name, *column]
        for name, column in cells.items()
        if name not in alike or (name in ("seconds", "memory") and column[0])
    }
    widths = [max(map(len, column)) for column in shown.values()]
    lines = zip(*shown.values(), strict=True)
    return ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]


def _size(count: float) -> str:
    """Bytes in words."""
    power = min(4, int(math.log10(max(1, count))) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _time(seconds: float) -> str:
    """A duration in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
