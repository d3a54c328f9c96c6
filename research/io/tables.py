"""Tables from elsewhere, as pyarrow reads them, within bounds: a parquet file of a kilobyte may say
a number a billion times over, and pyarrow would believe it."""

import importlib
import os
from typing import Any

from research.errors import BadInput, UnsafeFile, first_line
from research.io import files

MOST_CELLS = 1 << 26  # of a table, once it is read
MOST_TEXT = 1 << 27  # bytes of its words, once each cell has its own
MOST_UNPACKED = 1 << 30
LARGEST_CSV = 1 << 28  # bytes
_SHARE = 1 << 16  # rows read at once


def parquet(path: str | os.PathLike[str], what: str, most: int = MOST_CELLS) -> Any:
    """The columns of a parquet file that hold numbers, words or times; nested ones are left out.

    Raises UnsafeFile where it would have more than `most` cells or MOST_TEXT bytes of words,
    BadInput where it is no parquet file; both begin with `what`.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with files.open_regular_file(path) as raw:
            file = pyarrow.parquet.ParquetFile(raw)
            schema = file.schema_arrow
            names = [field.name for field in schema if _flat(pyarrow.types, field.type)]
            words = [n for n in names if _words(pyarrow.types, schema.field(n).type)]
            twice = [name for name in schema.names if schema.names.count(name) > 1]
            if twice:
                raise BadInput(f"{what}: more than one column is named {twice[0]!r}")
            if (cells := file.metadata.num_rows * len(names)) > most:
                raise UnsafeFile(f"{what}: {cells:,} cells; expected at most {most:,}")
            if (size := _unpacked(file.metadata)) > MOST_UNPACKED:
                raise UnsafeFile(f"{what}: {size:,} bytes once it is unpacked are too many")
            return _read(what, raw, names, words)
    except UnsafeFile as error:
        raise error if str(error).startswith(what) else UnsafeFile(f"{what}: {error}") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise BadInput(f"{what}: not a parquet file: {first_line(error)}") from error


def _unpacked(metadata: Any) -> int:
    """Bytes of all pages, as the file says itself."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return sum(g.column(i).total_uncompressed_size for g in groups for i in range(g.num_columns))


def _read(what: str, raw: Any, names: list[str], words: list[str]) -> Any:
    """The table, in parts: words are read by number (each once), so that their length is known
    before each cell has its own."""
    import pyarrow
    import pyarrow.parquet

    compute: Any = importlib.import_module("pyarrow.compute")  # its functions are made on import
    raw.seek(0)
    file = pyarrow.parquet.ParquetFile(raw, read_dictionary=words)
    parts, size = [], 0
    for part in file.iter_batches(_SHARE, columns=names):
        columns = []
        for name, column in zip(part.schema.names, part.columns, strict=True):
            if pyarrow.types.is_dictionary(column.type):
                lengths = compute.binary_length(column.dictionary)
                each = lengths.take(column.indices)
                size += compute.sum(each).as_py() or 0
                if size > MOST_TEXT:
                    raise UnsafeFile(f"{what}: {name!r} holds more than {MOST_TEXT:,} bytes")
                column = column.dictionary_decode()
            columns.append(column)
        parts.append(pyarrow.table(columns, names=part.schema.names))
    return pyarrow.concat_tables(parts) if parts else file.read(columns=names)


def csv(path: str | os.PathLike[str], what: str) -> Any:
    """A CSV with a header in UTF-8, separated by what its header has most of. Raises UnsafeFile
    where it is larger than LARGEST_CSV, BadInput where it is none; both begin with `what`."""
    import pyarrow
    import pyarrow.csv

    try:
        with files.open_regular_file(path) as raw:
            if os.fstat(raw.fileno()).st_size > LARGEST_CSV:
                raise UnsafeFile(f"{what}: larger than {LARGEST_CSV} bytes")
            header = raw.readline(1 << 16).decode("utf-8", "replace")
            raw.seek(0)
            options = pyarrow.csv.ParseOptions(delimiter=files.delimiter(header))
            return pyarrow.csv.read_csv(raw, parse_options=options)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{what}: not a table: {first_line(error)}") from error


def _flat(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        return _flat(types, kind.value_type)
    known = ("is_integer", "is_floating", "is_boolean", "is_decimal", "is_temporal", "is_null")
    return _words(types, kind) or any(getattr(types, name)(kind) for name in known)


def _words(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        return _words(types, kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind)
