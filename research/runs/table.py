"""The table of runs, derived from their directories; nothing is stored but a cache."""

import contextlib
import csv
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import BadInput, Damaged, StorageError, UnsafeFile
from research.io import files, text_table
from research.runs import lease, metrics_log, scores
from research.runs.directory import failed_attempts, read_run_file
from research.runs.row_checks import row_problem
from research.runs.settings import settings_columns

# What a row is read from.
SOURCES = ("config.json", "launch.json", "result.json", "attempts", "lease", scores.FILE)
CACHE_VERSION = 8  # increased when the same files give another row
MADE_BY = (  # of launch.json, while there is no result
    *("code", "commit", "source", "diff", "versions", "jax_config", "platform", "device_kind"),
)
LABELS = ("tag", "note")  # of launch.json, unless the result has others
LARGEST_CACHE = LARGEST_SWEEP = 1 << 28  # bytes
WORTH_CACHING = 64  # runs read from their files, below which the cache is not rewritten


def read_table(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per run directory, by size, tokens and seed. Status: done, diverged, failed, or
    unfinished; `reason` where there is one.

    `flops` are those of all its steps, `flops_spent` what was computed: without the steps shared
    with another run, and of a diverged run those up to the divergence. Rows of unchanged runs come
    from WORKDIR/.table.cache, if it exists and is intact. Raises BadInput if there is no sweep at
    `workdir`.
    """
    root = Path(workdir) / "runs"
    if not root.is_dir():
        wrong = f"no directory {root}" if os.path.isdir(workdir) else "no such folder"
        fits = ""
        if os.path.isfile(workdir):
            wrong, fits = "is a file", "; isoflop fit reads a table in a file"
        meant = nearby_workdir(workdir) or f"; expected the workdir of a sweep{fits}"
        raise BadInput(f"--runs={workdir}: {wrong}{meant}")
    cache = Path(workdir) / ".table.cache"
    cached, entries, fresh = _read_cache(cache), {}, 0
    for name in os.listdir(root):
        path = f"{root}{os.sep}{name}"
        if not os.path.exists(f"{path}{os.sep}config.json"):
            continue
        stamps, entry = _stamps(path), cached.get(name)
        if entry is None or entry[0] != stamps:
            entry, fresh = [stamps, read_row(Path(path))], fresh + 1
        entries[name] = entry
    if fresh >= WORTH_CACHING and fresh > len(entries) / 20:
        _write_cache(cache, entries)
    rows = [row for _, row in entries.values()]
    by = ("params", "tokens", "seed")
    return sorted(rows, key=lambda row: (*(row.get(k) or 0 for k in by), row["run"]))


def nearby_workdir(folder: str | os.PathLike[str]) -> str:
    """What to say of a folder without runs beside, above or below a workdir that has some; or
    nothing."""
    path = Path(folder)
    inside = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    near = (*path.parents[:2], *inside)
    found = [f"--runs={place}" for place in near if any(place.glob("runs/*/config.json"))]
    return f"; did you mean {' or '.join(found[:3])}, the workdir of runs?" if found else ""


def read_row(path: Path) -> dict[str, Any]:
    """The row of one run directory, from the files named in SOURCES. A damaged run is failed."""
    try:
        return _row(path)
    except Damaged as error:
        return {"run": path.name, "status": "failed", "reason": f"Damaged: {error}"}


def _row(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"run": path.name, "status": "unfinished", "reason": ""}
    settings = settings_columns(_read(path / "config.json"))
    launch, result = _read(path / "launch.json"), _read(path / "result.json")
    facts = launch.get("facts", {})
    made_by = {name: launch[name] for name in MADE_BY if name in launch}
    out |= facts if isinstance(facts, dict) else {}
    out |= {name: launch[name] for name in LABELS if name in launch}
    out |= result or made_by
    out |= _settings(out)
    out = settings | out | scores.columns(path) | {"run": path.name}
    if wrong := row_problem(out):
        raise Damaged(f"{path}: launch.json or result.json: {wrong}")
    if out["status"] == "done" and "flops" in out:  # no steps were shared unless it says so
        out.setdefault("flops_spent", out["flops"])
    if out["status"] == "unfinished":
        if attempts := failed_attempts(path):
            out |= {"status": "failed", "reason": str(read_run_file(attempts[-1]).get("reason"))}
        elif (last := lease.read_holder(path / "lease")) and last.deaths:
            out["reason"] = f"its process died, {last.deaths} times in a row"
    return out


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that what is nested decides, of a run that recorded it."""
    versions, values = (row.get(name) for name in ("versions", "jax_config"))
    out = {"jax": versions.get("jax")} if isinstance(versions, dict) else {}
    if isinstance(values, dict):
        out["precision"] = values.get("jax_default_matmul_precision") or "default"
        out["prng"] = values.get("jax_default_prng_impl")
    return {name: value for name, value in out.items() if value is not None}


def _read(path: Path) -> dict[str, Any]:
    return read_run_file(path) if os.path.exists(path) else {}


def read_evaluations(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per evaluation of every run, to analyze whole training curves: the run's row with the
    loss, tokens, steps and FLOPs at that step, and "part_of_run", the fraction of the run that was
    complete (1 at its end). An evaluation in a shared prefix is a row only of the run that trained
    it.
    """
    out = []
    for run in read_table(workdir):
        for record in metrics_log.read_records(Path(workdir) / "runs" / run["run"]):
            if "loss" not in record or not run.get("tokens"):
                continue
            if record["tokens"] <= run.get("shared_tokens", 0):
                continue
            part = record["tokens"] / run["tokens"]
            scaled = {k: v * part for k, v in run.items() if k.startswith("flops") and part < 1
                      and isinstance(v, int | float)}  # fmt: skip
            unique = min(run.get("unique_tokens", record["tokens"]), record["tokens"])
            here = {k: v for k, v in record.items() if k not in ("step", "seconds")}
            here["steps"] = record["step"]
            here |= {"unique_tokens": unique, "part_of_run": part, "status": "done"}
            if "shared_flops" in run:
                here["flops_spent"] = run["flops"] * part - run["shared_flops"]
            out.append({**run, **scaled, **here})
    return out


def newest_sweep(workdir: str | os.PathLike[str]) -> Path | None:
    """The file of the sweep that was launched last in `workdir`; None where none was."""
    sweeps = sorted((Path(workdir) / "sweeps").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    return sweeps[-1] if sweeps else None


def split_by_sweep(
    workdir: str | os.PathLike[str], rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows whose runs are points of the sweep that was launched last in `workdir`, and the
    others: its config or its data were other ones once. All of them are of it where none was
    launched."""
    if (path := newest_sweep(workdir)) is None:
        return list(rows), []
    sweep = files.read_json(path, limit=LARGEST_SWEEP, follow=False)
    try:
        points = {str(point["run"]) for point in sweep["points"]}
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a sweep of this version ({error})") from error
    own = [row for row in rows if row["run"] in points]
    return own, [row for row in rows if row["run"] not in points]


def others_note(others: Sequence[Mapping[str, Any]]) -> str:
    """That runs of a workdir are left out, since they are not of its sweep."""
    names = ", ".join(str(row["run"]) for row in others[:3]) + (", …" if len(others) > 3 else "")
    what = "1 run of the workdir is" if len(others) == 1 else (
        f"{len(others)} runs of the workdir are"
    )  # fmt: skip
    return (
        f"{what} left out ({names}): not in the sweep as last launched, whose config or data "
        "differ; --all_runs includes them"
    )


def write_table(
    workdir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write table.parquet and table.csv, one row per run, there or in `out`; nested values as JSON
    text."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in r.items()}
        for r in read_table(workdir)
    ]
    columns = list(dict.fromkeys(k for r in rows for k in r))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({c: _of_one_kind([r.get(c) for r in rows]) for c in columns}), parquet
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(text_table.cell, columns))
    writer.writerows([[text_table.cell(r.get(c)) for c in columns] for r in rows])
    folder = Path(out or workdir)
    paths = [folder / "table.parquet", folder / "table.csv"]
    files.write_atomic(paths[0], parquet.getvalue())
    files.write_atomic(paths[1], text.getvalue())
    return paths


def _of_one_kind(values: list[Any]) -> list[Any]:
    """A column of a parquet file: as text where some of it is text, or a switch beside numbers."""
    kinds = {float if type(x) is int else type(x) for x in values if x is not None}
    return values if len(kinds) < 2 else [None if x is None else str(x) for x in values]


def _stamps(path: str) -> list[list[int] | None]:
    """[size, mtime, inode] of each of SOURCES, which change with the row: files are replaced as a
    whole, and a failed attempt is a new file."""
    out: list[list[int] | None] = []
    for name in SOURCES:
        try:
            stat = os.stat(f"{path}{os.sep}{name}")
            out.append([stat.st_size, stat.st_mtime_ns, stat.st_ino])
        except OSError:
            out.append(None)
    return out


def _read_cache(path: Path) -> dict[str, list]:
    """{run: [stamps, row]}; empty if the file is missing, damaged or of another version."""
    try:
        head, body = files.read(path, LARGEST_CACHE, follow=False).split(b"\n", 1)
        stored = json.loads(body) if head == _cache_header(body) else {}
        entries = {name: [stamps, dict(row)] for name, (stamps, row) in stored.items()}
        return {} if any(row_problem(row) for _, row in entries.values()) else entries
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, UnsafeFile):
        return {}


def _write_cache(path: Path, entries: Mapping[str, list]) -> None:
    body = json.dumps(entries).encode()
    with contextlib.suppress(StorageError):  # a workdir may be read-only
        files.write_atomic(path, _cache_header(body) + b"\n" + body)


def _cache_header(body: bytes) -> bytes:
    return f"isoflop rows {CACHE_VERSION} {zlib.crc32(body)}".encode()
