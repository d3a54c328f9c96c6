"""Words from elsewhere do no harm where people read them: in pages, figures, tables, terminals."""

import csv
import html
import io
import json
import re
import xml.dom.minidom

import pytest
from rich.console import Console

from research.report import build, run_table, style, text
from research.runs.directory import write_data_card
from research.runs.table import read_table, write_table
from research.sweep import watch
from tests.report.test_report import without_scripts, workdir
from tests.scaling.test_scaling import noisy

WORDS = {
    "script": "<script>alert(1)</script>",
    "end of a script": "</script><script>document.title = 'gotcha'</script>",
    "image": "<img src=x onerror=alert(1)>",
    "end of an SVG": "</text></svg><svg onload=alert(1)>",
    "end of a comment": "--><script>alert(1)</script><!--",
    "entity": "&lt;b&gt;&#x3c;",
    "formula": '=HYPERLINK("http://evil","x")',
    "command": "@SUM(1)|cmd",
    "mathematics": r"$\frac{",
    "more mathematics": r"$x$ $\undefined{y}$ $",
    "escape": "\x1b]0;owned\x07\x1b[31mred\x00",
    "lines": "a\r\n=1+1",
    "markup": "[/] [bold][link=http://evil]x[/link]",
    "vega": "datum.x == 1 ? 'a' : '`${b}`'",
    "right to left": "\u202egpj.exe",
    "long": "x" * 5000,
    "path": "../../../outside",
    "template": "{0.__class__} %s %(x)s ${HOME}",
}
FORMULA = tuple("=+-@\t\r\n")


def rows_with(words):
    """Rows of two groups whose texts are the words in turn, and whose classes are called so."""
    n = len(words)
    scores = {f"class_{kind}": [0.5] * n for kind in ("precision", "recall", "f1")}
    known = {"class_names": list(words), "accuracy": 0.5, "confusion": [[1] * n] * n, **scores}
    out = []
    for i, row in enumerate(noisy(0) * 2):
        word = words[i % n]
        texts = ("name", "task", "loss_unit", "rules", "commit", "device_kind", "optimizer", word)
        group = words[(i // 9) % n]
        more = {"flops_convention": word, "versions": dict.fromkeys(words, word), "group": group}
        out.append({**row, **dict.fromkeys(texts, word), **known, **more, "run": f"r{i}"})
    return out


def test_words_do_no_harm_in_the_report(tmp_path):
    words = [*WORDS.values()]
    rows = rows_with(words)
    rows[0] |= {"status": "failed", "loss": None}
    card = {**dict.fromkeys(words, words[0]), "source": words[0], "overlap": words[0]}
    write_data_card(tmp_path, "0" * 64, lambda: card)
    result = build.write_report(workdir(tmp_path, rows, name=words[0]))
    whole = (tmp_path / "report.html").read_text()
    page = without_scripts(whole)
    assert WORDS["end of a script"] not in whole
    assert "<b>fire" not in page  # what a run failed of
    for word in words:
        assert html.escape(word) in page or not word.isprintable()
        assert word not in page or "<" not in word
    assert not re.search("<(script|img src=x|svg onload)", page)
    for path in (tmp_path / "figures").glob("*.svg"):
        elements = xml.dom.minidom.parse(str(path)).getElementsByTagName("*")
        assert not [e for e in elements if e.tagName == "script"]
        assert not [k for e in elements for k in e.attributes.keys() if k.startswith("on")]  # noqa: SIM118
    assert not [p for p in tmp_path.rglob("*") if "outside" in str(p.relative_to(tmp_path))]
    assert "\x1b" not in text.text_summary(result)


@pytest.mark.parametrize("name", WORDS)
def test_words_do_no_harm_in_a_table(name, tmp_path):
    word = WORDS[name]
    write_table(workdir(tmp_path, rows_with([word])[:2], name=word))
    with open(tmp_path / "table.csv", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert any(word in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(FORMULA) and not _number(cell)]
    rows = read_table(tmp_path)
    names = run_table.select_columns(rows, "all")
    assert "\x1b" not in run_table.as_text(rows, names)
    shown = csv.reader(io.StringIO(run_table.as_csv(rows, names), newline=""))
    assert not [c for line in shown for c in line if c.startswith(FORMULA) and not _number(c)]
    assert json.loads(run_table.as_json(rows, names))[0]["name"] == word


def _number(cell):
    return bool(re.fullmatch(r"-?[0-9.e+-]+", cell))


@pytest.mark.parametrize("name", WORDS)
def test_words_do_no_harm_on_a_terminal(name):
    facts = dict.fromkeys(watch.FACTS, 1)
    row = watch.RunStatus("r0", facts, "failed", where=WORDS[name])
    console = Console(width=200, record=True, force_terminal=True)
    with console.capture() as shown:
        console.print(watch.status_table([row]))
    assert "\x07" not in shown.get()
    assert "http://evil\x1b" not in shown.get()
    assert "failed" in shown.get()


def test_a_label_is_short_and_plain():
    assert style.plain_label("a b") == "a b"
    assert style.plain_label("$x$\n") == r"\$x\$ "
    assert len(style.plain_label("x" * 100)) == 40
