"""Tables as text: aligned columns for terminals, pipes and Markdown.

No color and no truncation, so a pipe gets what a terminal shows. Widths are terminal cells as rich
counts them: a Chinese character is two wide.
"""

from collections.abc import Collection, Sequence

from research.errors import printable

GAP = "  "


def format_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    left: Collection[str] = (),
    right: Collection[str] = (),
    markdown: bool = False,
) -> str:
    """The table, without a trailing newline.

    Every row has a cell for each heading. An int is written with commas, a float with five digits,
    None as nothing, and all else as its text; control characters become spaces. Columns whose
    cells are numbers (or None) are aligned to the right, as are those whose headings are in
    `right`; those in `left` are not. With `markdown`, the table is one of GitHub's Markdown.
    """
    cells = [[_format_cell(value) for value in row] for row in rows]
    heads = [_format_cell(heading) for heading in headings]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(heads)
    rights = [
        heading not in left and (heading in right or _is_numeric(column))
        for heading, column in zip(headings, columns, strict=True)
    ]
    if markdown:
        return _markdown(heads, cells, rights)
    return "\n".join(GAP.join(line).rstrip() for line in _aligned([heads, *cells], rights, 0))


def _markdown(heads: list[str], cells: list[list[str]], rights: Sequence[bool]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (heads, *cells)]
    first, *lines = _aligned(escaped, rights, 3)  # a rule has at least three characters
    rule = ["-" * (len(cell) - 1) + ":" if right else "-" * len(cell)
            for cell, right in zip(first, rights, strict=True)]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, rule, *lines))


def _aligned(
    lines: Sequence[Sequence[str]], rights: Sequence[bool], narrowest: int
) -> list[list[str]]:
    """The lines, every cell padded to its column's width."""
    from rich.cells import cell_len

    widths = [max(narrowest, *map(cell_len, column)) for column in zip(*lines, strict=True)]
    out = []
    for line in lines:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        padded = zip(line, gaps, rights, strict=True)
        out.append([gap + cell if right else cell + gap for cell, gap, right in padded])
    return out


def _is_numeric(column: Sequence[object]) -> bool:
    """Whether all cells are numbers or None."""
    return all(isinstance(value, int | float | None) for value in column) and not any(
        isinstance(value, bool) for value in column
    )


def _format_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return printable(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def cell(value: object) -> object:
    """A spreadsheet runs a text that begins like a formula; a quote in front makes it text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r\n") else value
