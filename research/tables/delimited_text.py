"""Tables as text: whatever encoding, separator, comments and title lines a spreadsheet, a tracker
or a person wrote. What was not plain is noted, so that nobody is surprised.
"""

import ast
import codecs
import csv
import io
import itertools
import json
import re
from typing import NamedTuple

from research.errors import BadInput, first_line
from research.tables.numbers import parse_any_number
from research.tables.states import is_missing, is_no_number

COMMENT = re.compile(r"\s*(?:#|%|//)")
_RULE = re.compile(r"\s*\|?[\s:|+=-]+\|?\s*")  # under the header of a table in Markdown
_SEP = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)  # what Excel reads and writes first
_CELL_ERRORS = ("#n/a", "#na", "#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


# How files begin that are no tables, whatever their names say.
_OTHERS = (
    (b"PK\x03\x04", "a spreadsheet or an archive under another name; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet under another name; save the sheet as CSV"),
    (b"PAR1", "a parquet file under another name; call it .parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS; `git lfs pull` gets the file itself"),
    (b"<!doctype html", "a page of HTML, perhaps of a login, not the table itself"),
    (b"<html", "a page of HTML, perhaps of a login, not the table itself"),
)
_LATEX = re.compile(r"\s*\\(?:begin\{|toprule|midrule|hline)|[^&]+&.*\\\\\s*(?:\\hline)?\s*")
_MOST_CELL = 1 << 16  # characters of a cell that holds an object


class Sheet(NamedTuple):
    header: list[str]
    rows: list[list[str]]
    lines: list[int]  # of the file, where each row begins
    notes: list[str]


def decode(raw: bytes, what: str) -> tuple[str, list[str]]:
    """The text of a file, and what there is to say of its encoding: UTF-8, UTF-16 and UTF-32 by
    their mark (UTF-16 also without), else Windows-1252. Raises BadInput, beginning with `what`, for
    bytes that are no text."""
    notes = []
    begins = raw[:64].lstrip().lower()
    for mark, words in _OTHERS:
        if begins.startswith(mark.lower()):
            raise BadInput(f"{what}: {words}")
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "")
    if not encoding and (zeros := raw[:4096].count(0)):
        sample = raw[:4096]
        if zeros < 0.3 * len(sample):
            raise BadInput(f"{what}: holds bytes of 0: it is no text")
        encoding = "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be"
    if encoding not in ("", "utf-8"):
        notes.append(f"the file is in {encoding.upper()}, not UTF-8, and was read as such")
    try:
        return raw.decode(encoding or "utf-8").removeprefix("\ufeff"), notes
    except UnicodeDecodeError as error:
        if encoding:
            raise BadInput(f"{what}: not a table in {encoding.upper()}: {error.reason}") from error
        at = raw.count(b"\n", 0, error.start) + 1
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}: not a CSV in UTF-8 or Windows-1252: line {at}") from error
    if any(ord(c) < 32 and c not in "\t\r\n\f\v" for c in text):
        raise BadInput(f"{what}: not a CSV in UTF-8 or Windows-1252: line {at}")
    shown = next(line for line in text.splitlines() if not line.isascii())[:60]
    return text, [f"the file is not in UTF-8; it was read as Windows-1252: line {at}, {shown!r}"]


def sheet(text: str, what: str, separator: str = "") -> Sheet:
    """The cells of a table with a header. Comment lines, lines above the header that hold a single
    cell, and rules of Markdown are left out and noted.

    `separator`: by default what the header has most of, of , ; tab and |, else white space. Raises
    BadInput, beginning with `what`, for rows that are longer or shorter than the header.
    """
    # Not splitlines: a cell may hold U+2028, and a line ends in what ends one of a file.
    lines: list[str] = re.split(r"\r\n|\r|\n", text)
    notes: list[str] = []
    start = 0
    if lines and (sep := _SEP.fullmatch(lines[0])):
        separator, start = sep[1], 1
    first = next((i for i in range(start, len(lines)) if _is_content(lines[i])), None)
    if first is not None and any(map(_LATEX.fullmatch, lines[first : first + 20])):
        raise BadInput(f"{what}: a table in LaTeX; write it as CSV, with commas for &")
    if first is None:
        commented = [i for i in range(start, len(lines)) if COMMENT.match(lines[i])]
        if not commented:
            return Sheet([], [], [], notes)
        first = commented[-1]
    separator = separator or _separator(lines, first)
    cells, numbers, skipped = _cells(text, separator, start, what)
    if skipped:
        some = f"line {skipped[0] + 1}" if len(skipped) == 1 else f"{len(skipped)} lines"
        notes.append(f"{some} of comments left out")
    header, title = _header_at(cells)
    if title:
        notes.append(
            f"{title} {'line' if title == 1 else 'lines'} above the header left out "
            f"({' '.join(cells[0]).strip()[:60]!r})"
        )
    above = [i for i in skipped if not cells or i + 1 < numbers[0]]
    if header < len(cells) and above and all(map(_is_number, cells[header])):
        named = _split(re.sub(r"^\s*(?:#|%|//)+\s*", "", lines[above[-1]]), separator)
        if len(named) == len(cells[header]):  # "# params,tokens,loss", as numpy writes it
            notes[:1] = [f"line {above[-1] + 1} is a comment and was read as the header"]
            return _checked(named, cells[header:], numbers[header:], notes, what)
    if header >= len(cells):
        return Sheet([], [], [], notes)
    if separator == "|" and (end := _end_of_table(cells, header)) < len(cells):
        notes.append(f"line {numbers[end]} on is no row of the first table, and was left out")
        cells, numbers = cells[:end], numbers[:end]
    return _checked(cells[header], cells[header + 1 :], numbers[header + 1 :], notes, what)


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not COMMENT.match(line)


def _separator(lines: list[str], first: int) -> str:
    """What the header has most of; the header is the first line that has any, as far as the title
    lines above it may reach."""
    for line in lines[first : first + 20]:
        if COMMENT.match(line) and line is not lines[first]:
            continue
        bare = re.sub(r"\"[^\"]*\"", "", line)
        if most := max(",;\t|", key=bare.count) if any(c in bare for c in ",;\t|") else "":
            return most
    content = [line.split() for line in lines[first : first + 50] if _is_content(line)]
    same = len(content) > 1 and {len(words) for words in content} == {len(content[0])}
    return " " if same and len(content[0]) > 1 else ","


def _split(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.split()
    (cells,) = csv.reader([line], delimiter=separator)
    return [cell.strip() for cell in cells]


def _cells(
    text: str, separator: str, start: int, what: str
) -> tuple[list[list[str]], list[int], list[int]]:
    """The cells of every line but comments and empty ones, the lines they begin in (from 1), and
    the lines (from 0) of the comments."""
    cells: list[list[str]] = []
    numbers: list[int] = []
    skipped: list[int] = []
    if separator == " ":
        rows = ((i, line.split()) for i, line in enumerate(io.StringIO(text, newline="")))
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator,
                            skipinitialspace=True)  # fmt: skip
        rows = _numbered(reader)
    try:
        for number, row in rows:
            row = [cell.strip(" \t\n\v\f\r*`" if separator == "|" else None) for cell in row]
            if separator == "|" and len(row) > 2 and not row[0] and not row[-1]:
                row = row[1:-1]  # | a | b |
            if number < start or not any(row):
                continue
            if COMMENT.match(row[0]) and row[0].casefold() not in _CELL_ERRORS:
                skipped.append(number)
            elif separator != "|" or not all(_RULE.fullmatch(cell or "-") for cell in row):
                cells.append(row)
                numbers.append(number + 1)
    except csv.Error as error:
        raise BadInput(f"{what}: line {len(cells) + 1}: not a CSV: {first_line(error)}") from error
    return cells, numbers, skipped


def _numbered(reader):
    before = 0
    for row in reader:
        yield before, row
        before = reader.line_num


def _header_at(cells: list[list[str]]) -> tuple[int, int]:
    """The number of the header, and of how many titles are above it: lines of one cell, where those
    below have more."""
    for i, row in enumerate(cells[:20]):
        if sum(map(bool, row)) > 1:
            return i, i
    return 0, 0


def _end_of_table(cells: list[list[str]], header: int) -> int:
    """Where the words of a page go on below its first table: a line of one cell, or the end."""
    after = range(header + 1, len(cells))
    return next((i for i in after if len(cells[i]) == 1 < len(cells[header])), len(cells))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _checked(
    header: list[str], rows: list[list[str]], lines: list[int], notes: list[str], what: str
) -> Sheet:
    """The sheet, without columns that are empty from top to bottom; of two that have the same name
    and the same cells there is one, and others are numbered."""
    header = [re.sub(r"\s*[\r\n]+\s*", " ", name).strip() for name in header]
    if joined := _second_header(header, rows):
        both = f"lines {lines[0] - 1} and {lines[0]}"
        notes.append(f"{both} are both of the header: {', '.join(joined)}")
        header, rows, lines = joined, rows[1:], lines[1:]
    for line, row in zip(lines, rows):
        if len(row) != len(header):
            hint = ""
            if len(row) > len(header) and any(not cell.strip() for cell in row[len(header) :]):
                hint = "; cells without a header"
            elif len(row) > len(header):
                hint = "; a cell that holds the separator needs quotes"
            raise BadInput(
                f"{what}: line {line} has {len(row)} cells, the header {len(header)}{hint} "
                f"({' | '.join(row)[:80]})"
            )
    empty = {i for i, name in enumerate(header) if not name and not any(row[i] for row in rows)}
    kept = [i for i in range(len(header)) if i not in empty]
    names = {i: header[i] or f"column {i + 1}" for i in kept}
    columns: dict[str, list[int]] = {}
    for i in kept:
        of_name = columns.setdefault(names[i], [])
        if not any(all(row[i] == row[j] for row in rows) for j in of_name):
            of_name.append(i)
    taken = {*columns}
    for name, at in columns.items():
        if len(at) < 2:
            continue
        numbered = (f"{name}.{k}" for k in itertools.count(1) if f"{name}.{k}" not in taken)
        names |= dict(zip(at, numbered))
        shown = " and ".join(names[i] for i in at[:3])
        notes.append(f"{len(at)} columns are named {name!r}: they are {shown} here")
    kept = sorted(i for at in columns.values() for i in at)
    return Sheet([names[i] for i in kept], [[row[i] for i in kept] for row in rows], lines, notes)


def _second_header(header: list[str], rows: list[list[str]]) -> list[str]:
    """The names of columns where the line below the header is of it too: of words alone, above
    cells of which those in some columns are all numbers. Units, or the names below merged cells."""
    if len(rows) < 3 or any(len(row) != len(header) for row in rows[:50]):
        return []
    second, below = rows[0], rows[1:50]
    if any(parse_any_number(cell) is not None or (is_missing(cell) and cell) for cell in second):
        return []
    numeric = [i for i, cell in enumerate(second)
               if cell and all(parse_any_number(row[i]) is not None for row in below)]  # fmt: skip
    if len(numeric) < 2 or any(is_no_number(second[i]) for i in numeric):
        return []
    merged = len({*header}) < len(header)
    if not merged:  # a line of units
        return [f"{a} ({b})" if b else a for a, b in zip(header, second)]
    names, above = [], ""
    for a, b in zip(header, second):
        above = a or above
        names.append(b if b and second.count(b) == 1 else f"{above} {b}".strip() if b else a)
    return names


def objects_in_cells(rows: list[dict]) -> tuple[list[dict], list[str]]:
    """The rows with cells that hold an object, as W&B's example of an export writes config and
    summary, as objects; and the columns of these."""
    found = [
        name
        for name in (rows[0] if rows else ())
        if any(_object(row.get(name)) is not None for row in rows[:20])
    ]
    if not found:
        return rows, []
    return [
        {k: (_object(v) or None) if k in found else v for k, v in row.items()} for row in rows
    ], found


def _object(cell: object) -> dict | None:
    """The object that a cell holds in JSON, or as Python writes it."""
    if not isinstance(cell, str) or not cell.startswith("{") or len(cell) > _MOST_CELL:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, dict) else None
    return None
