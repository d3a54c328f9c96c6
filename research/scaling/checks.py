"""What a table says against itself, before a law is fitted to it: FLOPs against 6 · params ·
tokens, targets against the range of the table, groups and recipes in one law, curves taken for
final losses, rows that may be copies. What cannot be right is refused, what may be is said.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from research.errors import BadInput
from research.scaling import trends
from research.scaling.options import Options, compare_flag
from research.scaling.statistics import usual_range
from research.tables import comparable, states
from research.tables.columns import COUNTS, Row
from research.tables.curves import curve_warning
from research.tables.numbers import PF_DAY, parse_number
from research.tables.table import ALIKE, PER_TOKEN, flops_ratio

FAR, TOO_FAR = 1e3, 1e5  # times the largest of the table: warned of, refused
# FLOPs over 6 · params · tokens: our own convolutional families reach 1e3, sparse models 1e-2.
ODD, WRONG = (0.02, 3e3), (1e-4, 1e5)
EXACT = 1e-6  # to which FLOPs are 6 · params · tokens
NARROW = 2.0  # times the range of the ratios of one convention, at least, to those of the other
NEAR = 4.0  # factor within which a unit explains a ratio
UNITS = {  # ratio of the table: what is in which unit, the flag that says so
    1e-6: ("flops in millions (MFLOPs)", "flops=flops*1e6"),
    1e-9: ("flops in GFLOPs", "flops=flops*1e9"),
    1e-12: ("flops in TFLOPs", "flops=flops*1e12"),
    1e-15: ("flops in PFLOPs", "flops=flops*1e15"),
    1e-18: ("flops in EFLOPs", "flops=flops*1e18"),
    1e-21: ("flops in ZFLOPs", "flops=flops*1e21"),
    1 / PF_DAY: ("flops in PF-days", f"flops=flops*{PF_DAY:g}"),
    1e6: ("params or tokens in millions", "params=params*1e6"),
    1e9: ("tokens (or params) in billions", "tokens=tokens*1e9"),
    1e12: ("params and tokens both in millions", "params=params*1e6,tokens=tokens*1e6"),
    1e15: ("params in millions and tokens in billions", "params=params*1e6,tokens=tokens*1e9"),
    1e18: ("params and tokens both in billions", "params=params*1e9,tokens=tokens*1e9"),
}
OFF_TOKENS = (1e-3, 1e6)  # tokens of a parameter (median), beyond which one of both has a unit
FEW_TOKENS = 0.1  # below which both may have changed places
OTHER_UNIT = 100.0  # factor between tokens per parameter of some rows and of the others
BEYOND = 1e60  # of parameters, tokens or FLOPs
FRESH = 4.0  # epochs, up to which data are as good as fresh (Muennighoff et al. 2023)
EPOCHS = ("epochs", "epoch", "num_epochs")
MUCH = 10.0  # nats: of no model that has learned anything; the log of a vocabulary is about 11
SMALL = {"params": 1e4, "tokens": 1e5}  # below which counts look like millions or billions
NO_RECIPE = (
    "run", "run_id", "name", "id", "trial", "trial_id", "label", "note", "notes", "comment",
    "comments", "status", "state", "reason", "host", "user", "owner", "author", "date",
    "time", "created", "updated", "path", "url", "file", "unit", "loss_unit", "unnamed",
    "comparable", "gpu", "device", "hardware", "flops_convention", "task", "experiment", "tags",
    "commit", "version", "seed",
)  # fmt: skip
EXPERTS = ("experts", "numexperts", "nexperts", "numberofexperts", "expertcount", "nroutedexperts")
MOST_KINDS, LEAST_ROWS = 12, 3  # of a column of words that may be a recipe


def check_table(
    rows: Sequence[Row], needed: Sequence[str], options: Options, law: str, groups: bool
) -> list[str]:
    """Warnings about the usable rows that `law`, of the columns `needed`, is fitted to; `groups`:
    it tells groups apart. Raises BadInput for what cannot be right."""
    _check_sizes(rows, needed)
    warnings = _check_flops(rows, needed, options)
    if not any(comparable.OWN in row for row in rows):
        warnings += _small_counts(rows, needed) or _odd_tokens(rows, needed)
        warnings += _large_losses(rows, needed) + _repeated(rows, needed)
    warnings += trends.check_trends(rows, needed)
    warnings += _strays(rows, needed)
    warnings += _check_targets(rows, needed, options)
    warnings += _copies(rows, needed)
    if not groups:
        warnings += _mixed_recipes(rows, law) + _experts(rows, needed)
    return warnings + ([] if law == "envelope" else curve_warning(rows))


def _check_sizes(rows: Sequence[Row], needed: Sequence[str]) -> None:
    """Raises BadInput for a count that nothing has, and whose products are beyond all numbers."""
    for name in needed:
        for row in rows if name in COUNTS else ():
            if row[name] > BEYOND:
                raise BadInput(
                    f"{name} of {row.get('run')} is {row[name]:.4g}: not a number of anything; "
                    f"--where='{name}<{BEYOND:g}' leaves such rows out"
                )


def _repeated(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where rows saw their data so often that it is not as good as fresh, and the law
    does not read that."""
    if "unique_tokens" in needed or "tokens" not in needed:
        return []
    times = [row["tokens"] / unique for row in rows
             if (unique := parse_number(row.get("unique_tokens"))) and unique > 0]  # fmt: skip
    times += [x for row in rows for name in EPOCHS if (x := parse_number(row.get(name)))]
    if not (often := sum(x > FRESH for x in times)):
        return []
    return [
        f"{often} rows saw their data more than {FRESH:g} times (up to {max(times):.3g}): repeated "
        "tokens are worth less than fresh ones, which this law takes them for; "
        "--law=data_constrained reads unique_tokens, --where leaves such rows out"
    ]


def _check_flops(rows: Sequence[Row], needed: Sequence[str], options: Options) -> list[str]:
    """FLOPs against 6 · params · tokens. Raises BadInput where they are in another unit, and where
    budgets are needed and only some of the rows have FLOPs of their own convention."""
    ratios = np.array([r for row in rows if (r := flops_ratio(row)) is not None])
    if not len(ratios):
        return []
    middle = float(np.median(ratios))
    if not WRONG[0] < middle < WRONG[1] and not options.odd_units:
        first = next(row for row in rows if flops_ratio(row) is not None)
        raise BadInput(
            f"flops are {middle:.2g} times 6 * params * tokens (median of {len(ratios)} rows; the "
            f"first: flops {first['flops']:.4g}, params {first['params']:.4g}, tokens "
            f"{first['tokens']:.4g}): {_likely_unit(middle)}; --odd_units takes them as they "
            "are"
        )
    out = []
    if not ODD[0] < middle < ODD[1]:
        out.append(
            f"flops are {middle:.2g} times 6 * params * tokens (median): {_likely_unit(middle)}"
        )
    spread = ratios[(ratios > middle / 1e3) & (ratios < middle * 1e3)]
    if len(spread) < len(ratios):
        out.append(
            f"flops of {len(ratios) - len(spread)} rows are more than 1000 times off those of the "
            "others, relative to 6 * params * tokens: their units may differ"
        )
    return out + _two_conventions(rows, needed, options)


def _two_conventions(rows: Sequence[Row], needed: Sequence[str], options: Options) -> list[str]:
    """A warning where FLOPs are counted in two ways: their ratios to 6 · params · tokens lie about
    two values with nothing in between, of which one is 1 or both are of the same sizes. Raises
    BadInput where the law reads them."""
    found = sorted((r, float(row["params"])) for row in rows if (r := flops_ratio(row)) is not None)
    logs = np.log([ratio for ratio, _ in found])
    if len(found) < 4 or (gap := float(np.diff(logs).max())) < math.log(ALIKE):
        return []
    at = int(np.diff(logs).argmax()) + 1
    low, high = logs[:at], logs[at:]
    same = {size for _, size in found[:at]} & {size for _, size in found[at:]}
    exact = any(np.abs(np.expm1(part)).max() < EXACT for part in (low, high))
    narrow = NARROW * max(np.ptp(low), np.ptp(high)) < gap or exact
    if min(len(low), len(high)) < 2 or not narrow or not (exact or len(same) > 1):
        return []
    words = (
        f"flops of {len(low)} rows are {math.exp(np.median(low)):.3g} times 6 * params * tokens, "
        f"those of the other {len(high)} {math.exp(np.median(high)):.3g} times: two conventions in "
        "one column; --columns='flops=params*tokens*6' counts all alike"
    )
    if "flops" in needed and not options.odd_units:
        raise BadInput(f"{words}, --odd_units takes them as they are")
    return [words]


def check_some_flops(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """Of all rows that have params and tokens: a warning where some have no FLOPs and those of the
    others are not 6 · params · tokens. Raises BadInput where the law needs them."""
    ratios, without = [], []
    for row in rows:
        if (ratio := flops_ratio(row)) is not None:
            ratios.append(ratio)
        elif states.is_missing(row.get("flops")) and parse_number(row.get("params")):
            without.append(row)
    if not without or not ratios or all(1 / ALIKE < r < ALIKE for r in ratios):
        return []
    words = (
        f"{len(without)} rows have no flops, and those of the other {len(ratios)} are "
        f"{np.median(ratios):.3g} times 6 * params * tokens (median), so they cannot be filled "
        "in by that: --columns='flops=params*tokens*6' counts all rows so, --where='flops>0' takes "
        "the others alone"
    )
    if "flops" in needed:
        raise BadInput(f"flops: {words}")
    return [words]


def _likely_unit(ratio: float) -> str:
    near = min(UNITS, key=lambda unit: abs(math.log(ratio / unit)))
    if not 1 / NEAR / 3 < ratio / near < NEAR * 3:
        return "no usual unit explains that; is one of these columns another quantity?"
    what, flag = UNITS[near]
    return f"probably {what}: --columns='{flag}'"


def _small_counts(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where models of a few parameters were trained on a few tokens."""
    if not {"params", "tokens"} <= set(needed) or not rows:
        return []
    most = {name: max(row[name] for row in rows) for name in SMALL}
    if any(most[name] > limit for name, limit in SMALL.items()):
        return []
    return [
        f"at most {most['params']:g} params and {most['tokens']:g} tokens: if these are millions "
        "or billions, --columns='params=params*1e6,tokens=tokens*1e9'; if logarithms, "
        "--columns='params=10^params,tokens=10^tokens'"
    ]


def _odd_tokens(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where tokens and parameters can hardly be in one unit, in all rows or in some."""
    if not {"params", "tokens"} <= set(needed) or not rows:
        return []
    ratios = np.sort([row["tokens"] / row["params"] for row in rows])
    middle, gaps = float(np.median(ratios)), ratios[1:] / ratios[:-1]
    at = 1 + int(gaps.argmax()) if len(gaps) else 0
    if 2 <= at <= len(ratios) - 2 and gaps.max() > OTHER_UNIT:
        return [
            f"{at} rows have up to {ratios[at - 1]:.2g} tokens per parameter, the other "
            f"{len(ratios) - at} from {ratios[at]:.2g} on, and none are between: tokens (or "
            "params) may be in two units, or some be steps"
        ]
    if OFF_TOKENS[0] < middle < FEW_TOKENS:
        return [
            f"{middle:.2g} tokens per parameter (median), and models usually see several: "
            "if the columns have changed places, --columns='params=tokens,tokens=params'"
        ]
    if OFF_TOKENS[0] < middle < OFF_TOKENS[1]:
        return []
    what = ("tokens", "billions", 1e9) if middle < 1 else ("params", "millions", 1e6)
    name, unit, factor = what
    steps = " (steps: times the tokens of one)" if middle < 1 else ""
    return [
        f"{middle:.2g} tokens per parameter (median; the first: {rows[0]['tokens']:.4g} and "
        f"{rows[0]['params']:.4g}): if {name} are in {unit}, --columns='{name}={name}*{factor:g}'"
        f"{steps}; budgets and optimal sizes are 6 * params * tokens, and off by that unit"
    ]


def _large_losses(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where losses look like perplexities, sums over tokens, or percent."""
    if "loss" not in needed or not rows:
        return []
    middle = float(np.median([row["loss"] for row in rows]))
    if middle < MUCH:
        return []
    return [
        f"losses of about {middle:.4g} (median) cannot be nats or bits per token: if they are "
        "perplexities, --columns='loss=ln(loss)'; if sums or percent, --columns='loss=loss/NUMBER'"
    ]


def _amounts(rows: Sequence[Row], column: str) -> list[float]:
    """The positive values of a column; of FLOPs without a column, of 6 · params · tokens."""
    values = [parse_number(row.get(column)) for row in rows]
    if column == "flops" and not any(values):
        counts = ((parse_number(r.get("params")), parse_number(r.get("tokens"))) for r in rows)
        values = [PER_TOKEN * n * d for n, d in counts if n and d]
    return [x for x in values if x and x > 0]


def _strays(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where a few rows lie so far beyond all others that they are not counted as the
    table's range."""
    out = []
    for column in COUNTS if rows else ():
        if column not in needed or len(values := _amounts(rows, column)) < len(rows):
            continue
        low, high = usual_range(values)
        off = [(x, row) for x, row in zip(values, rows, strict=True) if x < low or x > high]
        if off:
            x, row = off[0]
            out.append(
                f"{column} of {len(off)} of {len(rows)} rows are far off all others ({low:.4g} to "
                f"{high:.4g}), such as {x:.4g} of {row.get('run')}: is the number right? What lies "
                "beyond the others counts as extrapolated"
            )
    return out


def _check_targets(rows: Sequence[Row], needed: Sequence[str], options: Options) -> list[str]:
    """Targets against the largest value of the table."""
    if {"params", "tokens"} <= set(needed) and "flops" not in needed:
        budgets = [PER_TOKEN * r["params"] * r["tokens"] for r in rows]
    else:
        budgets = _amounts(rows, "flops")
    out = []
    targets: list[tuple[str, Sequence[float], list[float], str]] = [
        ("predict", options.predict, _amounts(rows, needed[0]), needed[0]),
        ("predict_flops", options.predict_flops, budgets, "flops"),
    ]
    for flag, values, there, column in targets:
        if not values or not there:
            continue
        (least, largest), most = usual_range(there), max(values)
        if most > TOO_FAR * largest and not options.far:
            raise BadInput(
                f"--{flag}={most:g}: {most / largest:.2g} times the largest of the table "
                f"({column} {largest:.4g}); {_of_target(column, rows, needed)}; --far predicts "
                "it all the same"
            )
        if most > FAR * largest:
            out.append(
                f"--{flag}={most:g} is {most / largest:.2g} times the largest of the table "
                f"({column} {largest:.4g}): no data are near, and the intervals hold only if the "
                "law does"
            )
        if (low := min(values)) < least / FAR and column in COUNTS:
            out.append(
                f"--{flag}={low:g} is {least / low:.2g} times below the least of the table "
                f"({column} {least:.4g}): is it in the table's unit?"
            )
    return out


def _of_target(column: str, rows: Sequence[Row], needed: Sequence[str]) -> str:
    """The flag that would help where a target is far from a table in another unit."""
    if _small_counts(rows, needed):
        what, flag = (
            "params in millions and tokens in billions",
            "params=params*1e6,tokens=tokens*1e9",
        )
    elif column == "flops" and "flops" in needed:
        what, flag = "FLOPs in GFLOPs", "flops=flops*1e9"
    elif column == "flops":
        what, flag = "tokens in billions", "tokens=tokens*1e9"
        if np.median([row["tokens"] / row["params"] for row in rows]) > OFF_TOKENS[1]:
            what, flag = "params in millions", "params=params*1e6"
    else:
        what, flag = f"{column} in millions", f"{column}={column}*1e6"
    return f"if the table has {what}, --columns='{flag}'"


def _copies(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where rows of one size and budget have the same loss to all digits."""
    if "loss" not in needed:
        return []
    seen = Counter(
        (row.get("params"), row.get("tokens"), row.get("flops"), row["loss"])
        for row in rows
        if f"{row['loss']:.4g}" != f"{row['loss']:.12g}"
    )
    if not (count := sum(n - 1 for n in seen.values() if n > 1)):
        return []
    loss = next(key for key, n in seen.items() if n > 1)[-1]
    return [
        f"{count} rows have the params, tokens and loss of another row (such as {loss:.8g}): if "
        "they are copies, or one seed trained twice, they are no replicates"
    ]


def _mixed_recipes(rows: Sequence[Row], law: str) -> list[str]:
    """A warning where rows differ in a column of few words, each of several rows."""
    out, own = [], any(comparable.OWN in row for row in rows)
    for name in dict.fromkeys(str(k) for row in rows for k in row):
        last = name.replace("/", ".").split(".")[-1].lower().strip().replace(" ", "_")
        cells = [row.get(name) for row in rows]
        if comparable.may_part(name, own) or (own and "." in name):
            continue  # by which rows are parted already, or which is no recipe
        if any(isinstance(cell, dict | list) for cell in cells):
            continue  # of a run's own records; no table of words has such
        words = Counter(str(cell) for cell in cells if not states.is_missing(cell))
        if last in NO_RECIPE or not 2 <= len(words) <= MOST_KINDS:
            continue
        if (
            any(parse_number(word) is not None for word in words)
            or min(words.values()) < LEAST_ROWS
            or _names_a_count(rows, name)
        ):
            continue
        shown = ", ".join(sorted(words)[:3]) + (", …" if len(words) > 3 else "")
        out.append(
            f"rows of {len(words)} values of {name!r} ({shown}) are fitted together; "
            f"--where='\"{name}\"==…' takes one, --columns='group={name}' gives each a law, "
            f"{compare_flag(law)}='{name}' compares them"
        )
    return out


def _experts(rows: Sequence[Row], needed: Sequence[str]) -> list[str]:
    """A warning where rows differ in the number of experts, of which a token meets a few."""
    names = dict.fromkeys(str(k) for row in rows for k in row if "params" in needed)
    for name in names:
        bare = "".join(c for c in name.replace("/", ".").split(".")[-1].lower() if c.isalpha())
        values = {x for row in rows if (x := parse_number(row.get(name))) is not None}
        if bare in EXPERTS and len(values) > 1 and not any(comparable.OWN in row for row in rows):
            return [
                f"rows differ in {name!r} ({min(values):g} to {max(values):g}): a token meets some "
                "of the experts, so 6 * params * tokens is not the compute of all parameters, and "
                f"no law here knows of experts; --columns='group={name}' gives each number a law, "
                f"--where='{name}==VALUE' takes one"
            ]
    return []


def _names_a_count(rows: Sequence[Row], name: str) -> bool:
    """Whether each word of a column is the name of one size, length, budget or number of tokens per
    parameter, as of "10xC"."""
    for count in ("params", "tokens", "flops", "tokens per parameter"):
        pairs = set()
        for row in rows:
            value = parse_number(row.get(count))
            n, d = parse_number(row.get("params")), parse_number(row.get("tokens"))
            if count not in COUNTS and n and d:
                value = d / n
            of = round(math.log(value) / math.log(ALIKE)) if value and value > 0 else None
            pairs.add((str(row.get(name)), of))
        words, values = ({*x} for x in zip(*pairs))
        if None not in values and len(words) == len(values) == len(pairs) > 2:
            return True
    return False
