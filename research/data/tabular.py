"""Tabular data: regression or classification from numeric columns."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.config.types import OpenUnit
from research.data import labels
from research.data.arrays import LARGEST, Arrays
from research.data.sampling import is_heldout
from research.errors import BadInput
from research.io import arrow, files
from research.io.extras import install_command

SHOWN = 12  # column names listed in a message


def load(
    *,
    path: str,
    target: list[str],
    columns: list[str] | None,
    kind: Literal["numbers", "classes"],
    standardize: bool,
    heldout: OpenUnit,
) -> dict[str, object]:
    """The fields of a `Dataset` of the rows of a table.

    `path` is "diabetes" (442 patients, 10 features; from scikit-learn), a `.csv` with a header or a
    `.parquet`. `target` names the numeric columns to predict, or the one column of classes;
    `columns` are the features (none: all other columns). About a fraction `heldout` of the rows,
    selected by content hash, is held out; equal rows fall on the same side. `standardize` maps
    features and numeric targets to (x − mean) / std with the statistics of the training rows;
    metrics stay in the original units.

    Raises BadInput for a column that is missing, not numeric, or has missing values.
    """
    chosen = tuple(columns) if columns is not None else None
    return dict(_load(path, _stamp(path), tuple(target), chosen, kind, standardize, heldout))


@functools.lru_cache(maxsize=4)
def _load(
    path: str,
    stamp: tuple,
    target: tuple[str, ...],
    columns: tuple[str, ...] | None,
    kind: str,
    standardize: bool,
    heldout: float,
) -> dict[str, object]:
    table = _diabetes() if path == "diabetes" else _read(path)
    columns = _select_columns(path, table, target, columns, kind)
    if kind == "classes":
        x_NxF = _matrix(path, table, columns)
        y, names = _classes(path, table, target[0])
    else:
        both_NxC = _matrix(path, table, (*columns, *target))
        x_NxF, y = both_NxC[:, : len(columns)], both_NxC[:, len(columns) :]
        names = []
    keys = _row_hashes(x_NxF, y)
    heldout_mask = np.array([is_heldout(key, heldout) for key in keys])
    if heldout_mask.all() or not heldout_mask.any():
        raise BadInput(
            f"data.heldout: {heldout:g} of {len(heldout_mask)} rows of {path} leaves "
            f"{(~heldout_mask).sum()} to train on and {heldout_mask.sum()} held out"
        )
    if names:
        labels.check_counts(path, names, y[~heldout_mask], y[heldout_mask])
    notes: dict[str, Any] = {"class_names": names} if names else {"target_names": list(target)}
    if standardize:
        x_NxF = _standardize(x_NxF, heldout_mask)[0]
        if not names:
            y, notes["target_scale"] = _standardize(y, heldout_mask)
    y = y.astype(np.int32 if names else np.float32)
    made = _dataset(path, (x_NxF.astype(np.float32), y), heldout_mask, columns, notes)
    return made | {"contents": functools.partial(_contents, keys, heldout_mask)}


def load_set(
    path: str, data: Mapping[str, Any], columns: tuple[str, ...], names: Sequence[str]
) -> Arrays:
    """All rows of another table, as the data set of the options `data` reads its own: the same
    `columns` and classes, standardized with its training rows. Raises BadInput as `load`."""
    target, kind = tuple(data["target"]), data["kind"]
    table, heldout = _diabetes() if path == "diabetes" else _read(path), data["heldout"]
    _select_columns(path, table, target, columns, kind)
    if kind == "classes":
        x, labels_ = _matrix(path, table, columns), _labels(path, table, target[0])
        number = {name: i for i, name in enumerate(names)}
        if unknown := [label for label in map(str, labels_) if label not in number]:
            raise BadInput(f"data.target: {path} has a class {unknown[0]!r:.50} of no training row")
        y = np.array([number[str(label)] for label in labels_], np.int32)
    else:
        both = _matrix(path, table, (*columns, *target))
        x, y = both[:, : len(columns)], both[:, len(columns) :]
    if data["standardize"]:
        own = _diabetes() if data["path"] == "diabetes" else _read(data["path"])
        x_own = _matrix(data["path"], own, columns)
        y_own = _classes(data["path"], own, target[0])[0] if names else (
            _matrix(data["path"], own, target)
        )  # fmt: skip
        mask = np.array([is_heldout(key, heldout) for key in _row_hashes(x_own, y_own)])
        x = _standardized_as(x, x_own[~mask])
        y = y if names else _standardized_as(y, y_own[~mask])
    return Arrays(x.astype(np.float32), y if names else y.astype(np.float32))


def _standardized_as(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """`values` on the scale that `_standardize` gives the rows `train`."""
    scale = train.std(axis=0)
    return (values - train.mean(axis=0)) / np.where(scale > 0, scale, 1.0)


def _contents(keys: list[bytes], heldout_mask: np.ndarray, part: str, classes: int) -> np.ndarray:
    from research.data.row_contents import of_digests

    here = heldout_mask if part == "heldout" else ~heldout_mask
    return of_digests([key for key, chosen in zip(keys, here) if chosen], classes)


def _dataset(
    path: str,
    rows: tuple[np.ndarray, np.ndarray],
    heldout_mask: np.ndarray,
    columns: tuple[str, ...],
    notes: dict[str, Any],
) -> dict[str, object]:
    x_NxF, y = rows
    names = notes.get("class_names", [])
    digest = files.digest(x_NxF.tobytes(), y.tobytes(), heldout_mask.tobytes())
    card = {
        "source": path if path != "diabetes" else "scikit-learn's diabetes table",
        "digest": digest,
        "train_examples": int((~heldout_mask).sum()),
        "heldout_examples": int(heldout_mask.sum()),
        "columns": ", ".join(columns),
        "targets": ", ".join(names or notes["target_names"]),
    }
    facts = {"features": x_NxF.shape[1], "outputs": len(names) or y.shape[1]}
    return {
        "train": Arrays(x_NxF[~heldout_mask], y[~heldout_mask]),
        "heldout": Arrays(x_NxF[heldout_mask], y[heldout_mask]),
        "targets": "classes" if names else "numbers",
        "facts": facts | ({"classes": len(names)} if names else {}),
        "digest": digest,
        "load_set": functools.partial(load_set, columns=columns, names=names),
        "unique_tokens": int((~heldout_mask).sum()),
        "notes": {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in notes.items()},
        "card": lambda: card,
    }


def _stamp(path: str) -> tuple:
    return () if path == "diabetes" else files.stamp(path, "data.path")


def _diabetes() -> Any:
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise BadInput(
            f"data.path: diabetes comes with scikit-learn; {install_command('data')}"
        ) from error
    import pyarrow

    diabetes: Any = load_diabetes(scaled=False)
    columns = {n: diabetes["data"][:, i] for i, n in enumerate(diabetes["feature_names"])}
    return pyarrow.table({**columns, "progression": diabetes["target"]})


def _read(path: str) -> Any:
    """The file as a pyarrow table. Raises BadInput if it cannot be read as one."""
    if (suffix := Path(path).suffix.lower()) not in (".csv", ".tsv", ".parquet"):
        raise BadInput(
            f"data.path: {path}: expected diabetes, or a .csv or .parquet file (or .tsv)"
        )
    table = (arrow.parquet if suffix == ".parquet" else arrow.csv)(path, f"data.path: {path}")
    twice = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if twice:
        raise BadInput(f"data.path: {path}: more than one column is named {twice[0]!r}")
    if not table.num_rows:
        raise BadInput(f"data.path: {path}: the table has no rows")
    return table


def _select_columns(
    path: str, table: Any, target: tuple[str, ...], columns: tuple[str, ...] | None, kind: str
) -> tuple[str, ...]:
    there = table.column_names
    shown = ", ".join(there[:SHOWN]) + (", …" if len(there) > SHOWN else "")
    problems = [
        f"data.{key}: {path} has no column {name!r}; there are {shown}"
        for key, names in (("target", target), ("columns", columns or ()))
        for name in names
        if name not in there
    ]
    if not target:
        problems.append(f"data.target: empty; expected one of {shown}")
    if kind == "classes" and len(target) > 1:
        problems.append(f"data.target: {len(target)} columns; classes are one column")
    for name in sorted(set(target) & set(columns or ())):
        problems.append(f"data.columns: {name!r} is the target too")
    columns = tuple(n for n in there if n not in target) if columns is None else columns
    if not columns:
        problems.append(f"data.columns: none left to predict from; there are {shown}")
    if problems:
        raise BadInput(*problems)
    return columns


def _matrix(path: str, table: Any, names: tuple[str, ...]) -> np.ndarray:
    """The columns stacked, float64 [N, F]. Raises BadInput with the errors of all columns."""
    columns, problems = [], []
    for name in names:
        try:
            columns.append(_numbers(path, table, name))
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(*problems)
    return np.stack(columns, axis=1)


def _numbers(path: str, table: Any, name: str) -> np.ndarray:
    """A column as float64 [N]. Raises BadInput for text and for missing or non-finite values."""
    import pyarrow

    column = table.column(name)
    if pyarrow.types.is_boolean(column.type):
        column = column.cast("int8")
    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
        row, first = next(
            ((i, v) for i, v in enumerate(column.to_pylist()) if v is not None and not _number(v)),
            (0, None),
        )
        raise BadInput(
            f"data.path: {path}: column {name!r} holds {column.type} ({first!r}), expected "
            f"numbers; the first that is none is in row {row + 1}: correct it, or name the columns "
            "to use in data.columns"
        )
    values = column.to_numpy().astype(np.float64)
    _check_complete(path, name, ~np.isfinite(values))
    if (far := np.abs(values) > LARGEST).any():
        row = int(np.argmax(far))
        raise BadInput(
            f"data.path: {path}: column {name!r} holds {values[row]:g} in row {row + 1}; expected "
            f"at most {LARGEST:g}, since the square of it must be a float32"
        )
    return values


def _number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _labels(path: str, table: Any, name: str) -> list[Any]:
    values = labels.stripped(path, f"column {name!r}", table.column(name).to_pylist())
    _check_complete(path, name, np.array([v is None or v != v for v in values]))
    return values


def _classes(path: str, table: Any, name: str) -> tuple[np.ndarray, list[str]]:
    values = _labels(path, table, name)
    try:
        names = sorted(set(values))
    except TypeError:
        names = []
    if len(names) < 2:
        raise BadInput(f"data.target: column {name!r} of {path} has no two classes")
    number = {label: i for i, label in enumerate(names)}
    return np.array([number[v] for v in values]), [str(label) for label in names]


def _check_complete(path: str, name: str, missing: np.ndarray) -> None:
    if missing.any():
        raise BadInput(
            f"data.path: {path}: column {name!r} has {missing.sum()} missing or infinite values, "
            f"the first in row {int(np.argmax(missing)) + 1}; fill or remove those rows"
        )


def _row_hashes(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    """The hash of the content of every row, by which some are held out."""
    rows = zip(x, np.asarray(y, np.float64))
    return [bytes.fromhex(files.digest(a.tobytes(), b.tobytes())) for a, b in rows]


def _standardize(values: np.ndarray, heldout_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values − mean) / std, both over the training rows, and the std (1 for a constant column)."""
    scale = values[~heldout_mask].std(axis=0)
    return _standardized_as(values, values[~heldout_mask]), np.where(scale > 0, scale, 1.0)
