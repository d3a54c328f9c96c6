"""The groups of a table in an analysis: labelled, refused where they would share a law, split."""

import re
from collections.abc import Iterable, Mapping, Sequence

from research.errors import BadInput
from research.scaling.options import Options, compare_flag
from research.tables import states, where
from research.tables.columns import GROUP_LABEL, Row
from research.tables.comparable import (
    A_NUMBER,
    Grouping,
    group_of,
    group_rows,
    group_value,
    shorten,
)
from research.tables.table import Table, notes_of, places_of, with_rows

LONGEST = 60  # characters of a folder's name
TOLD = 4  # groups, of which an error says what is wrong
PLAIN = re.compile(r"[\w.+/-]+")
VARIES = re.compile(r"'[^']*'|\S*\d\S*")  # in a reason: what is quoted, or has a digit


def grouped(rows: Sequence[Row], options: Options) -> tuple[Table, Grouping]:
    """The rows with the label of their group (none where all are comparable), and the groups. The
    rows decide that are done and that the options' condition takes; the column of `cluster`, whose
    values err together, parts nothing."""
    finished = tuple(options.finished)
    decide = [not states.reason_to_leave_out(row.get("status"), finished) for row in rows]
    if options.where:
        decide = [d and bool(k) for d, k in zip(decide, where.match_where(rows, options.where))]
    grouping = group_rows(rows, decide, but=(options.cluster,))
    if not grouping.several:
        return with_rows(rows, rows), grouping
    labels = grouping.labels
    return with_rows(rows, [{**r, GROUP_LABEL: x} for r, x in zip(rows, labels)]), grouping


def check(
    rows: Sequence[Row], grouping: Grouping, law: str, mix: bool, compare_by: str | None
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """What there is to say of the groups of usable rows that are to share a law, and in which
    columns they were mixed. Raises BadInput for groups that are not to: unless `mix`, they may
    differ only in what `compare_by` tells apart."""
    labels = {group_of(row) for row in rows}
    if compare_by not in (None, "group") and not any(row.get(compare_by) for row in rows):
        return list(grouping.notes), {}  # which is said where groups are compared
    if not grouping.several or len(labels) < 2:
        return list(grouping.notes), {}
    words, spelled = grouping.words(), _spellings(grouping)
    if compare_by:
        within: dict[str, set[str]] = {}
        for row in rows:
            within.setdefault(group_value(row, compare_by), set()).add(group_of(row))
        mixed = [name for name, found in within.items() if len(found) > 1]
        if mixed and not mix:
            raise BadInput(
                f"--compare={compare_by}: rows of {compare_by} {shorten(mixed[0])} are not "
                f"comparable with each other; the table differs in {words}: {_ways(grouping, law)}"
            )
        others = [name for name in grouping.columns if name not in (compare_by, "group")]
        out = list(grouping.notes)
        if others and compare_by != "group" and not mixed:
            out.append(f"groups of {compare_by} may differ in {', '.join(others)} too: {words}")
        out += spelled
        if not grouping.measured_alike:
            out.append(f"the losses of the groups do not measure the same thing: {words}")
        if not mixed:
            return out, {}
    elif not mix:
        raise BadInput(
            f"rows of {len(labels)} groups are not comparable, and share no law: {words}; "
            f"{_ways(grouping, law)}"
        )
    mixed_in = {name: dict(values) for name, values in grouping.counts.items()}
    return [
        *grouping.notes,
        f"rows that are not comparable share this law (--mix): {words}",
    ], mixed_in


def _ways(grouping: Grouping, law: str) -> str:
    """The flags that take one group, compare them, or mix them."""
    name, values = next(iter(grouping.counts.items()))
    value = shorten(max(values, key=lambda v: values[v]))
    column = name if PLAIN.fullmatch(name) else f'"{name}"'
    quoted = value if PLAIN.fullmatch(value) else f'"{value}"'
    condition = f"{column}!=none" if value == A_NUMBER else f"{column}=={quoted}"
    compares = f"{compare_flag(law)}=" + (name if PLAIN.fullmatch(name) else f"'{name}'")
    return f"--where='{condition}' takes one, {compares} compares, --mix fits all together"


def _spellings(grouping: Grouping) -> list[str]:
    """A warning for each column with values that differ in case or punctuation alone."""
    out = []
    for name, values in grouping.counts.items():
        alike: dict[str, list[str]] = {}
        for value in values:
            alike.setdefault(re.sub(r"[\W_]+", "", value).casefold(), []).append(value)
        if found := [" and ".join(map(repr, v)) for k, v in alike.items() if k and len(v) > 1]:
            out.append(
                f"{name}: {', '.join(found)} differ in case or punctuation alone, and count as "
                "different; if they are one, the table should write them alike"
            )
    return out


def split(rows: Sequence[Row], options: Options) -> dict[str, Table]:
    """The rows by group, those of a group in the order of the table; one where all are comparable,
    or are to be mixed. A row that cannot be fitted is where it would be."""
    found, grouping = grouped(rows, options)
    if options.mix or not grouping.several:
        return {"": with_rows(rows, rows)}
    holdout = options.holdout
    named = [
        *(where.columns_of(options.where) if options.where else ()),
        *(where.columns_of(holdout, "holdout") if holdout not in (None, "", "largest") else ()),
    ]  # which may be columns of other groups alone
    out: dict[str, Table] = {}
    for row, place in zip(found, places_of(rows)):
        of_group = out.setdefault(row.pop(GROUP_LABEL), Table([], (), notes_of(rows)))
        of_group.append({**dict.fromkeys(named), **row})
        of_group.places.append(place)
    for of_group in out.values():
        of_group.advice = getattr(rows, "advice", "")
        of_group.names = dict(getattr(rows, "names", {}))
    return out


def told_of_split(rows: Sequence[Row], options: Options, law: str) -> list[str]:
    """Why a table has several laws, and what else could be asked for; a warning for each line."""
    _, grouping = grouped(rows, options)
    count = len({*grouping.labels})
    said = (
        f"rows of {count} groups are not comparable, and have a law each: {grouping.words()}; "
        f"{_ways(grouping, law)}"
    )
    return [said, *(f"warning: {line}" for line in _spellings(grouping))]


def none_fitted(failures: Mapping[str, Sequence[str]]) -> BadInput:
    """What to raise where no group has a law: what is wrong with the first few."""
    some = list(failures.items())[:TOLD]
    more = len(failures) - len(some)
    rest = [f"nor has any of {more} more groups; --mix fits all together"] if more else []
    return BadInput(*(f"{name}: {line}" for name, of in some for line in of), *rest)


def told_of_failures(failures: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason for which groups have no law, with the first few of them; reasons that
    differ in a number or a name alone are one."""
    alike: dict[str, list[str]] = {}
    for name, problems in failures.items():
        alike.setdefault(VARIES.sub("#", problems[0]), []).append(name)
    out = []
    for names in alike.values():
        problems = failures[names[0]]
        more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
        of = "" if len(names) == 1 else f" (of {names[0]})"
        out.append(f"no law of {', '.join(names[:TOLD])}{more}: {'; '.join(problems)}{of}")
    return out


def folder(name: str, others: Iterable[str]) -> str:
    """The folder of a group's law, one for each of the `others` too."""
    stems = [re.sub(r"[^\w.=-]+", "_", other).strip("._")[:LONGEST] or "group" for other in others]
    stem = stems[list(others).index(name)]
    return stem if stems.count(stem) == 1 else f"{stem}-{list(others).index(name) + 1}"
