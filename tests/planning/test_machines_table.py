"""The tables of docs/machines.md are what the planner says."""

import pytest

from research.config import validation
from research.config.loading import load_config, validated
from research.planning import hardware
from tools import machines_table as tool


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(page, device):
    """The rows of the table under the heading of `device`, without head and rule."""
    lines = page.partition(f"### {device.upper()}\n\n")[2].partition("\n\n")[0].splitlines()
    return [cells(line) for line in lines if line.startswith("|")][2:]


@pytest.mark.parametrize("device", ["h100", "a100"])
def test_the_page_holds_what_is_planned(device, monkeypatch):
    config, _ = load_config("configs/lm_transformer.py")
    config, _ = validation.override(config, tool.CONFIG)
    monkeypatch.setattr(tool, "SIZES", (125e6,))
    monkeypatch.setattr(tool, "COUNTS", (8, 64))
    table = tool.machines_table(validated(config), hardware.machine_named(device))
    rows = [cells(line) for line in table.splitlines()][2:]
    page = section(tool.PAGE.read_text(), device)
    assert len(page) == 24
    assert rows == page[:2]
    assert rows != page[2:4]  # the twin


def test_one_table_is_replaced_and_nothing_else():
    before = tool.PAGE.read_text()
    after = tool.with_table(before, "a100", "| a |\n|---|\n| new |")
    assert section(after, "a100") == [["new"]]
    assert section(after, "h100") == section(before, "h100")
    assert len(before.splitlines()) - len(after.splitlines()) == 26 - 3
    with pytest.raises(LookupError, match="### B52"):
        tool.with_table(before, "b52", "")
