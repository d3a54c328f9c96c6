"""Rows that decide the answer are named, and outliers are neither in the law nor in its noise."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from research.errors import BadInput
from research.scaling import (
    Fit,
    Options,
    analyze,
    fit_law,
    influence,
    minima_document,
    named_law,
    split_rows,
    uncertainty,
    worlds,
)
from research.scaling.statistics import find_outliers, number_groups, pooled_sd, robust_scale

TRUTH = worlds.CHINCHILLA
KEYS = {"run", "robust_sd_off", "outlier", "without", "half_widths_moved", "decides"}


def grid(noise=0.003, seed=0, crashed=()):
    """Runs of seven sizes and four lengths; of `crashed` ones the loss is far too high."""
    rng, rows = np.random.default_rng(seed), []
    for n in np.geomspace(2e7, 1.6e9, 7):
        for d in np.geomspace(1e9, 6.4e10, 4):
            loss = TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]
            loss *= np.exp(noise * rng.standard_normal()) * (1.4 if len(rows) in crashed else 1)
            rows.append({"run": f"r{len(rows)}", "params": n, "tokens": d, "loss": float(loss)})
    return rows


def true_optimum(flops):
    return worlds.Simulator(worlds.Shape([], TRUTH, 0.001), worlds.World("")).optimum(flops)


def told(document, words):
    return [text for text in document["warnings"] if words in text]


@pytest.mark.slow
def test_one_diverged_run_among_few_is_named_with_what_it_does_to_the_answer():
    """Twin: the same table without it."""
    rows = grid()[:24]
    rows[17] = {**rows[17], "loss": 10.83}
    document = fit_law("chinchilla", rows, objective="mse_log", predict_flops=[1e23])
    first, second = document["influence"][:2]
    assert (first["run"], first["outlier"], second["outlier"]) == ("r17", True, False)
    assert first["robust_sd_off"] > 100
    n, loss = true_optimum(1e23)
    assert first["without"]["n_star"] == pytest.approx(n, rel=0.5)
    assert first["without"]["loss"] == pytest.approx(loss, rel=0.05)
    assert document["predictions"][0]["params"] != pytest.approx(n, rel=0.5)
    (words,) = told(document, "far off the law")
    assert "r17 (loss 10.83, " in words
    assert "without it: N* " in words
    sound = fit_law("chinchilla", [*rows[:17], *rows[18:]], predict_flops=[1e23])
    assert sound["options"]["objective"] == "mse_log"
    assert not told(sound, "far off the law")
    assert not any(entry["outlier"] for entry in sound["influence"])
    assert all(set(entry) >= KEYS | {"params", "tokens", "loss"} for entry in sound["influence"])


def test_a_diverged_run_among_few_does_not_move_the_law_unasked():
    """Twin: squares that are asked for, above."""
    rows = grid()[:24]
    rows[17] = {**rows[17], "loss": 10.83}
    document = fit_law("chinchilla", rows, predict_flops=[1e23])
    assert document["options"]["objective"] == "huber_log"
    assert "fitted by Huber's loss" in told(document, "far off the law")[0]
    n, loss = true_optimum(1e23)
    assert document["predictions"][0]["params"] == pytest.approx(n, rel=0.5)
    assert document["predictions"][0]["loss"] == pytest.approx(loss, rel=0.05)


def test_several_outliers_do_not_hide_each_other():
    rows = grid(crashed=(3, 12, 21))
    options = {"objective": "mse_log", "predict_flops": [1e23], "bootstrap": 0}
    document = fit_law("chinchilla", rows, **options)
    named = {entry["run"] for entry in document["influence"] if entry["outlier"]}
    assert named == {"r3", "r12", "r21"}
    (words,) = told(document, "far off the law")
    assert "without them: N* " in words


def test_what_huber_keeps_out_of_the_law_stays_out_of_the_noise_of_a_run():
    """Twin: least squares, which keeps nothing out."""
    rows = grid(crashed=(3, 8, 12, 21, 26))
    document = fit_law("chinchilla", rows, objective="huber_log", bootstrap=0)
    assert document["noise"]["value"] == pytest.approx(0.003, rel=0.4)
    assert "Huber's loss keeps them out" in told(document, "far off the law")[0]
    squares = fit_law("chinchilla", rows, objective="mse_log", bootstrap=0)
    assert squares["noise"]["value"] > 0.05


def test_a_crashed_run_that_was_held_out_is_not_covered():
    rows = [*grid(crashed=(3, 8)), *grid(seed=1)]
    rows = [{**row, "run": str(i)} for i, row in enumerate(rows)]
    largest = max(row["params"] for row in rows)
    out = [i for i, row in enumerate(rows) if row["params"] == largest]
    rows[out[0]] = {**rows[out[0]], "loss": rows[out[0]]["loss"] * 1.3}
    document = fit_law("chinchilla", rows, holdout="largest")
    covered = {row["run"]: row["covered"] for row in document["holdout"]["rows"]}
    assert not covered.pop(str(out[0]))
    assert sum(covered.values()) > len(covered) / 2


def test_noise_alone_has_hardly_any_outliers_and_a_far_row_is_one():
    rng = np.random.default_rng(0)
    for n, parameters in ((12, 3), (24, 5), (200, 5)):
        alarms = sum(find_outliers(rng.standard_normal(n), parameters)[1].any() for _ in range(500))
        assert alarms <= 5
        residuals = np.append(rng.standard_normal(n - 1), 300.0)
        assert find_outliers(residuals, parameters)[1].tolist() == [False] * (n - 1) + [True]
    assert robust_scale(3 * rng.standard_normal(20_000), 5) == pytest.approx(3, rel=0.03)
    assert not find_outliers(np.array([0.0, 1.0, 500.0]), 2)[1].any()
    assert not find_outliers(np.zeros(20), 2)[1].any()


def test_the_answer_without_a_row_is_that_of_the_table_without_it():
    rows, options = grid()[4:], {"predict_flops": [1e22]}
    document = fit_law("chinchilla", rows, **options)
    entry = document["influence"][0]
    others = fit_law("chinchilla", [r for r in rows if r["run"] != entry["run"]], **options)
    found = others["predictions"][0]
    assert entry["without"] == pytest.approx(
        {"n_star": found["params"], "loss": found["loss"]}, rel=1e-5
    )
    here = document["predictions"][0]
    assert abs(here["params"] / found["params"] - 1) > 1e-3
    low, high = here["intervals"]["params"]
    moved = abs(np.log(found["params"] / here["params"])) / np.log(high / low) * 2
    assert entry["half_widths_moved"]["n_star"] == pytest.approx(moved, rel=1e-3)


def test_of_a_large_table_the_rows_that_matter_are_among_those_that_are_left_out():
    rows = [{**row, "run": f"{k}-{row['run']}"} for k in range(3) for row in grid(seed=k)]
    options = Options(predict_flops=[1e22])
    fit = Fit(named_law("chinchilla"), split_rows(named_law("chinchilla"), rows, options), options)
    assert fit.problem.n >= influence.EXACT
    decision = influence._decision(fit, [])
    assert decision
    here = decision.values(fit.best[None])[0]
    every = np.arange(fit.problem.n)
    moves = np.abs(np.log(decision.values(influence._without_each(fit, fit.best, every)) / here))
    chosen = influence._candidates(fit, decision, np.zeros(len(every), bool))
    assert len(chosen) == influence.CANDIDATES
    for largest in np.argsort(-moves, axis=0)[:3].ravel():
        assert largest in chosen
    marked = every == np.argmin(moves.max(1))
    assert chosen[0] != np.flatnonzero(marked)[0]
    assert influence._candidates(fit, decision, marked)[0] == np.flatnonzero(marked)[0]


def test_the_decision_of_a_law_of_one_column_is_its_prediction():
    rows = [{"run": str(i), "params": n, "loss": 1.5 + 30 * n**-0.3 * (1 + 0.001 * (-1) ** i)}
            for i, n in enumerate(np.geomspace(1e5, 1e8, 8))]  # fmt: skip
    rows[7] = {**rows[7], "loss": rows[7]["loss"] * 1.2}
    document = fit_law("power", rows, predict=[1e9])
    (without,) = {tuple(entry["without"]) for entry in document["influence"]}
    assert without == ("loss",)
    assert document["influence"][0]["run"] == "7"
    assert fit_law("power", rows)["influence"][0]["run"] == "7"
    aligned = [{**row, "tokens": 20 * row["params"]} for row in rows]
    assert fit_law("chinchilla", aligned, bootstrap=0)["influence"] == []


@pytest.fixture(scope="module")
def isoflop_rows():
    return worlds.Simulator(worlds.isoflop_shape(), worlds.WORLDS["seed"]).table(0, 1)


def test_minima_are_located_again_without_each_budget(isoflop_rows):
    options = {"method": "parabola", "predict_flops": [1e22]}
    document = fit_law("isoflop", isoflop_rows, **options)
    entries = document["influence"]
    assert len(entries) == 7
    for entry in entries[:2]:
        budget = float(entry["run"].removeprefix("budget "))
        rest = [r for r in isoflop_rows if abs(r["flops"] / budget - 1) > 0.01]
        assert len(rest) < len(isoflop_rows)
        found = fit_law("isoflop", rest, bootstrap=0, **options)["predictions"][0]
        assert entry["without"]["n_star"] == pytest.approx(found["params"])
    assert not told(document, "without ")


def test_a_budget_that_decides_is_named_with_its_row(isoflop_rows):
    """Twin: the test above. A largest budget whose losses are tilted moves the optimum."""
    largest = max(row["flops"] for row in isoflop_rows)
    rows = [
        {**row, "loss": row["loss"] * (row["params"] / 3e9) ** 0.02}
        if row["flops"] == largest
        else row
        for row in isoflop_rows
    ]
    options = Options(method="parabola", predict_flops=[1e22])
    document = minima_document.fit_minima("isoflop", rows, options)
    # As narrow as the interval of a run's noise alone, so that the budget decides.
    prediction = document["predictions"][0]
    n = prediction["params"]
    prediction["intervals"] = {**prediction["intervals"], "params": [n / 1.02, n * 1.02]}
    refit = functools.partial(minima_document.fit_minima, "isoflop")
    entries, words = influence.minima_influence(rows, options, document, refit)
    assert any(text.startswith(f"without budget {largest:.4g}: N* ") for text in words)
    runs = {entry["run"] for entry in entries}
    assert runs & {row["run"] for row in rows if row["flops"] == largest}


def test_runs_on_the_envelope_and_given_optima_are_left_out_in_turn(isoflop_rows):
    document = fit_law("envelope", isoflop_rows)
    on = {minimum["run"] for minimum in document["minima"]}
    assert {entry["run"] for entry in document["influence"]} <= on
    assert len(document["influence"]) >= 3
    optima = [{"run": str(i), "params": 0.1 * c**0.5, "tokens": c**0.5 / 0.6, "flops": c}
              for i, c in enumerate(np.geomspace(1e18, 1e21, 5))]  # fmt: skip
    optima[4]["params"] *= 1.5
    assert fit_law("optima", optima)["influence"][0]["run"] == "4"


def test_an_answer_that_is_gone_without_a_row_is_no_error():
    """Three budgets: without one, the envelope and the optima have too few."""
    optima = [{"run": str(i), "params": 0.1 * c**0.5, "tokens": c**0.5 / 0.6, "flops": c}
              for i, c in enumerate(np.geomspace(1e18, 1e20, 3))]  # fmt: skip
    assert fit_law("optima", optima)["influence"] == []


def test_values_that_are_nearly_equal_are_one_group():
    assert number_groups([10.0, 1.0, 1.04, 10.2], 0.05).tolist() == [1, 0, 0, 1]
    assert number_groups([1.0, 1.06], 0.05).tolist() == [0, 1]


def test_the_noise_of_a_run_counts_weights():
    """Weights that are all equal are none."""
    law, options = named_law("chinchilla"), Options(objective="huber_log")
    fit = Fit(law, split_rows(law, grid(), options), options)
    heavy = dataclasses.replace(fit.problem, weights=100 * fit.problem.weights)
    assert uncertainty.run_noise(heavy, fit.best) == pytest.approx(
        uncertainty.run_noise(fit.problem, fit.best)
    )


def test_outliers_are_no_noise_of_a_seed():
    rng = np.random.default_rng(0)
    groups = [list(2.0 + 0.01 * rng.standard_normal(3)) for _ in range(8)]
    clean, freedom = pooled_sd(groups)
    diverged = [[*groups[0][:2], 5.0], *groups[1:]]
    found, left = pooled_sd(diverged)
    assert found == pytest.approx(clean, rel=0.3)
    assert (freedom, left) == (16, 15)
    assert pooled_sd([[groups[0][0], 5.0], *groups[1:]])[1] == 14  # which of two is not known
    loud = [[2.0, 2.3, 1.9], [3.0, 3.2, 2.9], [1.0, 1.2, 0.9]]
    assert pooled_sd(loud) == pytest.approx(
        (np.sqrt(np.mean([np.var(g, ddof=1) for g in loud])), 6)
    )
    assert pooled_sd([[1.0, 9.0]])[0] == pytest.approx(8 / np.sqrt(2))
    assert pooled_sd([[1.0]]) == (0.0, 0)


@pytest.mark.parametrize("law", ["isoflop", "chinchilla"])
def test_what_is_advised_for_groups_is_not_refused(law):
    rows = [{**row, "flops": 6 * row["params"] * row["tokens"]} for row in grid()]
    rows = [{**row, "optimizer": "muon" if i % 2 else "adamw"} for i, row in enumerate(rows)]
    with pytest.raises(BadInput) as refused:
        fit_law(law, rows)
    advice = re.findall(r"(?:--law=(\w+) )?--compare=(\w+)", str(refused.value))
    assert len(advice) == 1
    ((other, column),) = advice
    assert bool(other) == (law == "isoflop")
    found = analyze(other or law, rows, {"bootstrap": 0}, compare_by=column)
    assert found.document["compare"]["column"] == "optimizer"
