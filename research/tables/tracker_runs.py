"""Runs that other trackers stored on this disk, as rows of a table: the name and state of each,
what it was configured with, and its last metrics. Nothing is asked of a server.

Their own packages read them (the extra `track`), imported here only when they are needed.
"""

import contextlib
import importlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import BadInput, UnsafeFile, first_line
from research.io import files
from research.io.extras import install_command
from research.tables.file_formats import flat

Row = dict[str, Any]
LARGEST_RECORD = 1 << 28  # bytes of one run's records, and of a database
MOST_RUNS, PAGE = 1 << 16, 1000
_BLOCK, _HEADER = 1 << 15, 7  # of LevelDB's log, in which W&B writes: blocks, and each part's head
_WHOLE, _FIRST, _LAST = 1, 2, 4  # parts of a record


def _package(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BadInput(
            f"{what}: read by the package {package}, which is not installed; "
            f"{install_command('track')}"
        ) from error


def wandb_runs(place: str, what: str) -> list[Row]:
    """The runs of a folder of W&B (`wandb/`, the folder that holds it, or one run's own), of
    offline runs or of the local copies of others. Launches of one run are one row.

    Raises BadInput, beginning with `what`, where there is none.
    """
    root = Path(place)
    if not root.is_dir():
        raise BadInput(f"{what}: no such folder")
    found = sorted(
        path for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}run-*.wandb")
    )
    if not found:
        raise BadInput(
            f"{what}: no run-….wandb there; expected the folder that holds offline-run-… folders"
        )
    records = _package("wandb.proto.wandb_internal_pb2", what)
    runs: dict[str, Row] = {}
    for path in found[:MOST_RUNS]:
        row = _wandb_row(path, records, what)
        before = runs.get(row["run_id"], {})  # an earlier launch of the same run
        runs[row["run_id"]] = {**before, **row}
    return _named([runs[name] for name in sorted(runs)])


def _wandb_row(path: Path, records: Any, what: str) -> Row:
    settings: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    row: Row = {"run": path.stem.removeprefix("run-"), "status": "unfinished"}
    row["run_id"] = row["run"]
    for raw in _log_records(path, what):
        record = records.Record()
        try:
            record.ParseFromString(raw)
        except Exception as error:  # DecodeError, of whichever protobuf is installed
            raise BadInput(f"{what}: {path}: not a record of W&B: {first_line(error)}") from error
        kind = record.WhichOneof("record_type")
        if kind == "run":
            row["run"] = record.run.display_name or row["run"]
            row["run_id"] = record.run.run_id or row["run_id"]
            row |= {"group": record.run.run_group} if record.run.run_group else {}
            _update(settings, record.run.config.update)
        elif kind == "config":
            _update(settings, record.config.update)
        elif kind == "history":
            _update(summary, record.history.item)
        elif kind == "summary":
            _update(summary, record.summary.update)
        elif kind == "exit":
            row["status"] = "failed" if record.exit.exit_code else "finished"
    settings.pop("_wandb", None)
    known = {k: v for k, v in summary.items() if not k.startswith("_") or k == "_step"}
    return {**dict(flat(settings)), **dict(flat(known)), **row}


def _update(values: dict[str, Any], items: Any) -> None:
    """What items of a record change; nested keys are a path of names."""
    for item in items:
        names = list(item.nested_key) or [item.key]
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(item.value_json)
            inner = values
            for name in names[:-1]:
                inner = inner.setdefault(name, {})
                if not isinstance(inner, dict):
                    break
            else:
                inner[names[-1]] = value


def _log_records(path: Path, what: str) -> Iterator[bytes]:
    """The records of LevelDB's log format, behind the seven bytes that W&B writes first; the last
    may be cut off, where a run was killed."""
    try:
        raw = files.read(path, LARGEST_RECORD)
    except OSError as error:
        raise BadInput(f"{what}: {path}: {error.strerror}") from error
    if not raw.startswith(b":W&B"):
        raise BadInput(f"{what}: {path}: not a record of W&B")
    at, parts = _HEADER, []
    while at + _HEADER <= len(raw):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        part = raw[at + _HEADER : at + _HEADER + length]
        if len(part) < length or kind not in range(_WHOLE, _LAST + 1):
            return
        parts = [part] if kind in (_WHOLE, _FIRST) else [*parts, part]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
        at += _HEADER + length


def mlflow_runs(place: str, what: str) -> list[Row]:
    """The runs of a store of MLflow: a database file of SQLite (or the folder that holds
    mlflow.db), or a folder such as mlruns. A database is copied first, since opening it may migrate
    it. Raises BadInput, beginning with `what`, where there is none."""
    path = Path(place)
    if path.is_dir() and (path / "mlflow.db").is_file():
        path = path / "mlflow.db"
    elif path.is_dir() and (path / "mlruns").is_dir():
        path = path / "mlruns"
    if not path.exists():
        raise BadInput(f"{what}: no such file or folder")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would call home
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    _package("mlflow", what)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        if path.is_dir():
            if not any(path.glob("*/meta.yaml")):
                raise BadInput(f"{what}: neither mlflow.db nor the experiments of a file store")
            for _ in files.walk(path):  # no links, and not without end
                pass
            uri = path.absolute().as_uri()
        else:
            uri = f"sqlite:///{_copied(path, Path(folder), what)}"
        try:
            return _named(_searched(uri))
        except Exception as error:  # of MLflow, SQLAlchemy, SQLite or YAML
            raise BadInput(f"{what}: not a store of MLflow: {first_line(error)}") from error


def _copied(path: Path, folder: Path, what: str) -> Path:
    with files.open_regular_file(path) as source, open(folder / "mlflow.db", "wb") as copy:
        if not source.read(16).startswith(b"SQLite format 3"):
            raise BadInput(f"{what}: not a database of SQLite")
        if os.fstat(source.fileno()).st_size > LARGEST_RECORD:
            raise UnsafeFile(f"{what}: larger than {LARGEST_RECORD} bytes")
        source.seek(0)
        shutil.copyfileobj(source, copy)
    for suffix in ("-wal", "-journal"):  # what a running writer has not merged yet
        if (beside := path.with_name(path.name + suffix)).is_file() and not beside.is_symlink():
            shutil.copyfile(beside, folder / f"mlflow.db{suffix}")
    return folder / "mlflow.db"


def _searched(uri: str) -> list[Row]:
    client = importlib.import_module("mlflow").MlflowClient(uri)
    experiments = {e.experiment_id: e.name for e in client.search_experiments()}
    rows, token = [], None
    while experiments and len(rows) < MOST_RUNS:
        page = client.search_runs(list(experiments), max_results=PAGE, page_token=token)
        for run in page:
            row: Row = {"run": run.info.run_name or run.info.run_id, "run_id": run.info.run_id}
            row |= {"status": run.info.status, "experiment": experiments[run.info.experiment_id]}
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
            rows.append({**tags, **run.data.params, **run.data.metrics, **row})
        if not (token := page.token):
            break
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow says of its own tables."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _named(rows: list[Row]) -> list[Row]:
    """Runs that share a name are told apart by their ids."""
    names = [row["run"] for row in rows]
    shared = {name for name in names if names.count(name) > 1}
    return [
        row | ({"run": f"{row['run']} {row['run_id']}"} if row["run"] in shared else {})
        for row in rows
    ]


SOURCES: Mapping[str, Callable[[str, str], list[Row]]] = {
    "wandb": wandb_runs,
    "mlflow": mlflow_runs,
}
