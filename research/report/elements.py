"""The elements of the report's page. All that comes from a workdir is escaped here."""

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence

from research.report.style import Drawing

LARGE = 120_000  # characters of an SVG
COLORS = 96
PIXELS = 4 / 3  # of CSS in a point
INTERVAL = re.compile(r"^(\S+) (\(\S+ to \S+\))$")  # 1.2 (1.1 to 1.3)
WIDE = 700  # pixels, from which a figure is scrolled on a phone, where it would be illegible


def escape(value: object) -> str:
    return html.escape(str(value))


def paragraphs(lines: Sequence[str]) -> list[str]:
    return [f"<p>{escape(line)}</p>" for line in lines]


def html_table(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    text: int = 1,
    *,
    label: str,
    values: Sequence[Sequence[object]] = (),
) -> str:
    """A table in a box that scrolls, also by keyboard; the first `text` columns are words. With
    `values`, what the cells stand for (words where some are), readers sort it by a click and filter
    it."""
    words_too = {i for row in values for i, value in enumerate(row) if isinstance(value, str)}

    def kind(i: int) -> str:
        return ' class="text"' if i < text or i in words_too else ""

    headings = "".join(
        f'<th scope="col"{kind(i)}>{escape(name)}</th>' if name else "<td></td>"
        for i, name in enumerate(head)
    )
    heading = f"<thead><tr>{headings}</tr></thead>" if any(head) else ""
    rows = []
    for number, cells in enumerate(body):
        inner = []
        spans = not values and len(cells) > 2 and not any(cells[2:])  # a reason, not a number
        for i, cell in enumerate(cells[:2] if spans else cells):
            if i == 1 and spans:
                inner.append(f'<td class="wide" colspan="{len(cells) - 1}">{escape(cell)}</td>')
                continue
            if i == 0 and not values:
                inner.append(f'<th scope="row" class="text">{escape(cell)}</th>')
                continue
            value = values[number][i] if values else None
            stands = ""
            if isinstance(value, int | float) and math.isfinite(value):
                stands = f' data-value="{float(value)!r}"'
            words = INTERVAL.sub(r"\1 <span>\2</span>", escape(cell))
            inner.append(f"<td{kind(i)}{stands}>{words}</td>")
        rows.append(f"<tr>{''.join(inner)}</tr>")
    sortable = ' class="sortable"' if values else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{sortable}>{heading}<tbody>{''.join(rows)}</tbody></table></div>"
    )


def embed_figure(drawing: Drawing) -> str:
    """A figure for the page: the SVG itself, without the XML prologue that HTML does not take; or,
    where it has so many marks that it is LARGE, the PNG in COLORS, which is smaller."""
    from PIL import Image  # matplotlib's own

    markup = drawing.svg.decode()
    if len(markup) <= LARGE:
        return markup[markup.index("<svg") :]
    raw = io.BytesIO()
    Image.open(io.BytesIO(drawing.png)).convert("RGB").quantize(COLORS).save(raw, "png")
    data = base64.b64encode(raw.getvalue()).decode()
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', markup)
    wide = f' width="{float(width[1]) * PIXELS:.0f}"' if width else ""  # as wide as the SVG was
    return f'<img alt=""{wide} src="data:image/png;base64,{data}">'


def figure_element(markup: str, caption: str, finding: str = "") -> str:
    """A figure that embed_figure made, with what it found before its caption; read out by the
    caption's first sentence."""
    spoken = escape(caption.split(". ")[0])
    found = f"<strong>{escape(finding)}</strong> " if finding else ""
    size = re.search(r'^<(?:svg|img)[^>]*? width="([\d.]+)(pt)?"', markup)
    wide = size and float(size[1]) * (PIXELS if size[2] else 1) > WIDE
    kind = 'class="drawn wide" tabindex="0"' if wide else 'class="drawn"'
    return (
        f'<figure><div {kind} role="img" aria-label="{spoken}">{markup}</div>'
        f"<figcaption>{found}{escape(caption)}</figcaption></figure>"
    )


def warnings_box(groups: Mapping[str, Sequence[str]]) -> str:
    """One box of all warnings, by what to do about them; "" without any."""
    if not groups:
        return ""
    parts = []
    for heading, lines in groups.items():
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        parts.append(f"<h3>{escape(heading)}</h3><ul>{items}</ul>")
    return f'<div class="warn">{"".join(parts)}</div>'
