"""Tables as text: aligned, whole, without colors."""

import subprocess
import sys

import pytest
from rich.cells import cell_len

from research.io.text_table import format_table

HEADINGS = ["run", "params", "loss", "note"]
ROWS = [["a", 1_200_000, 2.5, "x|y"], ["bb", 900, None, "\x1b[31mred\nline"], ["c", 7, 1e-7, True]]


def test_numbers_are_to_the_right_and_words_to_the_left():
    assert format_table(HEADINGS, ROWS).splitlines() == [
        "run     params   loss  note",
        "a    1,200,000    2.5  x|y",
        "bb         900         [31mred line".replace("[", " ["),
        "c            7  1e-07  True",
    ]
    turned = format_table(HEADINGS, ROWS, left=["params"], right=["run"]).splitlines()
    assert turned[1] == "  a  1,200,000    2.5  x|y"
    assert turned[2].startswith(" bb  900  ")


def test_a_table_for_markdown_has_a_rule_and_escapes_its_bars():
    assert format_table(HEADINGS[1:], [row[1:] for row in ROWS[::2]], markdown=True) == (
        "|    params |  loss | note |\n"
        "| --------: | ----: | ---- |\n"
        "| 1,200,000 |   2.5 | x\\|y |\n"
        "|         7 | 1e-07 | True |"
    )
    assert format_table(["a"], [[1]], markdown=True).splitlines()[1] == "| --: |"


def test_a_table_without_rows_is_its_headings():
    assert format_table(["run", "loss"], []) == "run  loss"
    with pytest.raises(ValueError, match="shorter"):
        format_table(["run", "loss"], [["a"]])


def test_wide_characters_take_two_cells():
    first, second, third = format_table(["name", "n"], [["模型", 1], ["abc", 22]]).splitlines()
    assert cell_len(second) == cell_len(third) == cell_len(first)
    assert len(second) < len(third)


@pytest.mark.parametrize("columns", ["20", "200"])
def test_nothing_is_cut_and_nothing_colored_whatever_the_terminal(columns):
    code = (
        "from research.io.text_table import format_table\n"
        "print(format_table(['a', 'b'], [['word ' * 40 + 'end', 1]]))"
    )
    environment = {"COLUMNS": columns, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "word end  1" in out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
