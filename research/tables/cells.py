"""What a message says of cells that cannot be read: the first, where it stands, and the flag that
would help."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import BadInput
from research.tables.columns import name_columns
from research.tables.numbers import (
    groups_thousands,
    has_decimal_comma,
    may_be_decimal_comma,
    parse_any_number,
    with_point,
)

SHOWN = 60  # characters of a cell in a message
# A number and its error or its unit: "3.68 ± 0.02", "3.684(12)", "3.68 nats", "1.4B*";
# or the mark of a footnote.
_BEGINS = re.compile(
    r"\s*([+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?(?:[kmbgt](?![a-z]))?)\s*"
    r"((?:±|\+/?-|[(\[*†‡§¶]|[a-z]{3}).*)",
    re.IGNORECASE,
)
Rows = Sequence[Mapping[str, Any]]


def check_columns(rows: Rows, needed: Sequence[str], more: str = "") -> None:
    """Raises BadInput for columns that no row has, with the flag that may name them, and `more`."""
    missing = [name for name in needed if not any(name in row for row in rows)]
    if missing:
        from research.tables.advice import advice  # of a table that is refused alone

        help_ = "" if more else _of_shape(rows, missing) or advice(rows, missing)
        *others, last = (f"no column {name!r}" for name in missing)
        raise BadInput(*others, f"{last}; {name_columns(rows)}{help_}{more}")


def _of_shape(rows: Rows, missing: Sequence[str]) -> str:
    """What to say of a table that has runs as columns, a column for each size, a row for each
    quantity, or no header."""
    from research.tables.advice import guess_all

    names = [str(name) for name in (rows[0] if rows else ())]
    first = [str(row.get(names[0], "")).strip() for row in rows[:100]] if names else []
    found = guess_all(rows, missing)
    if not found and (long := _long_format(rows, names, missing)):
        return long
    if not found and (set(missing) <= {*first} or guess_all([dict.fromkeys(first)], missing)):
        return (
            f"; the table looks transposed, with a column for each run ({', '.join(first[:3])} are "
            "rows): a row for each run is expected (in pandas: df.set_index(df.columns[0]).T)"
        )
    sizes = [name for name in names if parse_any_number(name) is not None]
    if names and len(sizes) == len(names):
        return (
            f"; the first line is numbers alone ({', '.join(names[:3])}): a header is expected "
            "above it, with a name for each column"
        )
    if not found and len(sizes) > 2:
        return (
            f"; the table has a column for each of {', '.join(sizes[:3])}, …: a row for each run "
            "is expected, with these in a column (in pandas: df.melt)"
        )
    return ""


def _long_format(rows: Rows, names: Sequence[str], missing: Sequence[str]) -> str:
    """What to say of a table in which a column names the quantities, each of several rows."""
    from research.tables.advice import guess_all

    values = [n for n in names if all(parse_any_number(row.get(n)) is not None for row in rows)]
    for name in names:
        words = Counter(str(row.get(name)).strip() for row in rows)
        if name in values or not values or min(words.values()) < 2:
            continue
        called = guess_all([dict.fromkeys(words)], missing)
        if all(ours in words or ours in called for ours in missing):
            others = [n for n in names if n not in (name, values[-1])]
            return (
                f"; the table has a row for each of {', '.join([*words][:3])}, … ({name!r}): a row "
                f"for each run is expected, with these as columns (in pandas: df.pivot(index="
                f"{others}, columns={name!r}, values={values[-1]!r}).reset_index())"
            )
    return ""


def wrong_cell(
    rows: Rows, place: str, name: str, cells: Sequence[str], source: str | None = None
) -> str:
    """What is wrong with the first of `cells`, which are no numbers, of the column `name`, which is
    `source` in the file."""
    cell = cells[0][:SHOWN]
    called = f"{name} ({source})" if source and source != name else name
    rest = len(cells) - 1
    more = f", and {rest} more {'row is' if rest == 1 else 'rows are'} no number" if rest else ""
    if has_decimal_comma(cell):
        hint = f"--decimal_comma reads it as {with_point(cell)}"
    elif found := _BEGINS.match(cell):
        hint = (
            f"a number alone is expected, {found[1]}: put {found[2].strip()!r} into another column"
        )
    elif len(cells) == len(rows):
        hint = f"--columns={name}=… names another column; {name_columns(rows)}"
    else:
        quote = '"' if "'" in cell else "'"
        sample = f"{quote}{cell}{quote}" if cell.strip() != cell or not cell.isalnum() else cell
        hint = f'--where="{name}!={sample}" leaves such rows out'
    return f"{place}: {called} is {cell!r}, expected a number{more}; {hint}"


def check_commas(rows: Rows, places: Sequence[str], needed: Sequence[str]) -> None:
    """Raises BadInput where the commas of a needed column may be decimal ones."""
    problems = []
    for name in needed:
        cells = [row.get(name) for row in rows]
        at = next((i for i, cell in enumerate(cells) if may_be_decimal_comma(cell)), None)
        if at is not None and not any(groups_thousands(cell) for cell in cells):
            cell = str(cells[at])
            problems.append(
                f"{places[at]}: {name} is {cell!r}, which may be {with_point(cell)} or "
                f"{cell.replace(',', '')}: give --decimal_comma or --no-decimal_comma"
            )
    if problems:
        raise BadInput(*problems)
