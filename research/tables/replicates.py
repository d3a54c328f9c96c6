"""Which rows are replicates of each other: nothing that the table records differs but the seed.

A table says of a run what was set (its size, its learning rate, its data) and what came out of it
(its loss, how long it took). Rows that agree in all that was set differ by the noise of a run. Rows
of one size and length that differ in a learning rate are a tuning sweep, and what lies between them
is no noise.
"""

import re
from collections.abc import Mapping, Sequence

from research.runs.settings import is_part_of_a_run
from research.tables import table
from research.tables.columns import GROUP_LABEL, is_count
from research.tables.comparable import group_of, group_value, value_text
from research.tables.numbers import parse_number

# What a table records of a run's outcome, its identity and its circumstances, by name. Before a
# slash, a measure is one of what follows: loss/val, score/cloze.
MEASURES = (
    r"(?:.*[_/. -])?(?:loss|losses|accuracy|acc|error|perplexity|ppl|bpb|bits_per_byte|bpc|nats|r2|"
    r"rmse|mse|mae|score|metric|metrics|f1|recall|auc|auroc|confusion|overlap|"
    r"(?:macro|micro|class|weighted)_precision|score_(?:bits|chance|recipe))"
)
OF_SOMETHING = re.compile(
    f"{MEASURES}/.*|"
    # loss_c4, acc_hellaswag, acc5, recall@5, tokens_per_sec, "tok / sec", rep, err_low, hex_color
    r"(?:.*[_/. -])?(?:loss|perplexity|ppl|bpb|acc|accuracy)_"
    r"(?!weights?|coeff?|lambda|scale|fn|func|function|type|name|kind|reduction|chunks?|mask|norm|"
    r"steps?)\w+|"
    r"(?:.*[_/. -])?(?:acc|top|hits)_?@?\d+|.*(?:recall|precision|pass)@\d+|"
    r"(?:.*[_/. -])?(?:miou|iou|bleu|rouge\w*|mean_average_precision|mean_per_class_recall|"
    r"deviance)|"
    r".+(?:per[_ ]|/ ?)s(?:ec(?:ond)?)?(?:_per_.*)?|(?:loss|acc|accuracy)_?(?:std|se|sd|stderr)|"
    r"(?:.*[_/. -])?(?:rep|reps|repeat|replicate|replica|err_low|err_high|ci_low|ci_high|"
    r"color|colour|gpus|num_gpus|gpu_type|gpu_model|gpu_hours|hours|days)|std|stderr",
    re.IGNORECASE,
)
OUTCOMES = re.compile(
    f"{MEASURES}|"
    r"(?:.*[_/. -])?(?:grad_norm|runtime|seconds|time|duration|walltime|elapsed|"
    r"tokens_per_second|examples_per_second|steps_per_second|throughput|mfu|memory|bytes|energy|"
    r"started|ended|created|updated|date|timestamp|host|hostname|node|device|devices|gpu|pid|user|"
    r"id|run|name|runid|run_name|run_id|uuid|path|dir|url|link|notes|note|tags|tag|comment|state|"
    r"status|reason|attempts|restarts|seed|seeds|rank|index|weight|excluded|step|steps|epoch|epochs|"
    r"part_of_run|unit|versions|.+[_/. -]version|commit|sha|dispatch|cores|instructions|"
    r"device_kind|device_count|source|diff|jax|"
    r"jax_config|config_files|platform|continued|xla_flags|rules|job_?id|job_?name|exit_?code|uri|"
    r"max_?rss|node_?list)",
    re.IGNORECASE,
)
OUTCOME_BEGINS = re.compile(
    r"(?:train|val|valid|validation|test|eval|heldout|held_out|downstream)(?:ing)?[_/. -].*|_.*|"
    r"(?:sys|monitoring|source_code)/.*|tags\.mlflow\..*",
    re.IGNORECASE,
)
SETTING = re.compile(r".*(?:lr|learning_rate|batch|warmup|decay|momentum|beta\d?|dropout)",
                     re.IGNORECASE)  # fmt: skip


RATE = re.compile(r"(?:.*[_/. -])?(?:lr|learning_rate)", re.IGNORECASE)
OTHER_COUNTS = re.compile(r"unique_tokens.*|params_.*|(?:num_|n_)?epochs", re.IGNORECASE)
STEPS = re.compile(r"(?:.*[_/. -])?(?:steps?|iters|iterations|updates)", re.IGNORECASE)
SAME_COUNT = 1.01  # factor
BEST_OF = "--best_of=cell"
FEW_WORDS = 8  # rows, of which each may have a setting in a word of its own


def is_setting(column: str) -> bool:
    """Whether a column, by its name, holds what was chosen for a run before it was trained."""
    if column in (table.UNNAMED, GROUP_LABEL) or is_count(column):
        return False
    if "." in column and not is_part_of_a_run(column):
        return False
    if SETTING.fullmatch(column):
        return True
    outcomes = OUTCOMES, OUTCOME_BEGINS, OF_SOMETHING
    return not any(pattern.fullmatch(column) for pattern in outcomes)


def settings(rows: Sequence[table.Row], response: str = "loss") -> list[str]:
    """The columns of settings in which rows differ, in the table's order: none that is the response
    under another name, or that names every row by a word or a number of its own."""
    names = filter(is_setting, dict.fromkeys(name for row in rows for name in row))
    measured = [value_text(row.get(response)) for row in rows]
    out = []
    for name in names:
        values = [value_text(row.get(name)) for row in rows]
        chosen = SETTING.fullmatch(name) or not (values == measured or _names_each(values))
        if len({*values}) > 1 and chosen:
            out.append(name)
    return out


def _names_each(values: Sequence[str]) -> bool:
    """Whether every row has a word of its own, or they are counted."""
    known = {*values} - {""}
    if len(known) < len(values) or len(values) <= FEW_WORDS:
        return False
    numbers = sorted(x for value in known if (x := parse_number(value)) is not None)
    return not numbers or [x - numbers[0] for x in numbers] == list(range(len(values)))


def cells(rows: Sequence[table.Row], columns: Sequence[str]) -> dict[tuple, list[table.Row]]:
    """The rows by their values in the columns (of sizes and lengths, say) and their group."""
    out: dict[tuple, list[table.Row]] = {}
    for row in rows:
        key = (*(row[c] for c in columns), group_of(row))
        out.setdefault(key, []).append(row)
    return out


def replicate_groups(
    rows: Sequence[table.Row], columns: Sequence[str]
) -> dict[tuple, list[table.Row]]:
    """The cells, split by every setting in which rows of one cell differ."""
    varied = varied_within(rows, columns)
    out: dict[tuple, list[table.Row]] = {}
    for key, cell in cells(rows, columns).items():
        for row in cell:
            out.setdefault((*key, *(value_text(row.get(name)) for name in varied)), []).append(row)
    return out


def varied_within(rows: Sequence[table.Row], columns: Sequence[str]) -> list[str]:
    """The settings in which rows of one cell differ: what was tuned, or is not the same."""
    names = [name for name in settings(rows) if name not in (*columns, "group")]
    if len({*columns} & {"params", "tokens", "flops"}) < 2:  # of which two give the third
        names += [n for n in ("params", "tokens") if n not in columns and any(n in r for r in rows)]
    groups = [cell for cell in cells(rows, columns).values() if len(cell) > 1]
    out = [n for n in names if any(len({value_text(r.get(n)) for r in g}) > 1 for g in groups)]
    if len({*columns} & {"params", "tokens", "flops"}) < 2:
        if any("tokens" in row for row in rows):
            return out
        lengths = [n for n in dict.fromkeys(n for row in rows for n in row) if STEPS.fullmatch(n)]
        return out + [
            n for n in lengths if n not in (*columns, *out) and any(_apart(g, n) for g in groups)
        ]
    # Of one size and length: another count of parameters is another model, and how often data were
    # seen is of other data.
    counts = dict.fromkeys(name for row in rows for name in row if OTHER_COUNTS.fullmatch(name))
    return out + [
        n for n in counts if n not in (*columns, *names) and any(_apart(g, n) for g in groups)
    ]


def _apart(rows: Sequence[table.Row], name: str) -> bool:
    """Whether a count differs between the rows by more than rounding or a few steps."""
    values = [x for row in rows if (x := parse_number(row.get(name))) and x > 0]
    return bool(values) and max(values) > SAME_COUNT * min(values)


def best_of(rows: Sequence[table.Row], columns: Sequence[str]) -> str | None:
    """The option of a fit to rows of which some were tuned: what a law through all that was tried
    says is not what the best setting does. None where they differ in size, length or unique data,
    too, which nobody tunes."""
    varied = varied_within(rows, columns)
    counts = [n for n in varied if n in ("params", "tokens") or OTHER_COUNTS.fullmatch(n)]
    return "cell" if varied and not counts else None


def told_once(rows: Sequence[table.Row], names: Sequence[str]) -> list[str]:
    """The columns without those that part the rows as one before them does: lr, optim.lr."""
    parted: dict[tuple[int, ...], str] = {}
    for name in names:
        first: dict[str, int] = {}
        values = (value_text(row.get(name)) for row in rows)
        parted.setdefault(tuple(first.setdefault(v, len(first)) for v in values), name)
    return list(parted.values())


def best_of_cell(
    rows: Sequence[table.Row], columns: Sequence[str], response: str = "loss"
) -> tuple[list[table.Row], list[dict[str, str]]]:
    """Of every cell the rows of the setting whose first, by seed, has the least loss (the highest
    accuracy), and the others with the reason. That loss is too low by chance, so it gives way to
    the setting's other seeds, which no choice has seen, where there are any."""
    names, kept, dropped = varied_within(rows, columns), [], []
    for cell in cells(rows, columns).values():
        tried: dict[tuple[str, ...], list[table.Row]] = {}
        for row in sorted(cell, key=lambda row: parse_number(row.get("seed")) or 0.0):
            tried.setdefault(tuple(value_text(row.get(n)) for n in names), []).append(row)
        first, *again = min(tried.values(), key=lambda of: sense(response) * of[0][response])
        stay = cell if len(tried) == 1 else again or [first]
        kept += stay
        dropped += [
            {"run": row["run"], "reason": _SEEN if row is first else _beaten(first, response)}
            for row in cell
            if not any(row is other for other in stay)
        ]
    return kept, dropped


_SEEN = f"{BEST_OF}: chosen by this one, of which other seeds say how good it is by chance"


def sense(response: str) -> int:
    """1 where less is better, -1 where more is."""
    return -1 if response == "accuracy" else 1


def _best(response: str) -> str:
    return "highest accuracy" if response == "accuracy" else "lowest loss"


def _beaten(by: table.Row, response: str) -> str:
    return f"{BEST_OF}: {by['run']} has the {_best(response)} of this size and length"


def edge_warnings(
    rows: Sequence[table.Row], columns: Sequence[str], response: str = "loss"
) -> list[str]:
    """Where the best of the numbers that were tried in a cell is the last on its side: a bound of
    the best, which a comparison of best settings takes for the best itself."""
    told: dict[tuple, str] = {}
    for name in varied_within(rows, columns):
        ends: dict[str, list[str]] = {}  # of a group's cells, on which the best lies
        for key, cell in cells(rows, columns).items():
            tried = [(sense(response) * row[response], parse_number(row.get(name))) for row in cell]
            numbers = {x for _, x in tried if x is not None}
            if len(numbers) > 1 and all(x is not None for _, x in tried):
                named = {min(numbers): "smallest", max(numbers): "largest"}
                ends.setdefault(key[-1], []).append(named.get(min(tried)[1] or 0.0, ""))
        for group, found in ends.items():
            for end, further in (("smallest", "smaller"), ("largest", "larger")):
                if count := found.count(end):
                    line = (
                        f"the best {name} of {count} of {len(found)} sizes and lengths is the "
                        f"{end} that was tried, so {further} ones may be better: add them before "
                        "comparing"
                    )
                    line = f"{group}: {line}" if len(ends) > 1 else line
                    told.setdefault((group, end, *found), line)
    return list(told.values())


def untuned_warning(rows: Sequence[table.Row], columns: Sequence[str], compared: str) -> list[str]:
    """Where groups are compared of which none was tried at a second learning rate."""
    names = dict.fromkeys(str(name) for row in rows for name in row)
    rates = [name for name in names if RATE.fullmatch(name)]
    if not rates or compared in rates:
        return []
    tried: dict[tuple, set[tuple[str, ...]]] = {}
    for row in rows:
        cell = (*(row[c] for c in columns), group_value(row, compared))
        tried.setdefault(cell, set()).add(tuple(value_text(row.get(name)) for name in rates))
    if any(len(found) > 1 for found in tried.values()):
        return []
    return [
        "each group has one learning rate at every size and length: the comparison holds for these "
        "rates, and a group may be worth more at better ones"
    ]


def tuning_warnings(
    rows: Sequence[table.Row],
    columns: Sequence[str],
    dropped: Sequence[Mapping[str, str]],
    response: str = "loss",
) -> list[str]:
    """What to know of a table in which rows of one cell differ in a setting, or in which only the
    best setting of each was kept."""
    reasons = [row["reason"] for row in dropped if row["reason"].startswith(BEST_OF)]
    if chosen := len(reasons) - reasons.count(_SEEN):
        lucky = {_beaten(row, response) for row in rows}.intersection(reasons)
        if not lucky:
            return []
        return [
            f"{chosen} rows gave way to a better one of the same size and length; {len(lucky)} of "
            "the best have no second seed, and the best of several is biased: of five equal runs "
            "by 1.2 standard deviations of a run"
        ]
    varied = told_once(rows, varied_within(rows, columns))
    if not varied:
        return []
    some = ", ".join(varied[:4]) + (", …" if len(varied) > 4 else "")
    cell = "size and length" if len(columns) > 1 else columns[0]
    return [
        f"rows of one {cell} differ in {some}: they are no replicates, and a law through "
        f"all of them is not that of the best; {BEST_OF} takes the {_best(response)} of each, "
        f"--where='{varied[0]}==VALUE' one of them"
    ]
