"""Tables from elsewhere, as pyarrow reads them."""

import io
import os
from typing import Any

from research.errors import BadInput, UnsafeFile, first_line
from research.io import files


def parquet(path: str | os.PathLike[str] | bytes, what: str, nested: bool = False) -> Any:
    """The columns of a parquet file, or of its bytes, that hold numbers, words or times; others
    are left out unless `nested`. Raises BadInput, which begins with `what`, where it is no parquet
    file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with io.BytesIO(path) if isinstance(path, bytes) else files.open_regular_file(path) as raw:
            file = pyarrow.parquet.ParquetFile(raw)
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise BadInput(f"{what}: more than one column is named {twice[0]!r}")
            flat = [f.name for f in file.schema_arrow if not pyarrow.types.is_nested(f.type)]
            return file.read(columns=None if nested else flat)
    except UnsafeFile as error:
        raise UnsafeFile(f"{what}: {error}") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise BadInput(f"{what}: not a parquet file: {first_line(error)}") from error


def csv(path: str | os.PathLike[str], what: str) -> Any:
    """A CSV with a header in UTF-8, separated by what its header has most of. Raises BadInput,
    which begins with `what`, where it is none."""
    import pyarrow
    import pyarrow.csv

    try:
        with files.open_regular_file(path) as raw:
            header = raw.readline(1 << 16).decode("utf-8", "replace")
            raw.seek(0)
            options = pyarrow.csv.ParseOptions(delimiter=_delimiter(header))
            table = pyarrow.csv.read_csv(raw, parse_options=options)
            return table.rename_columns([name.strip() for name in table.column_names])
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{what}: not a table: {first_line(error)}") from error


def _delimiter(header: str) -> str:
    """Of , ; tab and |, the one that the header of a CSV has most of."""
    return max(",;\t|", key=header.count)
