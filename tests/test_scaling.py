"""Fits against laws that are known, and what they say when the data cannot tell."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from research import records
from research.errors import BadInput
from research.scaling import LAWS, fit, table
from research.scaling.solve import Problem, minimise, starts

SIZES = np.array([14e3, 26e3, 42e3, 42e3, 42e3, 108e3, 179e3, 415e3, 857e3])
TRUTH = {"E": 1.4, "A": 32.0, "alpha": 0.4}


def law_at(x, E=TRUTH["E"], A=TRUTH["A"], alpha=TRUTH["alpha"]):
    return E + A / x**alpha


def rows_of(x, loss, **more):
    return [
        {"run": f"r{i}", "params": float(a), "loss": float(b), **more}
        for i, (a, b) in enumerate(zip(x, loss, strict=True))
    ]


def noisy(seed, sd=0.01, x=SIZES):
    return rows_of(x, law_at(x) * np.exp(sd * np.random.default_rng(seed).normal(size=len(x))))


@pytest.mark.parametrize("objective", ["huber_log", "mse_log", "mse"])
@pytest.mark.parametrize("truth", [TRUTH, {"E": 0.1, "A": 5.0, "alpha": 0.07}])
def test_a_law_without_noise_is_recovered_exactly(objective, truth):
    x = np.geomspace(1e4, 1e8, 12)
    document = fit("power", rows_of(x, law_at(x, **truth)), objective=objective, bootstrap=0)
    assert document["params"] == pytest.approx(truth, rel=1e-5)
    assert document["objective"] < 1e-15
    other = fit("power", rows_of(x, 1.001 * law_at(x, **truth)), objective=objective, bootstrap=0)
    assert other["params"] != pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("objective", ["huber_log", "mse_log", "mse"])
def test_the_optimum_is_not_worse_than_that_of_a_general_optimizer(objective):
    from scipy.optimize import minimize

    rows, _ = table.usable(noisy(3), ["params", "loss"])
    law = LAWS["power"]("params")
    values = table.columns(rows, ["params", "loss"])
    problem = Problem(law, law.terms(values), np.log(values["loss"]), np.ones(len(rows)), objective)
    _, ours, gradient = minimise(problem, starts(problem))
    best = ours.argmin()
    for start in starts(problem):
        found = minimize(
            lambda t: 1e6 * problem.value(t[None])[0],
            start,
            jac=lambda t: 1e6 * problem.derivatives(t[None])[1][0],
            method="BFGS",
        )
        assert ours[best] <= 1e-6 * found.fun * (1 + 1e-7)
    assert np.mean(ours <= ours[best] * (1 + 1e-8)) > 0.5
    if objective != "huber_log":
        assert gradient[best] < 1e-9


def test_derivatives_are_those_of_differences():
    law = LAWS["power"]("params")
    terms = law.terms({"params": SIZES})
    problem = Problem(law, terms, np.log(law_at(SIZES)) + 0.01, np.ones(9), "huber_log", 0.02)
    theta = np.array([[0.2, 3.0, 0.35]])
    gradient = problem.derivatives(theta)[1][0]
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-6
        slope = (problem.value(theta + step) - problem.value(theta - step))[0] / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-5)
        assert gradient[i] != pytest.approx(1.01 * slope, rel=1e-5)


def test_the_order_of_the_rows_does_not_matter():
    rows = noisy(0)
    backwards = fit("power", rows[::-1], holdout="largest")
    assert fit("power", rows, holdout="largest") == backwards
    changed = [{**rows[0], "loss": rows[0]["loss"] * 1.001}, *rows[1:]]
    assert fit("power", changed, holdout="largest") != backwards


def test_intervals_cover_on_tables_like_the_demos():
    """95 % intervals on 40 tables: at least 33 must cover (binomial, p < 0.3 %)."""
    covered = dict.fromkeys([*TRUTH, "law", "run"], 0)
    for seed in range(40):
        document = fit("power", noisy(seed), holdout="largest")
        for name, value in TRUTH.items():
            low, high = document["intervals"][name]
            covered[name] += (low or 0) <= value <= (math.inf if high is None else high)
        row = document["holdout"]["rows"][0]
        covered["law"] += row["interval"][0] <= law_at(857e3) <= row["interval"][1]
        covered["run"] += row["covered"]
    assert min(covered.values()) >= 33, covered
    assert max(covered.values()) <= 40


def test_more_noise_gives_wider_intervals():
    quiet, loud = (fit("power", noisy(1, sd), holdout="largest") for sd in (0.002, 0.02))
    width = [np.diff(d["holdout"]["rows"][0]["run_interval"])[0] for d in (quiet, loud)]
    assert 4 < width[1] / width[0] < 25


def test_a_floor_that_the_data_do_not_show_is_said_to_be_open():
    x = np.geomspace(1e4, 1e6, 8)
    loss = 20 * x**-0.2 * np.exp(0.01 * np.random.default_rng(0).normal(size=8))
    document = fit("power", rows_of(x, loss))
    assert document["identifiability"]["E"]["flag"] in ("open", "at_bound", "weak")
    assert any("E " in warning for warning in document["warnings"])
    pinned = fit("power", rows_of(x, law_at(x) + 0 * loss))
    assert pinned["identifiability"]["E"]["flag"] == "ok"


def test_a_large_table_is_bootstrapped_by_cluster():
    x = np.repeat(np.geomspace(1e4, 1e7, 40), 5)
    rng = np.random.default_rng(0)
    run_noise = np.repeat(rng.normal(size=40), 5) * 0.01  # shared by the checkpoints of a run
    rows = rows_of(x, law_at(x) * np.exp(run_noise))
    for i, row in enumerate(rows):
        row["group"] = f"run{i // 5}"
    by_run = fit("power", rows, bootstrap=200, cluster="group")
    by_row = fit("power", rows, bootstrap=200, cluster="run")
    assert "bootstrap of 200 resamples by group" in by_run["method"]
    assert by_run["standard_errors"]["alpha"] > 1.5 * by_row["standard_errors"]["alpha"]
    assert by_run == fit("power", rows, bootstrap=200, cluster="group")
    assert by_run != fit("power", rows, bootstrap=200, cluster="group", seed=1)


def test_huber_withstands_an_outlier_that_least_squares_does_not():
    x = np.geomspace(1e4, 1e7, 20)
    loss = law_at(x)
    loss[10] *= 1.5
    huber, square = (
        fit("power", rows_of(x, loss), objective=name, bootstrap=0)
        for name in ("huber_log", "mse_log")
    )
    assert huber["params"]["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.01)
    assert square["params"]["alpha"] != pytest.approx(TRUTH["alpha"], abs=0.01)


def test_seed_noise_is_the_spread_of_replicates():
    rows = noisy(0)
    document = fit("power", rows)
    losses = [row["loss"] for row in rows[2:5]]
    assert document["seed_noise"]["sd"] == pytest.approx(np.std(losses, ddof=1))
    assert document["seed_noise"]["degrees_of_freedom"] == 2
    assert fit("power", rows[:2] + rows[4:])["seed_noise"] is None


def test_rows_are_dropped_with_their_reason():
    rows = noisy(0)
    rows[0]["status"] = "failed"
    rows[1]["loss"] = math.nan
    rows[2]["loss"] = None
    document = fit("power", rows, where="params<8e5")
    reasons = {d["run"]: d["reason"] for d in document["dropped"]}
    assert reasons["r0"] == "failed"
    assert "nan" in reasons["r1"]
    assert reasons["r2"] == "no loss"
    assert reasons["r8"] == "not params<8e5"
    assert document["n_points"] == 5


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"loss": None}, {}, "0 distinct values of params"),
        ({}, {"where": "params<3e4"}, "2 distinct values of params to fit"),
        ({}, {"where": "__import__('os')"}, "expected comparisons"),
        ({}, {"where": "width<3"}, "no column 'width'; there are"),
        ({}, {"against": "width"}, "no column 'width'; there are"),
        ({"loss": "abc"}, {}, "loss is 'abc', expected a number"),
        ({}, {"objective": "huber"}, "expected one of huber_log"),
        ({}, {"holdout": "big"}, "expected comparisons"),
    ],
)
def test_bad_tables_and_options_are_told(change, options, words):
    rows = [{**row, **change} for row in noisy(0)]
    with pytest.raises(BadInput, match=words.replace("(", r"\(")):
        fit("power", rows, **options)


def test_an_unknown_law_is_told():
    with pytest.raises(BadInput, match="expected one of power"):
        fit("kaplam", noisy(0))


def test_the_command_reads_a_csv_with_other_names(tmp_path):
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["N", "val", "note"])
        writer.writerows([[row["params"], row["loss"], "=cmd"] for row in noisy(0)])
    command = [sys.executable, "-m", "experiments.fit", f"--runs={path}", f"--out={tmp_path / 'o'}"]
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "no column 'params'; there are N, note, val" in bad.stderr
    good = [*command, "--columns=params=N,loss=val", "--holdout=largest", "--predict=1e7"]
    out = subprocess.run(good, capture_output=True, text=True, check=True).stdout
    assert "was predicted as" in out
    document = json.loads((tmp_path / "o" / "fit.json").read_text())
    wanted = {"law", "n_points", "dropped", "objective", "params", "standard_errors", "intervals"}
    wanted |= {"starts", "identifiability", "certificate", "optimal", "predictions", "holdout"}
    assert wanted | {"warnings"} <= document.keys()
    assert document["predictions"][0]["params"] == 1e7
    assert (tmp_path / "o" / "loss.png").stat().st_size > 5000


def test_the_table_of_a_sweep_can_be_fitted_from_its_parquet(tmp_path):
    for i, row in enumerate(noisy(0)):
        with records.RunDirectory(tmp_path, f"run{i}") as directory:
            directory.once("config.json", {})
            directory.finish({"status": "done", **{k: row[k] for k in ("params", "loss")}})
    parquet, _ = records.write_table(tmp_path)
    names = ("params", "objective", "holdout")
    a, b = (fit("power", table.read(p), holdout="largest") for p in (tmp_path, parquet))
    assert {k: a[k] for k in names} == {k: b[k] for k in names}
