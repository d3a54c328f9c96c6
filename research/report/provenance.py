"""What the runs of each group were made from: data, code, versions, devices, and how many there
are."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MOST = 3  # values of one group that are named
_DIGEST = re.compile(r"[0-9a-f]{32,}\+?")


def provenance_table(groups: Mapping[str, Sequence[Row]]) -> list[list[str]]:
    """A header and a line for each fact that some group has; a column for each group."""
    body = [
        [heading, *("; ".join(of_group(rows)) for rows in groups.values())]
        for heading, of_group in FACTS.items()
    ]
    return [["", *groups], *(line for line in body if any(line[1:]))]


def provenance_line(rows: Sequence[Row]) -> str:
    """The same of one group, for a terminal."""
    wanted = ("runs", "data", "tokenizer", "code", "jax")
    parts = {heading: "; ".join(FACTS[heading](rows)) for heading in wanted}
    return ", ".join(f"{heading} {words}" for heading, words in parts.items() if words)


def _counts(rows: Sequence[Row]) -> list[str]:
    done = sum(row.get("status") == "done" for row in rows)
    return [f"{len(rows)}, {done} done" if done < len(rows) else f"{done}"]


def _values(name: str) -> Callable[[Sequence[Row]], list[str]]:
    """The values of a column, the most frequent first, with how many runs have them if they
    differ."""

    def of(rows: Sequence[Row]) -> list[str]:
        return _counted([_shortened(row.get(name)) for row in rows])

    return of


def _data(rows: Sequence[Row]) -> list[str]:
    names = ("data.name", "data.path", "data.paths", "data_digest")
    return _counted([" ".join(filter(None, (_shortened(r.get(n)) for n in names))) for r in rows])


def _versions(rows: Sequence[Row]) -> list[str]:
    return _counted(
        [
            ", ".join(f"{k} {v}" for k, v in versions.items())
            if isinstance(versions := row.get("versions"), dict)
            else ""
            for row in rows
        ]
    )


def _devices(rows: Sequence[Row]) -> list[str]:
    return _counted(
        [f"{r['devices']} × {r.get('device_kind', '?')}" if r.get("devices") else "" for r in rows]
    )


FACTS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "runs": _counts,
    "data": _data,
    "tokenizer": _values("data.tokenizer"),
    "context": _values("context"),
    "evaluated examples": _values("eval.examples"),
    "unit of the loss": _values("loss_unit"),
    "code": _values("code"),
    "commit": _values("commit"),
    "jax": _values("jax"),
    "continued by": _values("continued"),
    "versions": _versions,
    "precision": _values("precision"),
    "devices": _devices,
}


def _shortened(value: object) -> str:
    text = "" if value in (None, "none") else str(value)
    return text[:12] + text[64:] if _DIGEST.fullmatch(text) else text


def _counted(values: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    for value in filter(None, values):
        counts[value] = counts.get(value, 0) + 1
    found = sorted(counts, key=lambda value: -counts[value])
    if len(found) < 2:
        return found
    named = [f"{value} ({n} run{'s' * (n > 1)})" for value in found[:MOST] for n in [counts[value]]]
    return [*named, f"{len(found) - MOST} more"] if len(found) > MOST else named
