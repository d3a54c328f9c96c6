"""The table of docs/machines.md is what the planner says; what compilers say in it is theirs."""

import pytest

from tools import machines_table as tool

ESTIMATED = ("target", "parameters", "batch, context", "data, fsdp, tensor", "remat", "estimate")
ESTIMATED += ("step ≥", "MFU ≤", "derived")


def table(page):
    """The rows of the table as {heading: cell}."""
    text = page.partition(tool.BEGIN)[2].partition(tool.END)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


@pytest.mark.slow
def test_the_page_holds_what_is_planned():
    """Of one row, as each is a process; what a compiler says is not asked again."""
    rows, row = table(tool.PAGE.read_text()), tool.ROWS[1]
    assert [r["target"] for r in rows] == [r.target for r in tool.ROWS]
    plan = tool.planned(row, f"--device={row.target.partition(':')[0]}", "--devices=8")
    found = dict(zip(tool.HEADINGS, tool.cells(row, plan), strict=True))
    assert {k: rows[1][k] for k in ESTIMATED} == {k: found[k] for k in ESTIMATED}
    assert {k: rows[0][k] for k in ESTIMATED} != {k: found[k] for k in ESTIMATED}  # the twin


def test_the_page_holds_what_compilers_said():
    for row in table(tool.PAGE.read_text()):
        assert float(row["live"]) <= float(row["GB"])
        assert 0.7 < float(row["estimate"]) / float(row["live"]) < 1.3
        assert row["errors"] == "0"
        near = float(row["derived"]) == pytest.approx(float(row["received"]), rel=0.05)
        assert near or row["target"].startswith("tpu")


def test_the_table_is_replaced_and_nothing_else():
    before = tool.PAGE.read_text()
    after = tool.with_table(before, "| target |\n|---|\n| new |")
    assert table(after) == [{"target": "new"}]
    assert after.partition(tool.BEGIN)[0] == before.partition(tool.BEGIN)[0]
    assert after.partition(tool.END)[2] == before.partition(tool.END)[2]
    with pytest.raises(LookupError, match="no table between"):
        tool.with_table("no page", "")
