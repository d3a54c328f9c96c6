"""The columns of a row of the table of runs: what each may hold, and how it is shown.

COLUMNS has those that any run may have. A task declares the metrics that it alone measures beside
itself (`Task.METRICS`), and every run records that declaration in its result, under "metrics": what
reads a row learns from the row how to show it, and needs to know no task. A row may come from
elsewhere, so a declaration that is read is checked like everything else in it.
"""

import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from research.errors import printable

Row = Mapping[str, Any]
Kind = Literal["number", "text", "object"]

KINDS: dict[str, tuple[Any, str]] = {
    "number": (int | float, "a number"),
    "text": (str, "text"),
    "object": (dict, "an object"),
}
FORMATS = (
    *("", "d", ",d", ".0f", ".1f", ".2f", ".3f", ".4f", ".2g", ".3g", ".4g", ".1e", ".2e"),
    *(".0%", ".1%", ".2%"),
)
# The last line of `train` and the line of a worker; the summary of a report in the terminal;
# `experiments.table`, unless columns are named; the table of runs on the report's page.
PLACES = ("line", "summary", "table", "page")
# Config keys by which a run is computed, in the order of the fields of training's Execution.
EXECUTION_KEYS = (
    *("batch.grad_accumulation", "task.chunk", "model.attention", "model.remat", "model.unroll"),
)
# Keys that do not change what a run means: they neither enter its id nor forbid a resume.
NOT_IN_ID = (
    *("name", "mesh", "save", "log", "loop", "eval.every", "eval.at", "eval.batch"),
    *EXECUTION_KEYS,
    *("optim.horizon_rule", "optim.recipe"),  # which resolve to numbers
)
# Keys of `data` that the digest of the data stands for (see data.Dataset).
PATH_KEYS = ("path", "paths", "tokenizer", "undecodable")
MOST_METRICS, LONGEST_NAME, LARGEST_DECLARATION = 32, 40, 1 << 14
NAME = re.compile(r"[A-Za-z]\w*(/[A-Za-z][\w.-]*)?", re.ASCII)  # loss/NAME: of a set of eval.sets


def _is_plain(words: object) -> bool:
    return isinstance(words, str) and len(words) <= LONGEST_NAME and words == printable(words)


@dataclass(frozen=True)
class Column:
    """A column of the table of runs: a number that is shown everywhere, unless it says otherwise.

    `heading` is that on the page ("" is the name), `format` one of FORMATS, `shown` some of PLACES.
    `noun` names it in a sentence, `axis` in a figure; `better` is "low" or "high" where one of them
    is. Raises ValueError for anything else.
    """

    name: str
    kind: Kind = "number"
    heading: str = ""
    format: str = ".4f"
    shown: tuple[str, ...] = PLACES
    noun: str = ""
    axis: str = ""
    better: str = ""

    def __post_init__(self) -> None:
        name = self.name
        if not (isinstance(name, str) and NAME.fullmatch(name) and len(name) <= LONGEST_NAME):
            raise ValueError(
                f"{name!r:.50} names a column, expected a letter, then letters, digits and _"
            )
        if self.kind not in KINDS:
            raise ValueError(f"{name}: kind is {self.kind!r:.50}, expected {', '.join(KINDS)}")
        for field in ("heading", "noun", "axis"):
            if not _is_plain(words := getattr(self, field)):
                raise ValueError(
                    f"{name}: {field} is {words!r:.50}, expected at most {LONGEST_NAME} characters "
                    "of plain text"
                )
        if self.better not in ("", "low", "high"):
            raise ValueError(f"{name}: better is {self.better!r:.50}, expected low or high")
        if self.format not in FORMATS:
            raise ValueError(
                f"{name}: format is {self.format!r:.50}, expected one of {', '.join(FORMATS[1:])}"
            )
        if not isinstance(self.shown, tuple) or not all(place in PLACES for place in self.shown):
            raise ValueError(
                f"{name}: shown is {self.shown!r:.50}, expected some of {', '.join(PLACES)}"
            )

    @property
    def title(self) -> str:
        """Its heading on the page."""
        return self.heading or self.name

    def text(self, value: object) -> str:
        """A value of the column as it is shown; "–" is none."""
        if value is None:
            return "–"
        try:
            text = format(value, self.format)  # 1e11, as humanize.flops_text has it
            return text.replace("e+0", "e").replace("e+", "e") if self.kind == "number" else text
        except (TypeError, ValueError, OverflowError):  # of a row from elsewhere
            return str(value)


TABLE, PAGE = ("table", "page"), ("page",)
# In the order in which they are shown; the metrics of a task come after "loss".
COLUMNS: tuple[Column, ...] = (
    Column("run", "text", format="", shown=TABLE),
    Column("status", "text", format="", shown=TABLE),
    Column("family", "text", format="", shown=("table",)),
    Column("group", "text", format="", shown=PAGE),
    Column("size", format=".3g", shown=("table",)),
    Column("params", format=",d", shown=TABLE, heading="parameters", noun="parameters",
           axis="parameters N"),
    Column("params_non_embedding", format=",d", shown=PAGE, heading="without embedding, head",
           noun="parameters without embedding and head",
           axis="parameters N, without embedding and head"),
    Column("params_matmul", format=",d", shown=(), noun="parameters in dot products",
           axis="parameters N in dot products"),
    Column("train_examples", format=",d", shown=PAGE, heading="training examples",
           noun="training examples", axis="training examples D"),
    Column("tokens", format=",d", shown=TABLE, heading="tokens or examples seen", noun="tokens",
           axis="training tokens D"),
    Column("unique_tokens", format=",d", shown=(), noun="unique tokens",
           axis="unique training tokens D"),
    Column("flops", format=".3g", shown=TABLE, heading="exact FLOPs", noun="FLOPs",
           axis="training FLOPs C"),
    Column("steps", format=",d", shown=("table",)),
    Column("lr", format=".3g", shown=TABLE, heading="learning rate", axis="learning rate"),
    Column("seed", format="d", shown=TABLE),
    Column("loss", axis="held-out loss", better="low"),
    Column("closed_form_loss", shown=("line", "page"), heading="closed form"),
    Column("train_loss", shown=TABLE, heading="training loss"),
    Column("seconds", format=".0f", shown=TABLE),
    Column("tag", "text", format="", shown=TABLE),
    Column("note", "text", format="", shown=PAGE),
    Column("reason", "text", format="", shown=("table",)),
    *(
        Column(name, shown=())
        for name in (
            *("flops_spent", "flops_6nd", "flops_6nd_non_embedding", "flops_exact_full"),
            *("flops_exact_causal", "budget", "shared_tokens", "shared_flops", "epochs", "batch"),
            *("context", "warmup_steps", "head_share", "attention_share", "closed_form_distance"),
            *("device_seconds", "devices", "cores", "steps_per_dispatch"),
            *("best_step", "best_score"),
        )
    ),
    *(
        Column(name, "text", format="", shown=())
        for name in (
            *("name", "task", "loss_unit", "flops_convention", "rules", "device_kind"),
            *("data_digest", "optimizer", "schedule", "xla_flags", "shared_prefix"),
            *("code", "commit", "source", "diff", "jax", "precision", "prng", "platform"),
            "continued",
        )
    ),
    *(Column(name, "object", format="", shown=()) for name in ("groups", "versions", "jax_config")),
)  # fmt: skip
AXES = {column.name: column.axis for column in COLUMNS if column.axis}
NOUNS = {column.name: column.noun for column in COLUMNS if column.noun}
_NAMES = frozenset(column.name for column in COLUMNS) | {"metrics"}


def declaration(metrics: Sequence[Column]) -> list[dict[str, Any]]:
    """The columns that a task declares, as a run records them. Raises ValueError for one that every
    run has already, and for what is no number."""
    out = [dataclasses.asdict(column) | {"shown": list(column.shown)} for column in metrics]
    declared_metrics({"metrics": out})
    return out


def declared_metrics(row: Row) -> tuple[Column, ...]:
    """The columns that a row says its task has; () if it says nothing of them. Raises ValueError
    where that is no declaration."""
    stored = row.get("metrics")
    if stored is None:
        return ()
    try:  # a table in a file holds what is nested as JSON
        return _columns(stored if isinstance(stored, str) else json.dumps(stored))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@functools.lru_cache
def _columns(text: str) -> tuple[Column, ...]:
    """The columns of a declaration, which the runs of a sweep share."""
    stored = json.loads(text or "[]") if len(text) <= LARGEST_DECLARATION else None
    if not isinstance(stored, list) or len(stored) > MOST_METRICS:
        raise ValueError(f"expected a list of at most {MOST_METRICS} columns")
    columns = tuple(map(_column, stored))
    for column in columns:
        if column.kind != "number":
            raise ValueError(f"{column.name}: kind is {column.kind}, expected number")
        if column.name in _NAMES:
            raise ValueError(f"{column.name}: every run has a column of this name")
    return columns


def _column(entry: object) -> Column:
    if not isinstance(entry, dict) or not isinstance(shown := entry.get("shown"), list):
        raise ValueError(f"{entry!r:.50} is not a column")
    try:
        return Column(**{**entry, "shown": tuple(shown)})
    except TypeError as error:  # another field, or one that cannot be compared
        raise ValueError(f"{entry!r:.50} is not a column") from error


def shown_columns(rows: Sequence[Row], place: str) -> tuple[Column, ...]:
    """The columns that a place of PLACES shows: in order, those in which a row has a value."""
    after = 1 + next(i for i, column in enumerate(COLUMNS) if column.name == "loss")
    ordered = (*COLUMNS[:after], *task_metrics(rows), *COLUMNS[after:])
    return tuple(
        column
        for column in ordered
        if place in column.shown and any(row.get(column.name) not in (None, "") for row in rows)
    )


def task_metrics(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The metrics that tasks declare; the first row that declares one says how it is shown."""
    metrics: dict[str, Column] = {}
    for row in rows:
        with contextlib.suppress(ValueError):  # of a table from elsewhere; see also row_checks
            for column in declared_metrics(row):
                metrics.setdefault(column.name, column)
    return tuple(metrics.values())


def scores(row: Row) -> list[str]:
    """The loss of a run that is done, and its metrics: ["loss 0.0626", "accuracy 0.9805"]."""
    shown = shown_columns([row], "line")
    return [f"{column.name} {column.text(row[column.name])}" for column in shown]


def is_number(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)
