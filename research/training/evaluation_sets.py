"""Named sets that a run evaluates beside what its data hold out (`eval.sets`), and which of them
the run is measured by (`eval.headline`). A `run` is a run.Run, which has them."""

import dataclasses
import functools
import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from research.data import Dataset, evaluation_files
from research.data.evaluation_files import MOST_COMPARED
from research.errors import BadInput
from research.runs.schema import Column

log = logging.getLogger(__name__)

HELDOUT = "heldout"  # the name of what the data set itself holds out
TOLD = 0.1  # of a set that the training set holds too: more is a warning
_placed: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


class EvalSet(NamedTuple):
    """A set beside the headline: `data` holds it out."""

    name: str
    data: Dataset
    examples: int


class Loaded(NamedTuple):
    """The sets of a run: `data` holds the headline out, `others` are the rest. `measured` is `data`
    with the contents of the headline, where they are known, as those that it holds out. `section`
    is `eval` of its config with every rule applied; `facts` and `rule` are what is said of them."""

    data: Dataset
    measured: Dataset
    others: tuple[EvalSet, ...]
    section: dict[str, Any]
    facts: dict[str, Any]
    rule: str


def load(section: Mapping[str, Any], options: Mapping[str, Any], dataset: Dataset) -> Loaded:
    """The sets of the section `eval` for a data set of the section `options`. As many examples are
    evaluated of each as of the headline, if `examples` says so, or as it says itself; else all.

    Raises BadInput, by the set, for what cannot be read, and where a file is another one than a
    resolved config recorded."""
    out, parts, problems = dict(section), {HELDOUT: dataset}, []
    entries: list[dict[str, Any]] = [dict(entry) for entry in section["sets"]]
    facts: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    for entry in entries:
        try:
            found = evaluation_files.read(entry["path"], options, dataset)
        except BadInput as error:
            lines = (line.removeprefix("data.path: ") for line in error.problems)
            problems += [f"eval.sets: {entry['name']}: {line}" for line in lines]
            continue
        if entry.setdefault("digest", found.digest) != found.digest:
            problems.append(f"eval.sets: {entry['name']}: {entry['path']} holds something else now")
        held = {"heldout": found.split, "count_bytes": found.count_bytes}
        parts[entry["name"]] = dataclasses.replace(dataset, **held)
        contents[entry["name"]] = found.contents
        if found.overlap is not None:
            facts[f"overlap/{entry['name']}"] = found.overlap
    if problems:
        raise BadInput(*problems)
    headline = section.get("headline") or HELDOUT
    own = {entry["name"]: entry.get("examples") for entry in entries}
    counts = {}
    for name, part in parts.items():
        asked, there = own.get(name) or section["examples"], len(part.heldout)
        if (own.get(name) or 0) > there:
            problems.append(f"eval.sets: {name}: {own[name]} examples, but there are {there}")
        # The headline's number is compared with what there is where every run's is.
        counts[name] = asked if asked and name == headline else min(asked or there, there)
    if problems:
        raise BadInput(*problems)
    out["examples"] = counts[headline]
    out["sets"] = [entry | {"examples": counts[entry["name"]]} for entry in entries]
    out["headline"] = None if headline == HELDOUT else headline
    others = tuple(
        EvalSet(name, part, counts[name])
        for name, part in parts.items()
        if name != headline and len(part.heldout)
    )
    data, own = parts[headline], dataset.contents
    measured = data
    if own and (of_file := contents.get(headline)):
        of_both = lambda part, n: of_file(n) if part == "heldout" else own(part, n)  # noqa: E731
        measured = dataclasses.replace(data, contents=of_both)
    rule = _rule(parts, counts, facts, headline)
    return Loaded(data, measured, others, out, facts, rule)


def _rule(
    parts: Mapping[str, Dataset],
    counts: Mapping[str, int],
    facts: Mapping[str, float],
    headline: str,
) -> str:
    """What is told of the sets, a line for each."""
    lines = []
    for name, part in parts.items():
        shared = facts.get(f"overlap/{name}")
        what = "runs of 32 tokens" if part.targets == "tokens" else "examples"
        words = f"eval.sets: {name}: {counts[name]:,} examples"
        words += ", the headline" if name == headline else ""
        if shared is not None:
            words += f"; {shared:.1%} of its {what} are in the training set"
            if shared > TOLD:
                _warn(f"eval.sets: {name}: {shared:.1%} of its {what} are in the training set")
        elif name != HELDOUT:
            words += (
                "; whether the training set holds it too is not measured, as it is of sets of 32 "
                f"tokens and more and of at most {MOST_COMPARED:,} training tokens"
            )
        if counts[name]:
            lines.append(words)
    return "\n".join(lines)


@functools.cache  # once a process, whatever the points of a sweep
def _warn(words: str) -> None:
    log.warning("%s", words)


def columns(run: Any) -> tuple[Column, ...]:
    """The columns of all sets: the loss of each, and what the task shows in a line beside it."""
    names = [run.config["eval"].get("headline") or HELDOUT, *(one.name for one in run.sets)]
    datasets = [run.data, *(one.data for one in run.sets)]
    shown = [column for column in run.task.METRICS if "line" in column.shown]
    out = []
    for name, data in zip(names, datasets):
        out.append(
            Column(f"loss/{name}", heading=f"loss, {name}", shown=("table", "page"), better="low",
                   axis=f"loss on {name}", noun=f"loss on {name}")
        )  # fmt: skip
        out += [
            dataclasses.replace(
                column, name=f"{column.name}/{name}", heading=f"{column.title}, {name}"[:40],
                shown=("page",),
            )
            for column in shown
            if data.count_bytes or column.name != "bits_per_byte"
        ]  # fmt: skip
    return tuple(out)


def with_sets(
    run: Any,
    headline: Mapping[str, Any],
    measure: Callable[[Any, Any], Mapping[str, Any]],
    place: Callable[[Any], Any],
    owner: Any,
) -> dict[str, Any]:
    """The metrics of the `headline` with those of the other sets of `run`. `place` puts the
    held-out set of a run where `measure` finds it, which is kept while `owner` is."""
    alone = lambda one, placed: [measure(one, placed)]  # noqa: E731
    return with_sets_each(run, [headline], alone, place, owner)[0]


def with_sets_each(
    run: Any,
    headline: Sequence[Mapping[str, Any]],
    measure: Callable[[Any, Any], Sequence[Mapping[str, Any]]],
    place: Callable[[Any], Any],
    owner: Any,
) -> list[dict[str, Any]]:
    """As `with_sets`, of runs that are vmapped, which share their sets."""
    name = run.config["eval"].get("headline") or HELDOUT
    out = [dict(metrics) | _named(run, name, metrics) for metrics in headline]
    kept = _placed.setdefault(owner, {})
    for one in run.sets:
        view = dataclasses.replace(run, data=one.data, eval_examples=one.examples, sets=())
        if one.name not in kept:
            kept[one.name] = place(view)
        for metrics, found in zip(out, measure(view, kept[one.name]), strict=True):
            metrics |= _named(run, one.name, found)
    return out


def _named(run: Any, name: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a set under its name, without what is no number."""
    wanted = ["loss", *(column.name for column in run.task.METRICS if "line" in column.shown)]
    values = {key: metrics[key] for key in wanted if key in metrics}
    return {f"{key}/{name}": x for key, x in values.items() if math.isfinite(x)}
