"""A run imports its own family and its own data set, and no other: the tables hold their names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from research.data import DATASETS
from research.models import MODELS

ROOT = Path(__file__).parents[2]
MODULES = {target.partition(":")[0] for target in (*MODELS.values(), *DATASETS.values())}
# What a run of a config needs of them: the text of others is a source of text too.
NEEDED = {
    "lm_transformer": {"models.transformer", "data.text"},
    "lm_gru": {"models.gru", "data.text"},
    "linear": {"models.linear", "data.synthetic"},
    "resnet_digits": {"models.resnet", "data.images"},
    "text_classes": {"models.transformer", "data.text_classification", "data.text"},
}
CODE = """
import json, sys
from research.config.loading import load_config, validated
from research.config.validation import override
config, _ = load_config(f"configs/{sys.argv[1]}.py")
config, problems = override(config, json.loads(sys.argv[2]))
assert not problems, problems
from research.training.make_run import make_run
make_run(validated(config))
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("name", NEEDED)
def test_a_run_imports_its_own_family_and_data_alone(name, corpus, tmp_path):
    changes = {"data.path": str(corpus)} if name.startswith("lm_") else {}
    if name == "text_classes":
        rows = [{"text": f"{label} {i} " * 40, "label": label} for i in range(99) for label in "ab"]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        changes = {"data.path": str(tmp_path / "rows.jsonl"), "data.label_field": "label"}
        changes |= {"data.field": "text", "data.examples": None, "data.classes": None}
    changes["eval.examples"] = None
    command = [sys.executable, "-c", CODE, name, json.dumps(changes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = MODULES & set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded == {f"research.{module}" for module in NEEDED[name]}
