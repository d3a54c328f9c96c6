"""A task with a metric of its own is one file and one line: its declaration shows the metric
wherever a run is shown, and one that comes from elsewhere shows nothing else."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import table as experiments_table
from research.report import build
from research.report import text as summary
from research.runs import row_checks, schema
from research.runs.schema import Column
from research.runs.table import read_table, write_table
from research.training.tasks import TASKS, task_class
from tests.report.test_report import workdir
from tests.scaling.test_scaling import noisy

pytestmark = pytest.mark.usefixtures("barely_optimized")

ROOT = Path(__file__).parents[2]
TASK = '''\
from dataclasses import dataclass

import jax.numpy as jnp

from research.runs.schema import Column
from research.training.tasks import Task


@dataclass(frozen=True)
class AbsoluteError(Task):
    """K numbers for each example, by absolute error; how many are off by less than 1."""

    targets = "numbers"
    unit = "mean absolute error"
    METRICS = (Column("within_one", heading="off by less than <1>", format=".1%"),)

    def terms(self, model, params, batch):
        error_BxK = jnp.abs(model.apply(params, batch["inputs"]) - batch["targets"])
        return {
            "loss": error_BxK.mean(-1),
            "count": jnp.ones(error_BxK.shape[:1], jnp.float32),
            "within": (error_BxK < 1).mean(-1),
        }

    def metrics(self, sums, notes):
        return {
            "loss": float(sums["loss"] / sums["count"]),
            "within_one": float(sums["within"] / sums["count"]),
        }
'''
LINE = '"absolute_error": "research.training.absolute_error:AbsoluteError",'
HEADING = "off by less than &lt;1&gt;"
COMMANDS = """
from experiments import report, table, train
changes = {"horizon.amount": 40.0, "eval.every": 20, "task.name": "absolute_error"}
flags = [f"--config.{key}={value}" for key, value in changes.items()]
for module, argv in (
    (train, ["--config=configs/linear.py", "--workdir=w", *flags]),
    (report, ["--runs=w"]),
    (table, ["--runs=w"]),
    (table, ["--runs=w/table.csv"]),
):
    module.main(argv)
    print("=" * 9)
"""


def with_task(folder, source):
    """What a copy of the project with this task in it prints and writes of a run: the last line of
    `train`, the summary, the table, the table of table.csv, and the page."""
    for name in ("research", "experiments", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    tasks = folder / "research" / "training" / "tasks.py"
    known = tasks.read_text()
    table = "TASKS = {\n"
    assert table in known
    tasks.write_text(known.replace(table, f"{table}    {LINE}\n"))
    tasks.with_name("absolute_error.py").write_text(source)
    command = [sys.executable, "-c", COMMANDS]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    trained, report, *tables = ended.stdout.split("=" * 9 + "\n")[:4]
    return [trained.splitlines()[-2], report, *tables, (folder / "w/report.html").read_text()]


def test_a_metric_is_shown_by_one_declaration_beside_its_task(tmp_path):
    assert len(TASK.splitlines()) + len(LINE.splitlines()) < 40
    line, report, table, table_of_file, page = with_task(tmp_path, TASK)
    (row,) = read_table(tmp_path / "w")
    assert 0 < row["within_one"] < 1
    share = f"{row['within_one']:.1%}"
    assert f"mean absolute error after 40,000 examples, within_one {share}, closed_form" in line
    assert re.search(rf"loss +within_one +status\n.* {row['loss']:.4f} +{share} +done\n", report)
    assert re.search(r"loss +within_one +train_loss", table)
    assert re.search(r"loss +within_one +train_loss", table_of_file)
    assert f'<th scope="col">loss</th><th scope="col">{HEADING}</th>' in page
    assert f'<td data-value="{row["within_one"]!r}">{share}</td>' in page
    with open(tmp_path / "w" / "table.csv", newline="") as file:
        (of_file,) = csv.DictReader(file)
    assert float(of_file["within_one"]) == row["within_one"]
    log = (tmp_path / "w" / "runs" / row["run"] / "metrics.jsonl").read_text()
    assert log.count('"within_one"') == 2


@pytest.mark.slow
def test_a_metric_without_a_declaration_is_in_the_record_alone(tmp_path):
    bare = re.sub(r"    METRICS = .*\n", "", TASK)
    assert bare != TASK
    for shown in with_task(tmp_path, bare):
        assert "within_one" not in shown
        assert HEADING not in shown
    (row,) = read_table(tmp_path / "w")
    assert 0 < row["within_one"] < 1
    assert "within_one" in (tmp_path / "w" / "table.csv").read_text()
    log = (tmp_path / "w" / "runs" / row["run"] / "metrics.jsonl").read_text()
    assert '"loss"' in log
    assert "within_one" not in log


SCRIPT = "<script>planted()</script>"
GOOD = {"name": "gain", "heading": SCRIPT, "format": ".2f", "shown": ["summary", "table", "page"]}


@pytest.mark.parametrize(
    "metrics",
    [
        7,
        SCRIPT,
        {"gain": GOOD},
        [GOOD] * 33,
        [SCRIPT],
        [None],
        [GOOD | {"name": SCRIPT}],
        [GOOD | {"name": "x" * 41}],
        [GOOD | {"name": "loss"}],
        [GOOD | {"name": "metrics"}],
        [GOOD | {"name": ["gain"]}],
        [GOOD | {"format": "0>999999999"}],
        [GOOD | {"format": [".2f"]}],
        [GOOD | {"format": "{0.__class__}"}],
        [GOOD | {"heading": "\x1b[2Jgain"}],
        [GOOD | {"heading": "gain\nloss"}],
        [GOOD | {"heading": "x" * 41}],
        [GOOD | {"heading": {}}],
        [GOOD | {"axis": 3}],
        [GOOD | {"kind": "text"}],
        [GOOD | {"kind": ["number"]}],
        [GOOD | {"shown": "page"}],
        [GOOD | {"shown": ["page", SCRIPT]}],
        [GOOD | {"shown": [[]]}],
        [GOOD | {"__class__": "os.system"}],
    ],
    ids=range(25),
)
def test_an_invalid_declaration_makes_its_run_a_failed_one(metrics, tmp_path, capsys):
    row = {"status": "done", "loss": 1.0, "gain": 0.5}
    assert row_checks.row_problem(row | {"metrics": [GOOD]}) is None  # the twin
    assert (problem := row_checks.row_problem(row | {"metrics": metrics}))
    assert problem.startswith("metrics: ")
    workdir(tmp_path, [noisy(0)[0] | row | {"metrics": metrics}])
    (damaged,) = read_table(tmp_path)
    assert (damaged["status"], "gain" in damaged) == ("failed", False)
    write_table(tmp_path)
    assert experiments_table.main([f"--runs={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "result.json: metrics: " in shown
    assert "\x1b" not in shown
    assert not schema.shown_columns([{"metrics": json.dumps(metrics), "gain": 1.0}], "table")


def test_a_declaration_from_elsewhere_is_text_on_the_page(tmp_path):
    rows = [row | {"gain": i / 8, "metrics": [GOOD]} for i, row in enumerate(noisy(0))]
    del rows[0]["metrics"]  # nothing says that it holds a number
    rows[0]["gain"] = SCRIPT
    result = build.write_report(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    assert ">&lt;script&gt;planted()&lt;/script&gt;</th>" in page
    assert ">&lt;script&gt;planted()&lt;/script&gt;</td>" in page
    assert ' data-value="0.25">0.25</td>' in page
    assert "<script>planted" not in page
    assert "gain" in summary.text_summary(result)
    wrong = {"status": "done", "loss": 1.0, "gain": "much", "metrics": [GOOD]}
    assert row_checks.row_problem(wrong) == "gain is 'much', expected a number"


def test_every_declaration_of_a_task_reads_back_as_itself():
    for task in map(task_class, TASKS):
        stored = json.loads(json.dumps(schema.declaration(task.METRICS)))
        assert schema.declared_metrics({"metrics": stored}) == task.METRICS
        assert schema.declared_metrics({"metrics": json.dumps(stored)}) == task.METRICS
    with pytest.raises(ValueError, match="loss: every run has a column of this name"):
        schema.declaration([Column("loss")])
    with pytest.raises(ValueError, match="gain: kind is text, expected number"):
        schema.declaration([Column("gain", "text")])
    with pytest.raises(ValueError, match=r"gain: format is '\.9f', expected one of d, "):
        Column("gain", format=".9f")
