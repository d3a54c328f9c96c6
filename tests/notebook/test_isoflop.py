"""The functions of the package `isoflop`: what the commands say, as tables, laws and models."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import isoflop
from experiments import fit as command
from research.io import host
from tests.scaling.test_influence import grid
from tests.scaling.test_scaling import noisy
from tools import docs

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


PLANNED, SHRUNK = str(ROOT / "configs/sweeps/mlp_params.py"), {"horizon.amount": 0.2}


def valleys():
    """Two budgets, about their optima, which predict no loss elsewhere."""
    cells = [(c, n) for c in (1e20, 4e20) for n in (2e8, 4e8, 8e8, 1.6e9, 3.2e9, 6.4e9)]
    return [{"params": n, "tokens": c / n / 6, "flops": c, "loss": 1.8 + 480 / n**0.35 + 2100 /
             (c / n / 6) ** 0.37} for c, n in cells]  # fmt: skip


@pytest.fixture(scope="module")
def law():
    return isoflop.fit(grid(), "chinchilla", predict_flops=1e21)


def test_a_law_is_what_the_command_writes(law, tmp_path, without_figures):
    (tmp_path / "runs.json").write_text(json.dumps(grid()))
    flags = [f"--runs={tmp_path / 'runs.json'}", f"--out={tmp_path / 'out'}"]
    command.main([*flags, "--law=chinchilla", "--predict_flops=1e21"])
    written = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert json.loads(law.to_json())["params"] == written["params"]
    assert law.parameters == written["params"]
    assert law.intervals == written["intervals"]
    assert law.parameters != isoflop.fit(grid()[1:], "chinchilla").parameters


def test_predictions_are_rows(law):
    (row,) = law.predict(flops=1e21)
    assert row["loss"] == pytest.approx(law.document["predictions"][0]["loss"], rel=1e-9)
    assert 6 * row["params"] * row["tokens"] == pytest.approx(1e21)
    at = law.predict(params=[row["params"], 1e9], tokens=[row["tokens"], 1e9])
    assert at[0]["loss"] == pytest.approx(row["loss"], rel=1e-9)
    assert at[0]["interval"] == pytest.approx(row["interval"], rel=1e-6)
    assert at[1]["loss"] != pytest.approx(row["loss"], rel=1e-3)
    low, high = at[0]["run_interval"]
    assert low <= at[0]["interval"][0] < at[0]["loss"] < at[0]["interval"][1] <= high


def test_a_prediction_shows_the_intervals_of_what_is_predicted_and_of_nothing_else(law):
    (row,) = law.predict(flops=1e21)
    assert row["params_interval"][0] < row["params"] < row["params_interval"][1]
    assert "params_interval" in repr(law.predict(flops=1e21))
    minima = isoflop.fit(valleys(), "isoflop").predict(flops=1e21)  # of two minima, no loss
    assert minima[0]["loss"] is None
    assert minima[0]["params_interval"] is not None
    assert "run_interval" not in repr(minima)
    assert "run_interval" in repr(law.predict(flops=1e21))


def test_a_law_shows_its_warnings_as_a_list(law):
    shown = isoflop.fit(valleys(), "isoflop")._repr_html_()
    assert "<li>" in shown
    assert "warning:" not in shown
    assert "<pre>" not in law._repr_html_()


@pytest.mark.parametrize(
    ("before", "devices"),
    [(f"import isoflop; isoflop.plan({PLANNED!r}, **{SHRUNK!r})", None),
     ("import jax; jax.devices()", 1)],
)  # fmt: skip
def test_a_sweep_may_follow_whatever_has_used_jax_in_this_process(before, devices, tmp_path):
    code = (f"{before}; import jax; from research.parallel import jax_settings; "
            "jax_settings.prepare(); print(jax.device_count())")  # fmt: skip
    known = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, text=True,
                          capture_output=True, env=known | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert int(done.stdout.split()[-1]) == (devices or host.cores())


def test_figures_can_be_changed(law, tmp_path):
    figure = law.plot()
    figure.axes[0].set_title("mine")
    figure.savefig(tmp_path / "law.pdf")
    assert (tmp_path / "law.pdf").read_bytes()[:4] == b"%PDF"
    assert set(law.figures()) > {"residuals"}
    with pytest.raises(isoflop.BadInput, match=r"no figure 'law'; there are .*residuals"):
        law.plot("law")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda law: law.predict(), "flops=1e21"),
        (lambda law: law.predict(flops=1e21, params=1e9), "expected budgets"),
        (lambda law: law.predict(params=1e9), "reads params, tokens .* tokens: missing"),
        (lambda law: law.predict(param=1e9, params=1, tokens=1), "param: no column of it"),
        (lambda law: law.predict(params=[1e9, 2e9], tokens=[1e9] * 3), "different lengths"),
        (lambda law: law.predict(params=-1, tokens=1e9), "params=-1; expected a number above 0"),
        (lambda law: law.predict(params=math.nan, tokens=1e9), "params=nan; expected a number"),
        (lambda law: law.predict(flops=[1e21, "much"]), "flops=.*; expected a number above 0"),
        (lambda law: law.predict(flops=[]), "expected a number above 0"),
        (lambda law: law.plot(width="3in"), "width: '3in'; expected a number of inches"),
        (lambda law: isoflop.plot(grid(), ["losses"]), "figure: .*; expected one of isoflop"),
        (lambda law: law.predict(flops=1e21).where(print), "expected a condition as text"),
        (lambda law: isoflop.load(3), "int is no path"),
        (lambda law: isoflop.fit(grid(), holdot="largest"), "did you mean 'holdout'"),
        (lambda law: isoflop.fit(grid(), "chinchila"), "expected one of auto"),
        (lambda law: isoflop.fit(3), "int is no table"),
        (lambda law: isoflop.load("nothing.csv"), "no such file"),
        (lambda law: isoflop.plan(ROOT / "configs/sweeps/mlp_params.py", sizee=1), "sizee"),
        (lambda law: law.predict(flops=1e21).curves(), "of no workdir"),
    ],
)
def test_bad_input_is_refused_with_a_reason(ask, words, law):
    with pytest.raises(isoflop.BadInput, match=words):
        ask(law)


def test_predictions_take_numbers_as_people_write_them_and_one_for_all(law):
    same = law.predict(params=[1e9, 2e9], tokens=[3e10, 3e10])["loss"]
    assert law.predict(params=[1e9, 2e9], tokens=3e10)["loss"] == same
    assert law.predict(params=np.array([1e9, 2e9]), tokens="30B")["loss"] == same
    assert law.predict(params=[1e9, 2e9], tokens=4e10)["loss"] != same


def test_a_file_of_text_has_columns_of_numbers(law, tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(grid())
    frame["run"], frame["digest"], frame["size"] = "1", "0123", "20M"
    frame["accuracy"] = [0.5, *[None] * (len(frame) - 1)]
    frame.to_csv(tmp_path / "runs.csv", index=False)
    table = isoflop.load(tmp_path / "runs.csv")
    assert table["loss"] == [row["loss"] for row in grid()]
    assert table["accuracy"][:2] == [0.5, None]
    assert [table[0][name] for name in ("run", "digest", "size")] == ["1", "0123", "20M"]
    assert table.to_pandas()["loss"].dtype == float
    assert isoflop.fit(table, "chinchilla").parameters == law.parameters
    (tmp_path / "runs.csv").write_text((tmp_path / "runs.csv").read_text() + "1,\n")
    with pytest.raises(isoflop.BadInput, match=f"line {len(grid()) + 2}"):
        isoflop.fit(isoflop.load(tmp_path / "runs.csv"), "chinchilla")


def test_a_data_frame_is_a_table(law):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(grid())
    frame["accuracy"] = np.nan  # missing, and no zero
    assert isoflop.fit(frame, "chinchilla").parameters == law.parameters
    frame["loss"] *= 1.1
    assert isoflop.fit(frame, "chinchilla").parameters != law.parameters


def test_a_table_is_rows_columns_and_what_is_shown(tmp_path):
    rows = [{**r, "name": "<b>", "flops": 2e11, "secret": None} for r in noisy(0)]
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    table = isoflop.load(tmp_path / "runs.json")
    assert len(table) == len(rows)
    assert table["loss"] == [r["loss"] for r in rows]
    assert table[0]["loss"] == rows[0]["loss"]
    assert [row["loss"] for row in table[2:4]] == [r["loss"] for r in rows[2:4]]
    middle = sorted(r["params"] for r in rows)[len(rows) // 2]
    small = table.where(f"params<{middle!r}")
    assert 0 < len(small) < len(table)
    assert max(small["params"]) < middle
    assert "2e11" in repr(table)
    assert "200B" not in repr(table)
    shown = isoflop.load(tmp_path / "runs.json", columns={"group": "name"})._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        table["los"]
    with pytest.raises(KeyError, match="columns are the names"):
        table["zzz"]


def test_nothing_of_jax_is_loaded_for_a_law(tmp_path):
    (tmp_path / "runs.json").write_text(json.dumps(grid()))
    code = (
        "import sys, isoflop; assert 'numpy' not in sys.modules; "
        "isoflop.fit('runs.json', 'chinchilla', bootstrap=0); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


# Runs a notebook as Jupyter does: cells in one namespace, and what the last line of each is, shown.
RUNNER = """
import ast, json, sys

shown, space = [], {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] != "code":
        continue
    assert not cell["outputs"]
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, cell["id"], "exec"), space)
    if last:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), space)
        shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
assert any("<table" in text for text in shown), shown
exec(sys.stdin.read(), space)
"""
ASKED = """
assert runs["status"] == ["done"] * len(runs)
logits = model.logits("def ")
assert logits.shape == (4, 256)
assert (logits == model.logits(list(b"def "))).all()
assert abs(logits - model.logits("abc ")).max() > 1e-3
try:
    model.logits([256])  # the twin is 255
except isoflop.BadInput as error:
    assert "expected ids below 256" in str(error), error
else:
    raise AssertionError("logits of a token that is none")
assert model.logits([255]).shape == (1, 256)
greedy = model.generate("def ", tokens=1, temperature=0.0)
assert greedy == "def " + model.decode([int(logits[-1].argmax())])
"""


def test_the_notebook_is_the_page():
    page = (ROOT / "docs" / "notebook.md").read_text()
    assert docs.notebook(page) == NOTEBOOK.read_text(), "python -m tools.docs --notebook"
    assert docs.notebook(page.replace("isoflop.plan", "isoflop.sweep")) != NOTEBOOK.read_text()
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.strip() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


@pytest.mark.slow
def test_the_page_can_be_followed(tiny, tmp_path):
    """In a folder with the configs and a language model, cell after cell."""
    from research.runs.directory import RunDirectory
    from research.training.loop import train_run
    from research.training.make_run import make_run

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    run = make_run(tiny())
    with RunDirectory(tmp_path / "runs" / "demo", run.id) as directory:
        train_run(run, directory)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUNNER, str(NOTEBOOK)]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, input=ASKED
    )
    assert done.returncode == 0, done.stderr
    assert "def " in done.stdout
    assert (tmp_path / "law.pdf").exists()
