"""The table of runs, derived by reading their directories; nothing is kept but a cache."""

import contextlib
import csv
import io
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import BadInput, Damaged, StorageError, UnsafeFile
from research.io import files
from research.runs import lease, metrics_log
from research.runs.directory import failed_attempts, read_run_file
from research.runs.schema import row_problem

SOURCES = ("launch.json", "result.json", "attempts", "lease")  # what a row is made from
ROWS = 4  # counted up when `row` makes another row of the same files
LARGEST_CACHE = 1 << 28
WORTH_KEEPING = 64  # runs read anew, before the table is kept for the next time


def read_table(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per run directory, by size, tokens and seed. Status: done, diverged, failed, or
    unfinished; `reason` where there is one.

    `flops` are those of what a run means, `flops_spent` what it cost: without the steps that it has
    from another run, and of one that diverged those up to there. Rows whose files are as they were
    come from WORKDIR/.table.cache, if it is there and whole. Raises BadInput if there is no sweep
    at `workdir`.
    """
    root = Path(workdir) / "runs"
    if not root.is_dir():
        raise BadInput(f"--runs={workdir}: no directory {root}; expected the workdir of a sweep")
    cache = Path(workdir) / ".table.cache"
    known, new, fresh = _cached(cache), {}, 0
    for name in os.listdir(root):
        path = f"{root}{os.sep}{name}"
        if not os.path.exists(f"{path}{os.sep}config.json"):
            continue
        stamps, found = _stamps(path), known.get(name)
        if found is None or found[0] != stamps:
            found, fresh = [stamps, read_row(Path(path))], fresh + 1
        new[name] = found
    if fresh >= WORTH_KEEPING and fresh > len(new) / 20:
        _keep(cache, new)
    every = [found[1] for found in new.values()]
    return sorted(every, key=lambda r: [r.get(k) or 0 for k in ("params", "tokens", "seed")])


def read_row(path: Path) -> dict[str, Any]:
    """The row of one run directory, from the files named in SOURCES. A damaged one has failed."""
    try:
        return _row(path)
    except Damaged as error:
        return {"run": path.name, "status": "failed", "reason": f"Damaged: {error}"}


def _row(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"run": path.name, "status": "unfinished", "reason": ""}
    facts = _read(path / "launch.json").get("facts", {})
    out |= facts if isinstance(facts, dict) else {}
    out |= _read(path / "result.json")
    out["run"] = path.name
    if wrong := row_problem(out):
        raise Damaged(f"{path}: launch.json or result.json: {wrong}")
    if out["status"] == "done" and "flops" in out:  # nothing was shared if it does not say so
        out.setdefault("flops_spent", out["flops"])
    if out["status"] == "unfinished":
        if attempts := failed_attempts(path):
            out |= {"status": "failed", "reason": str(read_run_file(attempts[-1]).get("reason"))}
        elif (last := lease.holder(path / "lease")) and last.deaths:
            out["reason"] = f"its process died, {last.deaths} times in a row"
    return out


def _read(path: Path) -> dict[str, Any]:
    return read_run_file(path) if os.path.exists(path) else {}


def read_evaluations(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per evaluation of every run, for an analysis of whole training curves: the run's row
    with the loss, tokens, steps and FLOPs of that moment, and "part_of_run", the share of it that
    was over (1 at its end). One of a shared trunk is a row of the run that took those steps alone.
    """
    out = []
    for last in read_table(workdir):
        for found in metrics_log.read(Path(workdir) / "runs" / last["run"]):
            if "loss" not in found or not last.get("tokens"):
                continue
            if found["tokens"] <= last.get("shared_tokens", 0):
                continue
            part = found["tokens"] / last["tokens"]
            scaled = {k: v * part for k, v in last.items() if k.startswith("flops") and part < 1
                      and isinstance(v, int | float)}  # fmt: skip
            unique = min(last.get("unique_tokens", found["tokens"]), found["tokens"])
            then = {k: found[k] for k in ("loss", "tokens")} | {"steps": found["step"]}
            then |= {"unique_tokens": unique, "part_of_run": part, "status": "done"}
            if "shared_flops" in last:
                then["flops_spent"] = last["flops"] * part - last["shared_flops"]
            out.append({**last, **scaled, **then})
    return out


def write_table(workdir: str | os.PathLike[str]) -> list[Path]:
    """Write table.parquet and table.csv, one row per run; nested values as JSON text."""
    import pyarrow
    import pyarrow.parquet

    every = [
        {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in r.items()}
        for r in read_table(workdir)
    ]
    columns = list(dict.fromkeys(k for r in every for k in r))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({c: [r.get(c) for r in every] for c in columns}), parquet
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(files.cell, columns))
    writer.writerows([[files.cell(r.get(c)) for c in columns] for r in every])
    paths = [Path(workdir) / "table.parquet", Path(workdir) / "table.csv"]
    files.write_atomic(paths[0], parquet.getvalue())
    files.write_atomic(paths[1], text.getvalue())
    return paths


def _stamps(path: str) -> list[list[int] | None]:
    """Changes when the row does: files are replaced whole, and an attempt is a new name."""
    out: list[list[int] | None] = []
    for name in SOURCES:
        try:
            stat = os.stat(f"{path}{os.sep}{name}")
            out.append([stat.st_size, stat.st_mtime_ns, stat.st_ino])
        except OSError:
            out.append(None)
    return out


def _cached(path: Path) -> dict[str, list]:
    """Run -> [stamps, row], as kept; nothing where the file is missing, damaged or of another
    form."""
    try:
        head, body = files.read(path, LARGEST_CACHE, follow=False).split(b"\n", 1)
        known = json.loads(body) if head == _head(body) else {}
        known = {name: [stamps, dict(read_row)] for name, (stamps, read_row) in known.items()}
        return {} if any(row_problem(read_row) for _, read_row in known.values()) else known
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, UnsafeFile):
        return {}


def _keep(path: Path, found: Mapping[str, list]) -> None:
    body = json.dumps(found).encode()
    # Whoever may only read a workdir reads it without.
    with contextlib.suppress(StorageError):
        files.write_atomic(path, _head(body) + b"\n" + body)


def _head(body: bytes) -> bytes:
    return f"isoflop rows {ROWS} {zlib.crc32(body)}".encode()
