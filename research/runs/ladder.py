"""Predictions that were registered before their runs were trained, and what these measured.

WORKDIR/verify/registration.json     what was predicted, of which runs, by which laws, when: written
                                     once; it holds its own digest, and is refused if it changed
WORKDIR/verify/registration-2.json   another one, made later; none is ever replaced
WORKDIR/verify/runs/<id>/            the runs of the rungs
WORKDIR/verify/ladder.json           every rung beside what was measured, derived from these
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.io import files
from research.runs.directory import RUN
from research.runs.table import read_row

FOLDER = "verify"
NAME = re.compile(r"registration(?:-([1-9][0-9]{0,5}))?\.json")
LARGEST = 16 << 20  # bytes of a registration
PARTS = ("noise", "parameters", "law", "floor")
AMOUNTS = ("ratio", "budget", "params", "tokens", "loss")


def registration_name(number: int) -> str:
    return "registration.json" if number == 1 else f"registration-{number}.json"


def read_registrations(workdir: str | Path) -> dict[str, dict[str, Any]]:
    """The registrations of a workdir by the names of their files, the first first. Raises BadInput
    for one that is not as it was written."""
    folder = Path(workdir) / FOLDER
    numbers = {path.name: match for path in folder.glob("registration*.json")
               if (match := NAME.fullmatch(path.name))}  # fmt: skip
    out = {}
    for name in sorted(numbers, key=lambda name: int(numbers[name][1] or 1)):
        document = files.read_json(folder / name, LARGEST, follow=False)
        if "digest" not in document or not files.as_digested(document):
            raise BadInput(
                f"{folder / name}: not as it was registered: its digest is of something else. A "
                "prediction that was changed is none: bring the file back, or remove "
                f"{folder} with all that was registered and trained there"
            )
        if not _well_formed(document):
            raise BadInput(f"{folder / name}: not what isoflop verify writes; remove {folder}")
        out[name] = document
    return out


def _well_formed(document: Mapping[str, Any]) -> bool:
    rungs, rows, line = (document.get(name) for name in ("rungs", "rows", "line"))
    return (
        all(isinstance(x, list) and x and all(isinstance(e, dict) for e in x)
            for x in (rungs, rows, line))
        and all(map(_is_rung, rungs or ()))
        and all(_are_positive(row, ("params", "tokens", "loss")) for row in rows or ())
        and all(_are_positive(p, ("budget", "loss")) and is_interval(p.get("interval"))
                for p in line or ())
        and all(isinstance(document.get(k), str) for k in ("law", "unit", "time", "group"))
        and isinstance(document.get("code"), dict)
        and isinstance(laws := document.get("laws"), list)
        and all(isinstance(e, dict) and _are_positive(e, ("weight",)) for e in laws)
        and isinstance(document.get("n_points"), int)
        and isinstance(notes := document.get("notes", []), list)  # a key since 2026-11-30
        and all(isinstance(note, str) for note in notes)
    )  # fmt: skip


def _is_rung(rung: Mapping[str, Any]) -> bool:
    parts = rung.get("parts")
    return (
        _are_positive(rung, AMOUNTS)
        and isinstance(rung.get("steps"), int)
        and rung["steps"] > 0
        and isinstance(run := rung.get("run"), str)
        and bool(RUN.fullmatch(run))
        and isinstance(rung.get("config"), dict)
        and isinstance(rung.get("found"), str)
        and _is_number(rung.get("slope"))
        and rung["slope"] < 0
        and _is_curve(rung.get("curve"))
        and isinstance(parts, dict)
        and all(_is_number(parts.get(name)) for name in PARTS)
        and all(
            is_interval(rung.get(k)) and _holds(rung[k], rung["loss"])
            for k in ("interval", "run_interval")
        )
    )


def _is_curve(curve: object) -> bool:
    """Whether it is a forecast, or there is none."""
    if curve is None:
        return True
    if not isinstance(curve, dict):
        return False
    values = [curve.get(name) for name in ("share", "loss", "sd")]
    return (
        all(isinstance(v, list) and v and len(v) == len(values[0] or ()) for v in values)
        and all(_is_number(x) and x > 0 for v in values for x in v or ())
        and curve["share"] == sorted(set(curve["share"]))
    )


def _are_positive(entry: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(_is_number(entry.get(name)) and entry[name] > 0 for name in names)


def is_interval(ends: object) -> bool:
    return (
        isinstance(ends, list) and len(ends) == 2 and all(e is None or _is_number(e) for e in ends)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _holds(ends: list[float | None], value: float) -> bool:
    low, high = ends
    return (low is None or low <= value) and (high is None or value <= high)


def read_forecasts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The forecast training curves of runs, by their ids, where `folder` is that of a ladder; of a
    run that was registered more than once, the first."""
    folder = Path(folder).resolve()
    if folder.name != FOLDER:
        return {}
    out: dict[str, dict[str, Any]] = {}
    for registration in read_registrations(folder.parent).values():
        for rung in registration["rungs"]:
            if rung.get("curve"):
                out.setdefault(rung["run"], rung["curve"])
    return out


def read_ladder(workdir: str | Path) -> list[dict[str, Any]]:
    """Every rung that was registered, smallest first, with what its run measured: read from the
    run, so that nothing is believed but the registration and the run.

    "predicted", "measured" (None where the run is not done: see "status"), "error" (of the
    prediction, relative), "compute" (what compute the run was worth, in that which it had: at the
    predicted loss 1, and above where it is better) and whether its interval "covered" it.
    """
    out = []
    for name, registration in read_registrations(workdir).items():
        for rung in registration["rungs"]:
            path = Path(workdir) / FOLDER / "runs" / rung["run"]
            row: dict[str, Any] = {"status": "new", "reason": ""}
            row |= read_row(path) if path.exists() else {}
            known = {k: v for k, v in rung.items() if k not in ("loss", "config", "curve")}
            entry = {**known, "predicted": rung["loss"], "registration": name,
                     "law": registration["law"], "status": row["status"],
                     "reason": row.get("reason", "")}  # fmt: skip
            done = row["status"] == "done" and _is_number(row.get("loss")) and row["loss"] > 0
            out.append(entry | _compare(rung, row["loss"] if done else None))
    return sorted(out, key=lambda rung: rung["ratio"])


def _compare(rung: Mapping[str, Any], measured: float | None) -> dict[str, Any]:
    if measured is None:
        return dict.fromkeys(("measured", "error", "compute", "covered"))
    logged = (math.log(measured) - math.log(rung["loss"])) / rung["slope"]
    return {
        "measured": measured,
        "error": rung["loss"] / measured - 1,
        "compute": math.exp(min(logged, 700.0)),
        "covered": _holds(rung["run_interval"], measured),
    }
