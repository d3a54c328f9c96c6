"""What docs/extending.md promises: a model is one file, one line and one config. Its code is run
here."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "extending.md").read_text()
FAMILY, CONFIG = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[:2]
(LINE,) = re.findall(r"The row is `(.*?)`", SECTION)


def test_a_family_is_one_file_one_line_and_one_config(corpus, tmp_path):
    for name in ("research", "experiments", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "research" / "models" / "bigram.py").write_text(FAMILY)
    table = tmp_path / "research" / "models" / "__init__.py"
    source = table.read_text()
    row = '    "transformer": "research.models.transformer:TransformerConfig",\n'
    assert row in source
    table.write_text(source.replace(row, f"    {LINE},\n{row}"))
    (tmp_path / "configs" / "lm_bigram.py").write_text(CONFIG)

    def train(*more):
        command = [sys.executable, "-m", "experiments.train", "--config=configs/lm_bigram.py"]
        command += [f"--config.data.path={corpus}", "--config.horizon.amount=2e5", *more]
        command += ["--config.eval.examples=64", "--workdir=w"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    bad = train("--config.model.depth=2", "--config.model.width=-1")
    assert bad.returncode == 2
    assert "model.depth: no such key" in bad.stderr
    assert "model.width: -1 is out of range" in bad.stderr
    good = train()
    assert good.returncode == 0, good.stderr
    (result,) = (tmp_path / "w" / "runs").glob("*/result.json")
    row = json.loads(result.read_text())
    assert row["params"] == 5120
    assert row["flops"] == 3 * 2 * 10 * 256 * row["tokens"]
    assert row["loss"] < 3.0
    assert len(FAMILY.splitlines()) + len(CONFIG.splitlines()) + 1 <= 60
