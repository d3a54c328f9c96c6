"""Commands of the pages that take seconds, run as they are printed, on the runs that the gallery
lists; what they print is of the kind that the pages show."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from research.io import host
from tests.report.test_report import workdir
from tests.test_docs import commands

ROOT = Path(__file__).parents[1]
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
RUN = re.compile(r"^ *([\d,]+) +([\d.]+[kM]) +([\d.]+e\d+) +0 .* ([\d.]+) +done$", re.MULTILINE)
# (page, command, how it begins to be told from others): those that need no training.
SHOWN = [
    ("README.md", "sweep", ["--plan"]),
    ("README.md", "fit", ["--law=chinchilla"]),
    ("README.md", "train", ["--config.sizee=3"]),
    ("README.md", "plot", []),
    ("docs/figures.md", "plot", ["--figure=isoflop,frontier,curves"]),
    ("docs/figures.md", "plot", ["--figure=isoflop,ladder"]),
    ("docs/tutorial.md", "init", []),
    ("docs/tutorial.md", "fit", ["--law=isoflop"]),
]


def amount(text):
    return float(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else float(text)


def listed_runs():
    """The runs of the demo's sweep, of which the gallery has a table."""
    page = (ROOT / "docs" / "gallery.md").read_text()
    found = RUN.findall(page.partition("## One run")[0])
    return [
        {"run": f"r{i}", "status": "done", "unit": "nats per token", "loss": float(loss),
         "params": int(params.replace(",", "")), "tokens": amount(tokens), "flops": amount(flops)}
        for i, (params, tokens, flops, loss) in enumerate(found)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the pages can be followed."""
    out = tmp_path_factory.mktemp("pages")
    assert len(listed_runs()) == 20
    for runs in ("runs/demo", "mine/runs"):
        workdir(out / runs, listed_runs())
    (out / "configs").symlink_to(ROOT / "configs")
    (out / "corpus.txt").write_text("A text of one's own, said again and again.\n\n" * 2000)
    return out


def shown(page, name, words):
    """(argv, lines printed below) of the command of a page that has these words."""
    for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE):
            for found, argv in commands(f"```console\n{part}```\n"):
                if found == name and set(words) <= set(argv):
                    return argv, part.splitlines()[1:]
    raise AssertionError(f"{page} has no isoflop {name} {' '.join(words)}")


def kind(line):
    """A line without what differs from run to run: its first words, numbers and names left out."""
    plain = re.sub(r"\([^)]*\)|\b[0-9a-f]{12}\b", " ", line)
    plain = re.sub(r"±?[+-]?\d[\d,.]*(?:e[+-]?\d+)?[kMBT%]?", "#", plain)
    return " ".join(plain.split()[:4])


def missed(printed, lines):
    """The lines of a page that are of no kind that was printed."""
    seen = {kind(line) for line in printed.splitlines()}
    known = (line for line in lines if line.strip() not in ("", "…"))
    return [line for line in known if not line.startswith("warning: ") and kind(line) not in seen]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name", "words"), SHOWN)
def test_what_a_page_shows_is_what_its_command_prints(page, name, words, place):
    argv, lines = shown(page, name, words)
    done = subprocess.run(
        [*host.command(name), *argv],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    refused = any(line.startswith("error: ") for line in lines)
    assert done.returncode == (2 if refused else 0), done.stderr
    printed = done.stdout + done.stderr
    assert not missed(printed, lines), printed
    assert missed(printed, ["the best model has 3 layers, of which nobody spoke"])


def test_kinds_of_lines():
    line = "best for 1e+13 FLOPs: 187k (118k to 399k) parameters, 8.92M tokens"
    assert kind(line) == kind("best for 3e+11 FLOPs: 2.1M parameters, 8 tokens")
    assert kind(line) != kind("best at 1e+13 FLOPs: 187k parameters")
    assert missed("a b\nc", ["a b", "d", "…"]) == ["d"]
