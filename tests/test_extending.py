"""The optimizer and the data set of docs/extending.md, each a file and a row, in a copy of the
project. Its model is run by tests/models/test_new_family.py."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
TRAIN = """
import sys, json
from experiments import train
for argv in json.loads(sys.argv[1]):
    train.main(argv)
"""


def section(heading):
    """The files that a section shows: path -> source; its row, the table's file, its last block."""
    words = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    row, table = (
        re.search(r'`(".*?": ".*?")`', words)[1],
        re.search(r"of\s`(\S+\.py)` is", words)[1],
    )
    prose, *blocks = re.split(r"```python\n(.*?)```", words, flags=re.DOTALL)
    files = {}
    for source, after in zip(blocks[::2], blocks[1::2], strict=True):
        paths = [path for path in re.findall(r"`(\w+/[\w/]+\.py)`", prose) if path != table]
        files |= dict.fromkeys(paths[-1:], source)
        prose = after
    return files, row, table, blocks[-2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    for name in ("research", "experiments", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for heading, name in (("An optimizer", "OPTIMIZERS"), ("A data set", "DATASETS")):
        files, row, table, _ = section(heading)
        for path, source in files.items():
            assert not (folder / path).exists()
            (folder / path).write_text(source)
        known = (folder / table).read_text()
        assert f"{name} = {{\n" in known
        (folder / table).write_text(known.replace(f"{name} = {{\n", f"{name} = {{\n    {row},\n"))
    (folder / "series.txt").write_text("\n".join(f"{x:.6f}" for x in np.sin(np.arange(400) / 3)))
    return folder


def trained(folder, *commands):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(commands)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    results = [json.loads(p.read_text()) for p in (folder / "w" / "runs").glob("*/result.json")]
    return done, results


def test_an_optimizer_and_a_data_set_are_a_file_and_a_row_each(copy):
    changes = ast.literal_eval(section("An optimizer")[-1])
    flags = [f"--config.optim.lr={changes['optim.lr']}"]
    flags += [f"--config.optim.optimizer={json.dumps(changes['optim.optimizer'])}"]
    base = ["--config=configs/mlp_series.py", "--workdir=w", "--config.horizon.amount=20"]
    done, results = trained(copy, base, [*base, *flags])
    assert done.returncode == 0, done.stderr
    assert len(results) == 2
    assert all(row["loss"] < 0.1 for row in results)  # a sine's variance is a half


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.data.window=0", "data.window: 0 is out of range"),
        ("--config.data.window=300", "data.window: 300; the series has 400 values"),
        ("--config.data.path=none.txt", "data.path: none.txt"),
    ],
)
def test_what_is_wrong_with_the_data_is_explained(copy, flag, words):
    done, _ = trained(copy, ["--config=configs/mlp_series.py", "--workdir=w", flag])
    assert done.returncode
    assert words in done.stderr
