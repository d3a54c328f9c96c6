"""Tables in files, as rows: CSV and its kin, JSON, JSON lines and parquet, each also gzipped."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import BadInput, first_line
from research.io import arrow, files
from research.tables import delimited_text

LARGEST = 1 << 25  # bytes; it is read into Python's own objects
GZIPPED = b"\x1f\x8b"
SHORT = 8  # a list that is shown
NAMED = 4  # names of an object in a list, that are shown
DEEPEST = 8  # objects in each other, which become names such as config.model.depth
ELSEWHERE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "a spreadsheet; save it as CSV"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".joblib"), "a pickle, which can run code"),
    **dict.fromkeys((".npy", ".npz", ".mat"), "arrays without column names; write them as CSV"),
    **dict.fromkeys((".feather", ".arrow", ".h5", ".hdf5"), "write it as parquet or CSV"),
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"), "an archive; unpack it"),
    ".db": "a database; an MLflow store is read as --runs=mlflow:PATH",
    ".wandb": "a record of W&B; its folder is read as --runs=wandb:FOLDER",
}


def files_of_runs(folder: Path) -> list[str]:
    """What to say of a folder that is no workdir, of which each file may be a run; or nothing."""
    found = [path.suffix for path in folder.iterdir() if path.suffix in (".json", ".csv")]
    if not found:
        return []
    suffix = max(sorted({*found}), key=found.count)
    if suffix == ".json":
        make = "import json; json.dump([json.load(open(f)) for f in files], open('runs.json', 'w'))"
    else:
        make = "import pandas as pd; pd.concat([pd.read_csv(f).assign(run=f) for f in files])"
        make += ".to_csv('runs.csv')"
    several = "file" if found.count(suffix) == 1 else "files"
    return [
        f"{folder} holds {found.count(suffix)} {suffix} {several}; a table of runs is one file, "
        "with a row for each run",
        f"to make one of them in Python: import glob; files = sorted(glob.glob('{folder}/*{suffix}'"
        f")); {make}",
    ]


class TableFile(NamedTuple):
    """Rows, where in the file each stands, and what was not plain about the file."""

    rows: list[dict[str, Any]]
    places: list[str]
    notes: list[str]


def read_table_file(path: Path, what: str) -> TableFile:
    """The rows of a file by its suffix. Raises BadInput, beginning with `what`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if packed else suffixes)[-1:]
    reader = READERS.get(suffix[0] if suffix else "")
    if reader is None:
        known = ", ".join(READERS)
        reason = ELSEWHERE.get(suffix[0] if suffix else "", "")
        raise BadInput(
            f"{what}: {f'{reason}; ' if reason else ''}"
            f"expected the workdir of a sweep, or a file {known} (or one of these .gz)"
        )
    try:
        raw = files.read(path, LARGEST)
    except OSError as error:
        raise BadInput(f"{what}: {error.strerror}") from error
    packed |= raw.startswith(GZIPPED)  # what was loaded may have lost its .gz
    return reader(_unpacked(raw, what) if packed else raw, what)


def _unpacked(raw: bytes, what: str) -> bytes:
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise BadInput(f"{what}: the gzipped file is cut off") from error
    except (OSError, zlib.error) as error:
        raise BadInput(f"{what}: not a gzipped file: {first_line(error)}") from error


def _delimited(separator: str) -> Callable[[bytes, str], TableFile]:
    def read(raw: bytes, what: str) -> TableFile:
        text, notes = delimited_text.decode(raw, what)
        sheet = delimited_text.sheet(text, what, separator)
        rows = [dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]
        rows, objects = delimited_text.objects_in_cells(rows)
        places, notes = [f"line {n}" for n in sheet.lines], notes + sheet.notes
        return _flattened(rows, places, notes, what) if objects else TableFile(rows, places, notes)

    return read


def _parquet(raw: bytes, what: str) -> TableFile:
    rows = arrow.parquet(raw, what, nested=True).to_pylist()
    return _flattened(rows, [f"row {i + 1}" for i in range(len(rows))], [], what)


def _json(raw: bytes, what: str) -> TableFile:
    """A list of objects, an object of columns, or one that holds either beside a header; also JSON
    lines, whatever the suffix says."""
    text, notes = delimited_text.decode(raw, what)
    try:
        value = json.loads(text, object_pairs_hook=files.no_repeats)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] == "{" and "\n" in text.strip():
            return _json_lines(raw, what)
        raise BadInput(f"{what}: not a JSON document: {first_line(error)}") from error
    rows = _rows_of_json(value)
    if rows is None:
        raise BadInput(
            f"{what}: holds a {type(value).__name__}; expected a list of objects, one for each "
            "run, or an object of columns"
        )
    return _flattened(rows, [f"row {i + 1}" for i in range(len(rows))], notes, what)


def _rows_of_json(value: object) -> list | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    if isinstance(names := value.get("columns"), list) and isinstance(value.get("data"), list):
        return [dict(zip(names, row)) if isinstance(row, list) else row for row in value["data"]]
    for name in ("data", "runs", "rows", "results", "trials"):  # beside a header of other things
        if isinstance(inner := value.get(name), list) and all(isinstance(x, dict) for x in inner):
            beside = dict(flat({k: v for k, v in value.items() if not isinstance(v, list)}))
            return [{**beside, **x} for x in inner]
    columns = list(value.values())
    if columns and all(isinstance(x, list) for x in columns) and len(set(map(len, columns))) == 1:
        return [dict(zip(value, row)) for row in zip(*columns)]
    if columns and all(isinstance(x, dict) for x in columns):
        keys = list(columns[0])
        if all(list(x) == keys for x in columns) and all(key.isdigit() for key in keys):
            return [{name: column[key] for name, column in value.items()} for key in keys]
        return [{"run": name, **row} for name, row in value.items()]  # runs by their names
    return [value] if columns else []


def _json_lines(raw: bytes, what: str) -> TableFile:
    text, notes = delimited_text.decode(raw, what)
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: words may hold U+2028
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line, object_pairs_hook=files.no_repeats))
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{what}: line {number} is no JSON: {first_line(error)} ({line.strip()[:60]!r})"
            ) from error
        places.append(f"line {number}")
    if len(rows) == 1 and not isinstance(rows[0], dict):
        return _json(raw, what)
    return _flattened(rows, places, notes, what)


def _flattened(rows: list, places: list[str], notes: list[str], what: str) -> TableFile:
    """Objects in objects by joined names."""
    out = []
    for place, row in zip(places, rows):
        if not isinstance(row, dict):
            raise BadInput(f"{what}: {place} holds a {type(row).__name__}, expected an object")
        out.append(dict(flat(row)))
    return TableFile(out, places, notes)


def flat(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, value) of what an object holds, with the names of objects in it joined by points. A
    list is no number, and is words, unless it holds one object alone."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            if depth < DEEPEST:
                yield from flat(value, f"{prefix}{name}.", depth + 1)
        elif (
            isinstance(value, list | tuple) and value and all(isinstance(x, Mapping) for x in value)
        ):
            if len(value) == 1 and depth < DEEPEST:
                yield from flat(value[0], f"{prefix}{name}.", depth + 1)
            else:
                inner = list(value[0])
                some = ", ".join(map(str, inner[:NAMED])) + (", …" if len(inner) > NAMED else "")
                yield f"{prefix}{name}", f"[{len(value)} objects: {some}]"
        elif isinstance(value, list | tuple):
            words = f"[{', '.join(map(str, value))}]" if len(value) <= SHORT else ""
            yield f"{prefix}{name}", words or f"[{len(value)} values]"
        else:
            yield f"{prefix}{name}", value


READERS: dict[str, Callable[[bytes, str], TableFile]] = {
    ".csv": _delimited(""),
    ".tsv": _delimited("\t"),
    ".tab": _delimited("\t"),
    ".txt": _delimited(""),
    ".dat": _delimited(""),
    ".psv": _delimited("|"),
    ".md": _delimited("|"),
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".pq": _parquet,
}
