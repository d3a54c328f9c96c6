"""The plan of a sweep as text: a line for every point, totals, and what would bias a law that is
fitted to these runs. Works on the facts of runs (see run.make_run); needs no jax."""

import re
from collections.abc import Callable, Sequence

from research.io.humanize import flops_text, format_bytes, format_duration
from research.io.text_table import format_table
from research.runs.settings import MOST_SETTINGS, shown_setting, varying_settings
from research.sweep.limits import Facts, PlannedRun, total_compile_seconds, total_flops

EXACT = "exact_full"  # the convention of the column "flops" (see accounting)
# What is warned of. Porian et al. 2024 move the exponent from 0.84 to 0.57 by fixing these.
MAX_CHANGING_SHARE = 0.1  # of the FLOPs, in a part that changes over the sizes
VOCABULARY, MAX_VOCABULARY = ("embedding", "position", "head"), 0.5  # groups; of the parameters
MAX_WARMUP = 0.2  # of the steps
MAX_BUDGET_ERROR = 0.01
# Lines of a run's rules that are its own: the multipliers of its shape, its ratios to a horizon.
OF_POINT = re.compile(r"horizon |width \d.*: .* x [\d.e+-]+$")


def plan_text(
    rows: Sequence[PlannedRun],
    notes: Sequence[str] = (),
    repeats: int = 0,
    device_memory: float | None = None,
) -> str:
    """The plan as text: a line for every point, the rules that they share, what those of transfer
    and horizon make of each, totals, warnings, and `notes` (what is trained together, what was
    dropped and why). `repeats` counts the points that are the same run as another; `device_memory`
    is in bytes."""
    facts = [row.facts for row in rows]
    rules = [f["rules"].splitlines() for f in facts]
    shared = [line for line in rules[0] if all(line in other for other in rules)]
    of_points = [line for lines in rules for line in lines if OF_POINT.match(line)]
    shared += [line for line in dict.fromkeys(of_points) if line not in shared]
    messages = [f"warning: {line}" for line in _run_warnings(rows, repeats, device_memory)]
    return "\n".join([_table(rows), *shared, *_totals(rows), *messages, *notes])


def _run_warnings(
    rows: Sequence[PlannedRun], repeats: int, device_memory: float | None
) -> list[str]:
    out = law_warnings([row.facts for row in rows])
    if repeats:
        are = "point is" if repeats == 1 else "points are"
        out.append(
            f"{repeats} {are} the same run as another, which is trained once (sizes are rounded to "
            "whole widths)"
        )
    largest = max((row.memory or 0 for row in rows), default=0)
    if device_memory and largest > device_memory:
        count = sum((row.memory or 0) > device_memory for row in rows)
        out.append(
            f"{count} of {len(rows)} runs may not fit a device of {format_bytes(device_memory)} "
            f"(up to {format_bytes(largest)} by estimate)"
        )
    return out


def law_warnings(facts: Sequence[Facts]) -> list[str]:
    """What would bias a law fitted to these runs, one line each."""
    out, count = [], len(facts)
    for group in dict.fromkeys(f["group"] for f in facts):
        for part in ("head", "attention"):
            shares = [f[f"{part}_share"] for f in facts if f["group"] == group]
            if max(shares) > MAX_CHANGING_SHARE and max(shares) > 1.5 * min(shares):
                out.append(
                    f"{group}: the {part} takes {min(shares):.0%} to {max(shares):.0%} of the "
                    "FLOPs; an exponent will depend on whether it is counted: compare "
                    "conventions (isoflop fit --multiverse)"
                )
        mine = [f for f in facts if f["group"] == group and f.get("groups")]
        shares = [sum(f["groups"].get(p, 0) for p in VOCABULARY) / f["params"] for f in mine]
        if max(shares, default=0) > MAX_VOCABULARY:
            out.append(
                f"{group}: embedding and head are {min(shares):.0%} to {max(shares):.0%} of the "
                "parameters; a law will depend on whether they are counted: larger models, or a "
                "smaller vocabulary, are more like large ones"
            )
    for name in dict.fromkeys(f.get("budget_convention", EXACT) for f in facts):
        if name != EXACT:
            out.append(
                f"budgets are counted as {name}, while tables and reports count {EXACT}: fit their "
                f"minima with isoflop fit --law=isoflop --columns=flops=flops_{name}"
            )
    shares = [f["warmup_steps"] / f["steps"] for f in facts if f["warmup_steps"]]
    if long := [share for share in shares if share > MAX_WARMUP]:
        out.append(
            f"warm-up takes over {MAX_WARMUP:.0%} of the steps of {len(long)} of {count} runs (up "
            f"to {max(long):.0%}), which raises their loss more than that of longer ones"
        )
    if repeated := [f["epochs"] for f in facts if f["context"] > 1 and f["epochs"] > 1]:
        out.append(
            f"{len(repeated)} of {count} runs see more tokens than there are unique ones (up to "
            f"{max(repeated):.2g} epochs); repeated tokens teach less"
        )
    if outside := [f for f in facts if "\noutside the recipe" in f["rules"]]:
        out.append(
            f"{len(outside)} of {count} runs lie outside what their recipe was fitted to: "
            + outside[-1]["rules"].partition("outside the recipe: ")[2].partition("\n")[0]
        )
    errors = [abs(f.get("budget_away", 0)) for f in facts]
    if large := [error for error in errors if error > MAX_BUDGET_ERROR]:
        out.append(
            f"whole steps miss the budget of {len(large)} of {count} runs by more than "
            f"{MAX_BUDGET_ERROR:.0%} (up to {max(large):.1%}); a smaller batch.size, or "
            "batch.rule=sqrt_tokens, keeps it"
        )
    return out


def _totals(rows: Sequence[PlannedRun]) -> list[str]:
    done = total_flops(row for row in rows if row.status == "done")
    tokens = sum(row.facts["tokens"] for row in rows)
    out = [
        f"{len(rows)} runs, {tokens:,} tokens, {flops_text(total_flops(rows))} FLOPs "
        f"({flops_text(done)} done); FLOPs count every dot product, forward and backward, "
        "with head and full attention map"
    ]
    pending = [row for row in rows if row.pending]
    if pending and all(row.seconds is not None for row in pending):
        train, programs = sum(row.seconds or 0.0 for row in pending), {r.program for r in pending}
        out.append(
            f"about {format_duration(train)} to train one after the other on these devices, and "
            f"{format_duration(total_compile_seconds(pending))} to compile {len(programs)} programs"
        )
    elif pending:
        out.append("seconds are not predicted yet: --calibrate times two programs on this machine")
    return out


def _digits(values: Sequence[float], least: int) -> int:
    """The fewest digits, from `least` on, in which different values are written differently."""
    different, digits = {*values}, least
    while digits < 17 and len({f"{x:.{digits}g}" for x in different}) < len(different):
        digits += 1
    return digits


def _table(rows: Sequence[PlannedRun]) -> str:
    """The points, without the columns that are the same for every point, or empty."""
    beside = ("params", "group", "batch", "tokens", "lr", "seed")
    known = [{**row.settings, **{k: row.facts[k] for k in beside}} for row in rows]
    varying = varying_settings(known, beside, MOST_SETTINGS)
    groups = list(dict.fromkeys(group for row in rows for group in row.facts["groups"]))
    rate = f".{_digits([row.facts['lr'] for row in rows], least=3)}g"
    columns: dict[str, Callable[[PlannedRun], object]] = {
        "run": lambda r: r.run,
        "size": lambda r: "" if r.facts["size"] is None else f"{r.facts['size']:g}",
        "params": lambda r: r.facts["params"],
        **{g: lambda r, g=g: r.facts["groups"].get(g, 0) for g in groups},
        "tokens": lambda r: r.facts["tokens"],
        "epochs": lambda r: f"{r.facts['epochs']:.2g}",
        "FLOPs": lambda r: flops_text(r.facts["flops"]),
        "batch": lambda r: r.facts["batch"],
        "steps": lambda r: r.facts["steps"],
        "lr": lambda r: f"{r.facts['lr']:{rate}}",
        "seed": lambda r: r.facts["seed"],
        **{name: lambda r, name=name: shown_setting(r.settings.get(name)) for name in varying},
        "seconds": lambda r: "" if r.seconds is None else f"{r.seconds:,.1f}",
        "memory": lambda r: "" if r.memory is None else format_bytes(r.memory),
        "group": lambda r: r.facts["group"],
        "unit": lambda r: r.unit,
        "status": lambda r: r.status,
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    optional = ("size", "batch", "seconds", "memory", "group", "unit")
    uniform = [name for name in optional if len({*cells[name]}) == 1]
    shown = [
        name
        for name in cells
        if name not in uniform or (name in ("seconds", "memory") and cells[name][0])
    ]
    lines = list(zip(*(cells[name] for name in shown), strict=True))
    return format_table(shown, lines, right=("size", "epochs", "FLOPs", "lr", "seconds", "memory"))
