"""Which rows share a law: the one place that decides what makes rows comparable.

Size, length, learning rate, batch and seed may differ: they are what a law is about, or what was
tuned. What is measured (the data, its tokenizer and context, the evaluation set, the unit of the
loss) and what was trained (a family, switches and words of a config, the schedule, the precision,
the code) may not: rows that differ there are groups, and each has a law of its own.

Of our own records every key of the config counts whose values are words or switches. Of a table
from elsewhere the columns whose names say so (NAMES) do, unless their values are as many as the
rows, or go with the size.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.runs.settings import follows_size, is_part_of_a_run
from research.tables import states
from research.tables.columns import GROUP_LABEL, Row
from research.tables.numbers import parse_number


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OWN = "flops_convention"  # of rows that are records of this project
MEASURED = ("loss_unit", "task", "data_digest", "context", "eval.examples", "data.vocab")
MADE = ("precision", "prng", "code")  # how a run was computed
TOLD = ("jax", "commit")  # what may differ without parting rows
NUMBERS = ("eval.examples", "data.vocab")  # settings that are numbers and part rows
READABLE = ("data.name", "data.tokenizer", "data.path", "data.paths", "data.weights")
# The last words of the names of columns of other tables: of what is measured, of what was trained,
# and those whose values may be numbers.
OF_DATA = _words(
    "dataset datasets data corpus corpora dataname datasetname traindata trainset trainingdata "
    "datamix datamixture mixture tokenizer tokeniser tokenizername evalset evaldata evaldataset "
    "tok valset valdata validationset validset testset task lossunit unit units datadigest"
)
OF_RECIPE = _words(
    "group optimizer optimiser optim opt optimizername optimizertype schedule scheduler lrschedule "
    "lrscheduler lrschedulertype scheduletype lrdecaystyle decaytype architecture arch family "
    "modelfamily modeltype recipe code codedigest"
)
LENGTHS = _words(
    "vocab vocabsize nvocab context contextlength contextlen contextsize contextwindow ctx ctxlen "
    "nctx seqlen seqlength sequencelength maxseqlen maxseqlength maxlength blocksize"
)
PRECISIONS = _words("precision dtype torchdtype mixedprecision")
A_NUMBER = "a number"  # beside words: switched on, however far
BITS = (4, 8, 16, 32, 64)  # of a precision that is a number
NONE_GIVEN = "none given"
LONGEST = 60  # characters of a value
SHOWN = 4  # values of a column in a message
_DIGEST = re.compile(r"[0-9a-f]{32,}\+?")


@dataclass(frozen=True)
class Grouping:
    """How rows fall into groups: the `columns` that tell these apart (none is implied by those
    before it), with the number of rows of each value; the label of every row; `notes` on what is
    missing or differs without parting rows."""

    counts: Mapping[str, Mapping[str, int]]
    labels: Sequence[str]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return list(self.counts)

    @property
    def several(self) -> bool:
        return bool(self.counts)

    @property
    def measured_alike(self) -> bool:
        """Whether the losses of the groups are of the same thing, so that these may be compared."""
        return not any(
            name in (*MEASURED, *READABLE) or _is_data(_bare(name)) or _bare(name) in LENGTHS
            for name in self.counts
        )

    def words(self) -> str:
        """In which columns rows differ, with how many rows have which value."""
        return ", ".join(counted(name, values) for name, values in self.counts.items())


def counted(name: str, values: Mapping[str, int]) -> str:
    """A column with its most frequent values: "optimizer (adamw: 6 rows, muon: 5 rows)"."""
    shown = [
        f"{shorten(value) or NONE_GIVEN}: {n} row{'s' if n > 1 else ''}"
        for value, n in sorted(values.items(), key=lambda item: (-item[1], item[0]))
    ]
    return f"{name} ({', '.join(shown[:SHOWN])}{', …' if len(shown) > SHOWN else ''})"


def shorten(value: str) -> str:
    """A digest by its first 12 digits, and what is long by its beginning."""
    if _DIGEST.fullmatch(value):
        return value[:12]
    return value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"


def value_text(cell: Any) -> str:
    """A cell as it is compared: numbers by value (1e3 is 1000), what is missing as nothing."""
    if (states.is_missing(cell) and cell != "none") or cell != cell:
        return ""
    if isinstance(cell, dict | list):
        return json.dumps(cell, sort_keys=True)
    number = None if isinstance(cell, bool) else parse_number(cell)
    return str(cell).strip() if number is None else f"{number:.15g}"


def may_part(name: str, own: bool) -> bool:
    """Whether a column, by its name, may tell rows apart; `own`: of records of this project."""
    if name in (*MEASURED, *MADE, "group"):
        return True
    if own and "." in name:
        return is_part_of_a_run(name) and not name.startswith(("init.run", "init.step"))
    bare = _bare(name)
    return _is_data(bare) or bare in OF_RECIPE | LENGTHS | PRECISIONS


def _is_data(bare: str) -> bool:
    return bare in OF_DATA or bare.endswith("dataset")  # upstream_dataset, downstream_dataset


def _bare(name: str) -> str:
    last = re.split(r"[/.:]", name)[-1]
    return re.sub(r"[\W_]+", "", last).casefold()


def group_rows(
    rows: Sequence[Row], among: Sequence[bool] | None = None, but: Iterable[str] = ()
) -> Grouping:
    """The groups of the rows. `among` says which rows decide what differs (those that can be
    fitted): another one is of the group that it would be in, else of the first. The columns `but`
    part nothing."""
    decide = [row for row, k in zip(rows, among) if k] if among is not None else list(rows)
    own = any(OWN in row for row in decide)
    names = dict.fromkeys(str(key) for row in decide for key in row)
    counts: dict[str, Counter[str]] = {}
    notes: list[str] = []
    silent: dict[str, list[str]] = {}  # columns that part nothing
    keys: list[tuple[str, ...]] = [()] * len(decide)
    for name in sorted((n for n in names if may_part(n, own) and n not in but), key=_rank):
        values = _values(decide, name, own, notes)
        if not values and name == "group" and "group" in getattr(rows, "names", {}):
            values = [value_text(row.get(name)) for row in decide]  # numbers too: it was asked for
            values = values if len({*values}) > 1 else []
        if not values:
            silent[name] = [value_text(row.get(name)) for row in decide]
        if values and len({*zip(keys, values)}) > len({*keys}):
            name, values = _readable(decide, name, values, own)
            counts[name] = Counter(values)
            keys = [(*key, value) for key, value in zip(keys, values)]
    notes += _missing(silent, keys, own)
    notes += [_told(decide, n) for n in TOLD if own and _differs(decide, n, keys)]
    if not counts:
        return Grouping({}, [_own_group(row) for row in rows], notes)
    of_key = _labels(list(counts), keys)
    found = iter(keys)
    labels = []
    for i, row in enumerate(rows):
        key = next(found) if among is None or among[i] else _key_of(row, counts)
        labels.append(of_key.get(key, of_key[keys[0]]))
    return Grouping(counts, labels, notes)


def _rank(name: str) -> tuple[int, int]:
    """What is measured first, then what was trained, by the facts before the config's keys; how it
    was computed last. Others keep the table's order."""
    first = (*MEASURED, "group", "optimizer", "schedule", "optim.transfer.rule")
    return (first.index(name) if name in first else len(first), int(name in MADE))


def _key_of(row: Row, counts: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """The key of a row that did not decide what the columns are."""
    out = []
    for name, known in counts.items():
        value = value_text(row.get(name))
        is_number = value not in known and parse_number(value) is not None
        out.append(A_NUMBER if is_number and A_NUMBER in known else value)
    return tuple(out)


def _own_group(row: Row) -> str:
    return str(row.get("group") or "")


def group_value(row: Row, column: str) -> str:
    """A row's value in the column by which groups are compared, as a name of its group: a switch
    or a number with the column. "group" is the label of `group_rows`."""
    return group_of(row) if column == "group" else _label(column, value_text(row.get(column)))


def group_of(row: Row) -> str:
    """The label of a row's group: what `labelled` found, else its own column `group`."""
    return str(row.get(GROUP_LABEL) or "") or _own_group(row)


def _values(rows: Sequence[Row], name: str, own: bool, notes: list[str]) -> list[str]:
    """The value of each row in a column that parts them; [] for one that does not."""
    values = [value_text(row.get(name)) for row in rows]
    known = {value for value in values if value}
    setting = own and "." in name
    if name == "data_digest":
        values = _without_amounts(rows, values)
        known = {value for value in values if value}
    if len(known) < 2:
        return []
    words = {value for value in known if parse_number(value) is None}
    if setting and name not in NUMBERS:
        return [v if v in words or not v else A_NUMBER for v in values] if words else []
    if own and name in (*MEASURED, *MADE, "group"):
        return values
    if not _tells_of_elsewhere(rows, name, values, known, words, notes):
        return []
    return values


def _tells_of_elsewhere(
    rows: Sequence[Row],
    name: str,
    values: Sequence[str],
    known: set[str],
    words: set[str],
    notes: list[str],
) -> bool:
    """Whether a column of another table parts its rows, and does not number them or go with their
    size."""
    numbers = [n for n in known if n not in words]
    bare = _bare(name)
    if numbers and name != "group" and bare not in LENGTHS | PRECISIONS:
        return False  # "data" may be how many
    if bare == "precision" and any(parse_number(n) not in BITS for n in numbers):
        return False  # of a classifier
    if len(known) > max(2, len(rows) / 2):
        return False
    sizes: dict[str, set[float]] = {}
    for row, value in zip(rows, values):
        if (size := parse_number(row.get("params"))) is not None:
            sizes.setdefault(value, set()).add(size)
    every = [size for found in sizes.values() for size in found]
    one_each = len(every) > 2 and len(every) == len(sizes) == len({*every})
    counted_up = not words and len(sizes) > 1 and len({*every}) == len(every) and follows_size(
        [{"params": size, name: parse_number(v)} for v, found in sizes.items() for size in found],
        name,
    )  # fmt: skip
    if one_each or counted_up:
        notes.append(f"{name} goes with the size ({len(known)} values): it parts no rows")
        return False
    return True


def _without_amounts(rows: Sequence[Row], digests: list[str]) -> list[str]:
    """The digests; where a sweep takes several amounts of the same data (data.examples), what the
    config says of the data instead, if that and the amount decide the digest."""
    if len({value_text(row.get("data.examples")) for row in rows}) < 2:
        return digests
    named = [
        json.dumps({k: v for k, v in row.items() if k.startswith("data.") and k not in AMOUNTS},
                   sort_keys=True, default=str) for row in rows
    ]  # fmt: skip
    cells = {(a, value_text(r.get("data.examples")), d) for a, r, d in zip(named, rows, digests)}
    return named if len({cell[:2] for cell in cells}) == len(cells) else digests


AMOUNTS = ("data.examples", "data.seed")


def _readable(
    rows: Sequence[Row], name: str, values: list[str], own: bool
) -> tuple[str, list[str]]:
    """The column and its values; for the digest of data one that parts rows alike and says what
    they are."""
    for other in READABLE if own and name == "data_digest" else ():
        texts = [value_text(row.get(other)) for row in rows]
        if len({*texts}) == len({*values}) == len({*zip(texts, values)}):
            return other, texts
    return name, values


def _missing(
    silent: Mapping[str, Sequence[str]], keys: Sequence[tuple[str, ...]], own: bool
) -> list[str]:
    """Of columns with one value: that it is taken for that of rows of the same group without."""
    out = []
    for name, values in silent.items():
        known = {value for value in values if value}
        of_group: dict[tuple[str, ...], set[bool]] = {}
        for key, value in zip(keys, values):
            of_group.setdefault(key, set()).add(bool(value))
        mixed = any(len(found) > 1 for found in of_group.values())
        if len(known) == 1 and mixed and not (own and "." in name):
            out.append(
                f"{values.count('')} of {len(values)} rows say nothing of {name}: they are taken "
                f"to be {shorten(*known)} like the others"
            )
    return out


def _differs(rows: Sequence[Row], name: str, keys: Sequence[tuple[str, ...]]) -> bool:
    """Whether rows of one group differ; in their commits, where their code says no more."""
    if name == "commit" and all(row.get("code") for row in rows):
        return False
    of_group: dict[tuple[str, ...], set[str]] = {}
    for key, row in zip(keys, rows):
        of_group.setdefault(key, set()).add(value_text(row.get(name)))
    return any(len(found - {""}) > 1 for found in of_group.values())


def _told(rows: Sequence[Row], name: str) -> str:
    values = Counter(value for row in rows if (value := value_text(row.get(name))))
    return f"rows differ in {counted(name, values)}, which does not keep them from sharing a law"


def _labels(names: Sequence[str], keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A label for every key: the words of its values; all values with their columns where those do
    not tell keys apart."""
    out = {key: ", ".join(filter(None, map(_label, names, key))) for key in keys}
    if len({*out.values()}) < len(out) or not all(out.values()):
        return {
            key: ", ".join(f"{n}={v or NONE_GIVEN}" for n, v in zip(names, key)) for key in keys
        }
    return out


def _label(name: str, value: str) -> str:
    last = name.split(".")[-1] if name.split(".")[-1] != "name" else name
    if not value:
        return ""
    if _DIGEST.fullmatch(value) or name in MADE:
        return f"{last} {shorten(value)}"
    if value in ("True", "False", "none", A_NUMBER) or parse_number(value) is not None:
        return f"{last}={value}"
    return shorten(value)
