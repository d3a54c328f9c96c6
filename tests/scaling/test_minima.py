"""Compute-optimal sizes: the frontier of a law, isoFLOP minima, the envelope; recipes compared."""

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import fit as command
from research.config.loading import load_config
from research.errors import BadInput
from research.runs.directory import RunDirectory
from research.scaling import (
    Fit,
    Options,
    analyze,
    compute_optimal,
    fit_law,
    isoflop,
    named_law,
    power_laws,
    split_rows,
)
from research.scaling.budgets import Budget, Noise, group_by_budget
from research.scaling.envelope import lower_hull
from research.scaling.flags import parse_next_config, render_sweep_config
from research.scaling.isoflop import akima_minimum, parabola_minimum
from research.tables import table

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
BUDGETS = np.geomspace(1e18, 1e21, 7)
DATA = Path(os.environ.get("ISOFLOP_DATA", Path(__file__).parents[3] / "shared" / "data"))


def loss_at(n, d, **changed):
    t = {**TRUTH, **changed}
    return t["E"] + t["A"] / n ** t["alpha"] + t["B"] / d ** t["beta"]


def best_size(c, t=TRUTH):
    g = (t["alpha"] * t["A"] / (t["beta"] * t["B"])) ** (1 / (t["alpha"] + t["beta"]))
    return g * (c / 6) ** (t["beta"] / (t["alpha"] + t["beta"]))


def iso_rows(noise=0.0, sizes=9, span=30.0, seed=0, budgets=BUDGETS, **changed):
    """Sizes spread evenly in logs over a factor `span` on each side of the best one."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in budgets:
        for n in best_size(c) * np.geomspace(1 / span, span, sizes) * 1.07:
            loss = loss_at(n, c / 6 / n, **changed) * np.exp(noise * rng.standard_normal())
            rows.append(
                {"run": f"r{len(rows)}", "flops": c, "params": n, "tokens": c / 6 / n, "loss": loss}
            )
    return rows


def quick(law, rows, **options):
    """The document without what each budget does to it, which is ten times the work."""
    return analyze(law, rows, options, checks_too=False).document


def surface(noise, seed=0):
    rows = iso_rows(noise, seed=seed)
    law = named_law("chinchilla")
    options = Options(objective="mse_log")
    return Fit(law, split_rows(law, rows, options), options)


def test_the_frontier_in_closed_form_is_what_a_search_finds():
    law = named_law("chinchilla")
    theta = law.fitted(np.array(list(TRUTH.values())))
    closed = compute_optimal.optimal_params(law, theta[None], BUDGETS)[0]
    np.testing.assert_allclose(closed, best_size(BUDGETS), rtol=1e-12)
    searched = [compute_optimal._search_optima(law, theta[None], c / 6)[0] for c in BUDGETS]
    np.testing.assert_allclose(searched, closed, rtol=1e-3)
    assert not np.allclose(searched, closed * 1.01, rtol=1e-3)
    flat = law.fitted(np.array([1.8, 480.0, 2100.0, 0.35, -0.1]))  # more data hurt: no optimum
    assert np.isnan(compute_optimal.optimal_params(law, flat[None], BUDGETS)).all()


def test_a_prediction_comes_with_what_the_choice_may_cost():
    fitted = surface(0.003)
    (p,) = compute_optimal.predict_optima(fitted, [1e22])
    for name, true in (("params", best_size(1e22)), ("tokens", 1e22 / 6 / best_size(1e22))):
        low, high = p["intervals"][name]
        assert low < true < high
    best = loss_at(best_size(1e22), 1e22 / 6 / best_size(1e22))
    assert p["intervals"]["loss"][0] < best < p["intervals"]["loss"][1]
    chosen = loss_at(p["params"], p["tokens"]) - best
    assert 0 <= chosen < 3 * p["regret"]["quantile_95"] + 1e-6
    noisier = compute_optimal.predict_optima(surface(0.03), [1e22])[0]
    assert noisier["regret"]["quantile_95"] > 5 * p["regret"]["quantile_95"]
    off = {o["factor"]: o for o in p["off_size"]}
    assert off[2.0]["loss"] > p["loss"]
    assert 0.02 < off[2.0]["wasted_flops"] < off[4.0]["wasted_flops"] < 0.9
    half = p["overtrained"][0]
    law, theta = fitted.law, fitted.best[None]
    points = np.array([half["params"], p["params"]]), np.array([half["tokens"], p["tokens"]])
    losses = compute_optimal.predict_loss(law, theta, *points)[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert half["training_flops_factor"] == pytest.approx(half["tokens"] / p["tokens"] / 2)


def test_flops_that_are_counted_otherwise_are_reported():
    rows = iso_rows(0.002)
    assert not [w for w in fit_law("chinchilla", rows)["warnings"] if "6 * params" in w]
    other = fit_law("chinchilla", [{**row, "flops": 0.7 * row["flops"]} for row in rows])
    assert any("the table's flops are 0.7 times that" in w for w in other["warnings"])


def test_both_methods_find_the_minimum_of_a_parabola_and_refuse_an_edge():
    x = np.linspace(-2, 3, 11)
    y = np.stack([(x - 0.4) ** 2, (x - 9) ** 2], axis=1)
    for locate, off in ((akima_minimum, 0.03), (parabola_minimum, 1e-9)):
        at, least = locate(x, y)
        assert at[0] == pytest.approx(0.4, abs=off)
        assert least[0] == pytest.approx(0, abs=1e-3)
        assert np.isnan(at[1])
    steep = np.where(x < 0.4, 8.0, 1.0) * (x - 0.4) ** 2  # not symmetric: a parabola is biased
    assert akima_minimum(x, steep[:, None])[0][0] == pytest.approx(0.4, abs=0.1)
    assert abs(parabola_minimum(x, steep[:, None])[0][0] - 0.4) > 0.3


def test_isoflop_minima_give_the_exponent_of_the_law():
    true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    document = quick("isoflop", iso_rows(0.0005), predict_flops=[1e22])
    assert document["params"]["params_exponent"] == pytest.approx(true, abs=0.01)
    low, high = document["optimal"]["intervals"]["params_exponent"]
    assert low < true < high
    assert set(document["methods"]) == {"akima", "parabola"}
    (p,) = document["predictions"]
    assert p["params"] == pytest.approx(best_size(1e22), rel=0.15)
    assert p["params"] * p["tokens"] * 6 == pytest.approx(1e22, rel=0.02)
    other = quick("isoflop", iso_rows(0.0005, beta=0.42, B=6700.0), predict_flops=[1e22])
    assert other["params"]["params_exponent"] != pytest.approx(true, abs=0.01)
    rows = iso_rows(0.0005)
    assert quick("isoflop", rows[::-1]) == quick("isoflop", rows)
    assert quick("isoflop", rows, seed=1) != quick("isoflop", rows)


def test_noise_comes_from_replicates_where_there_are_any():
    twice = [
        {**row, "run": f"{row['run']}-{seed}"}
        for seed in range(3)
        for row in iso_rows(0.004, seed=seed)
    ]
    document = quick("isoflop", twice)
    assert document["noise"]["source"] == "replicates"
    assert document["noise"]["value"] == pytest.approx(0.004, rel=0.2)
    assert quick("isoflop", iso_rows(), noise=0.01)["noise"]["value"] == 0.01
    single = quick("isoflop", iso_rows())
    assert any("no run was repeated" in w for w in single["warnings"])
    assert single["seed_noise"] is None
    wide, narrow = (quick("isoflop", iso_rows(), noise=s) for s in (0.01, 0.001))
    width = [np.diff(d["intervals"]["params_exponent"])[0] for d in (wide, narrow)]
    assert width[0] > 2 * width[1]


def test_the_intervals_hold_what_budgets_scatter():
    """Every budget's valley is shifted by 10 %, of which seeds do not tell."""
    true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    inside = {"shifted": 0, "narrow": 0}
    for seed in range(40):
        shifts = np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(BUDGETS)))
        rows = [
            {**row, "params": row["params"] * shift, "tokens": row["tokens"] / shift}
            for c, shift in zip(BUDGETS, shifts, strict=True)
            for row in iso_rows(0.0005, seed=seed, span=4, budgets=[c])
        ]
        document = quick("isoflop", rows, method="parabola", bootstrap=400)
        low, high = document["intervals"]["params_exponent"]
        inside["shifted"] += low < true < high
        center = document["params"]["params_exponent"]
        inside["narrow"] += abs(center - true) < (high - low) / 8  # a quarter of the interval
    assert inside["shifted"] >= 36
    assert inside["narrow"] < 30
    quiet = quick("isoflop", iso_rows(0.0005, span=4), method="parabola")
    assert document["scatter"] > 3 * quiet["scatter"]


def test_few_budgets_do_not_show_that_there_is_no_scatter():
    few = quick("isoflop", iso_rows(0.0005, span=4, budgets=BUDGETS[[0, 3, 6]]))
    many = quick("isoflop", iso_rows(0.0005, span=4))
    width = [np.ptp(d["intervals"]["params_exponent"]) for d in (few, many)]
    assert width[0] > 2 * width[1]
    two = quick("isoflop", iso_rows(0.0005, budgets=BUDGETS[[0, 6]]))
    assert any("two budgets lie on any line" in w for w in two["warnings"])


def test_nearly_equal_sizes_are_one_size():
    rows = iso_rows(0.0003, seed=3)
    twin = {**rows[30], "run": "twin", "params": rows[30]["params"] * 1.0000001}
    twin["loss"] *= 1.0007
    document = quick("isoflop", [*rows, twin], predict_flops=[1e22])
    assert any("are one size" in w for w in document["warnings"])
    alone = quick("isoflop", rows, predict_flops=[1e22])
    sizes = [d["predictions"][0]["params"] for d in (document, alone)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert not any("are one size" in w for w in alone["warnings"])
    apart = {**twin, "params": rows[30]["params"] * 1.2, "loss": twin["loss"]}
    assert not any("are one size" in w for w in quick("isoflop", [*rows, apart])["warnings"])


def test_a_minimum_below_everything_measured_is_not_believed():
    log_n = np.linspace(0, 2, 8)
    flat = np.log(2.0) + 0.001 * (log_n - 1) ** 2
    budget = Budget(1e20, log_n, -log_n, flat, np.ones(8))
    noise = Noise(1e-4, "given")
    inside = np.ones(10, bool)
    assert not isoflop._unbelievable(budget, inside, flat.min() - 2e-4, noise)
    assert "below every measured one" in isoflop._unbelievable(
        budget, inside, flat.min() - 0.01, noise
    )
    assert isoflop._unbelievable(budget, inside, -np.inf, noise)


def test_a_crashed_run_is_named_and_not_followed():
    rows = iso_rows(0.001, span=5, sizes=11)
    (index,) = [i for i, r in enumerate(rows) if r["run"] == "r49"]
    crashed = [{**r, "loss": r["loss"] * 1.3} if i == index else r for i, r in enumerate(rows)]
    document = quick("isoflop", crashed)
    assert [d["run"] for d in document["dropped"]] == ["r49"]
    assert "outlier" in document["dropped"][0]["reason"]
    clean = quick("isoflop", rows)
    assert not clean["dropped"]
    exponents = [d["params"]["params_exponent"] for d in (document, clean)]
    assert exponents[0] == pytest.approx(exponents[1], abs=0.02)


def test_without_a_law_of_their_losses_the_sizes_stay():
    few = quick("isoflop", iso_rows(0.0005, budgets=BUDGETS[:4]), predict_flops=[1e23])
    (point,) = few["predictions"]
    assert point["params"] > 0
    assert point["loss"] is None
    assert point["interval"] == [None, None]
    assert any("no loss is predicted" in w for w in few["warnings"])
    # Losses that rise with the budget have no law that anybody should believe far away.
    odd = [{**r, "loss": r["loss"] * (r["flops"] / 1e18) ** 0.1} for r in iso_rows(0.02)]
    document = quick("isoflop", odd, predict_flops=[1e24])
    assert document["predictions"][0]["loss"] is None or document["predictions"][0]["loss"] > 1


def tuned_rows(rates=(1e-4, 3e-4, 1e-3)):
    return [
        {
            **row,
            "run": f"{row['run']}-{lr}",
            "lr": lr,
            "loss": row["loss"] + 0.1 * abs(np.log(lr / 3e-4)),
        }
        for row in iso_rows(0.0003)
        for lr in rates
    ]


@pytest.mark.parametrize("law", ["isoflop", "chinchilla"])
def test_a_tuning_sweep_is_not_taken_for_seeds(law):
    document = quick(law, tuned_rows())
    assert document["seed_noise"] is None
    assert any("differ in lr" in w for w in document["warnings"])
    best = quick(law, tuned_rows(), best_of="cell")
    assert not any("differ in lr" in w for w in best["warnings"])
    assert any("the best of several is biased" in w for w in best["warnings"])
    alone = quick(law, tuned_rows([3e-4]))
    assert best["params"] == pytest.approx(alone["params"])
    seeds = [{**r, "run": f"{r['run']}{s}", "seed": s, "loss": r["loss"] * (1 + s / 1e3)}
             for r in iso_rows() for s in range(3)]  # fmt: skip
    of_seeds = quick(law, seeds)
    assert of_seeds["seed_noise"]
    assert not any("differ in" in w for w in of_seeds["warnings"])
    with pytest.raises(BadInput, match="expected cell"):
        quick(law, tuned_rows(), best_of="size")


@pytest.mark.parametrize("law", ["isoflop", pytest.param("chinchilla", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rates", "side"),
    [((3e-4, 1e-3), "smallest"), ((1e-4, 3e-4), "largest"), ((1e-4, 3e-4, 1e-3), None)],
)
def test_a_best_rate_at_the_end_of_those_tried_is_named(law, rates, side):
    document = quick(law, tuned_rows(rates), best_of="cell")
    told = [w for w in document["warnings"] if "that was tried" in w]
    assert len(told) == (side is not None)
    count = document["n_points"]
    assert all(f"lr of {count} of {count} sizes and lengths is the {side}" in w for w in told)
    assert not any("that was tried" in w for w in quick(law, tuned_rows(rates))["warnings"])


def test_a_winner_that_was_trained_again_counts_with_its_fresh_seed_alone():
    rng, rates = np.random.default_rng(3), (2e-4, 2.5e-4, 3e-4, 3.5e-4, 4e-4)
    tuned = [{**r, "seed": 0, "loss": r["loss"] * np.exp(0.02 * rng.normal())}
             for r in tuned_rows(rates)]  # fmt: skip
    winners: dict[tuple, dict] = {}
    for row in tuned:
        cell = (row["params"], row["tokens"])
        if row["loss"] < winners.get(cell, {"loss": np.inf})["loss"]:
            winners[cell] = row
    true = {row["run"]: row["loss"] for row in tuned_rows(rates)}
    again = [{**r, "run": f"{r['run']}-again", "seed": 1, "loss": true[r["run"]]}
             for r in winners.values()]  # fmt: skip
    asked = {"best_of": "cell", "predict_flops": [1e21], "bootstrap": 0}
    lucky = quick("chinchilla", tuned, **asked)
    fresh = quick("chinchilla", [*tuned, *again], **asked)
    assert fresh["n_points"] == lucky["n_points"] == len(again)
    assert {row["run"] for row in fresh["dropped"]} == {row["run"] for row in tuned}
    (low,), (right,) = ([p["loss"] for p in d["predictions"]] for d in (lucky, fresh))
    assert low < 0.99 * right  # the winner's curse
    assert not any("the best of several is biased" in w for w in fresh["warnings"])
    some = quick("chinchilla", [*tuned, *again[:-2]], **asked)
    (told,) = (w for w in some["warnings"] if "the best of several is biased" in w)
    assert "2 of the best have no second seed" in told
    # Where nothing was tuned nothing is chosen.
    seeds = [{**r, "run": f"{r['run']}{s}", "seed": s} for r in iso_rows() for s in range(2)]
    assert quick("chinchilla", seeds, **asked)["n_points"] == len(seeds)


def test_how_a_run_was_computed_is_no_setting_of_it():
    seeds = [
        {**r, "run": f"{r['run']}{s}", "seed": s, "loss": r["loss"] * (1 + s / 1e3),
         "steps_per_dispatch": 50 + s, "cores": 1 + s, "device_count": 1 + s,
         "groups": {"head": int(r["params"])}}
        for r in iso_rows() for s in range(3)
    ]  # fmt: skip
    document = quick("isoflop", seeds)
    assert document["noise"]["source"] == "replicates"
    assert not any("differ in" in w or "values of" in w for w in document["warnings"])
    batches = [{**row, "batch": 8 * (1 + row["seed"])} for row in seeds]
    assert any("differ in batch" in w for w in quick("isoflop", batches)["warnings"])


def test_a_few_replicates_are_compared_with_the_valleys():
    rows = iso_rows(0.004, seed=5, span=5)
    again = [{**r, "run": f"{r['run']}b", "loss": r["loss"] * 1.00001} for r in rows[20:23]]
    document = quick("isoflop", [*rows, *again])
    assert document["noise"]["source"].startswith("scatter about smooth valleys: replicates alone")
    assert document["noise"]["value"] > 1e-3
    honest = [{**r, "run": f"{r['run']}b", "loss": r["loss"] * 1.006} for r in rows[20:23]]
    assert quick("isoflop", [*rows, *honest])["noise"]["source"] == "replicates"


@pytest.mark.parametrize(
    ("sizes", "repeated", "by", "why"),
    [
        (4, 0, 1.0, "no run was repeated: the noise of a run is assumed"),
        (4, 1, 1.001, "too few runs are repeated: the noise of a run is assumed"),
        (5, 1, 1.001, "too few runs are repeated: the noise of a run is taken from the scatter"),
        (5, 3, 1.0, "only copies are repeated: the noise of a run is taken from the scatter"),
        (5, 3, 1.004, ""),
    ],
)
def test_why_noise_is_not_that_of_replicates_is_told(sizes, repeated, by, why):
    rows = iso_rows(0.001, sizes=sizes, budgets=BUDGETS[:3])
    again = [{**r, "run": f"{r['run']}b", "loss": r["loss"] * by} for r in rows[1 : 1 + repeated]]
    told = [w for w in quick("isoflop", [*rows, *again])["warnings"] if "the noise of a run" in w]
    assert len(told) == bool(why)
    assert all(line.startswith(why) for line in told)


def test_no_resamples_give_no_intervals():
    document = quick("isoflop", iso_rows(), bootstrap=0, predict_flops=[1e22])
    assert document["intervals"]["params_exponent"] == [None, None]
    assert document["predictions"][0]["intervals"]["params"] == [None, None]
    usual = quick("isoflop", iso_rows())["params"]["params_exponent"]
    assert document["params"]["params_exponent"] == pytest.approx(usual, abs=0.01)
    envelope = quick("envelope", iso_rows(sizes=21), bootstrap=0)
    assert envelope["standard_errors"]["params_exponent"] is None


def test_a_budget_whose_minimum_is_on_the_edge_is_dropped_with_its_reason():
    rows = [r for r in iso_rows() if r["flops"] < 9e20 or r["params"] > 2 * best_size(r["flops"])]
    document = quick("isoflop", rows)
    (dropped,) = document["dropped"]
    assert "1e+21" in dropped["run"]
    assert "smallest size" in dropped["reason"]
    assert len(document["minima"]) == len(BUDGETS) - 1
    edge = [r for r in iso_rows() if r["params"] > 2 * best_size(r["flops"])]
    with pytest.raises(BadInput, match="smallest size"):
        quick("isoflop", edge)


def test_the_formula_of_minima_says_what_compute_is():
    rows = iso_rows()
    assert quick("isoflop", rows)["formula"].endswith(", C = 6 N D")
    exact = [{**row, "flops": 1.2 * row["flops"]} for row in rows]
    assert quick("isoflop", exact)["formula"].endswith(", C the FLOPs of the table")
    assert quick("isoflop", exact, six_nd=True)["formula"].endswith(", C = 6 N D")


def test_a_budget_that_only_one_method_can_locate_is_told():
    """A valley with one wall: losses of four language models at three budgets, of which the largest
    falls steeply on one side alone."""
    sizes = (10_744, 25_328, 45_480, 70_624)
    of_budget = {
        4e10: (4.1478, 4.0705, 4.2517, 4.5153),
        1e11: (4.0059, 3.8038, 3.8145, 3.8889),
        2.5e11: (3.9789, 3.5120, 3.4944, 3.5092),
    }
    rows = [
        {"params": n, "tokens": c / 6 / n, "flops": c, "loss": loss}
        for c, losses in of_budget.items()
        for n, loss in zip(sizes, losses, strict=True)
    ]
    told = quick("isoflop", rows)["warnings"]
    (line,) = [x for x in told if x.startswith("parabola has")]
    assert line.startswith("parabola has the minima of 2 budgets, akima of 3: ")
    assert "below every measured one" in line
    assert not any("has the minima" in x for x in quick("isoflop", iso_rows())["warnings"])


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (
            iso_rows(budgets=[1e20]),
            {},
            "1 budget with at least 4 sizes; isoflop needs 2.*--law=auto fits laws",
        ),
        (iso_rows(sizes=3), {}, "no budgets with at least 4 sizes"),
        (iso_rows(), {"method": "cubic"}, "--method=cubic: expected akima or parabola"),
        (iso_rows(), {"fix": {"E": 1.0}}, "--fix: isoflop has no parameters"),
        (iso_rows(), {"noise": -1.0}, "--noise=-1.0: expected a number above 0"),
        ([{**r, "loss": math.nan} for r in iso_rows()], {}, "no budgets"),
    ],
)
def test_bad_tables_of_budgets_are_reported(rows, options, words):
    with pytest.raises(BadInput, match=words):
        quick("isoflop", rows, **options)


def test_held_out_budgets_are_predicted():
    document = quick("isoflop", iso_rows(0.0005), holdout="flops>5e20")
    (row,) = document["holdout"]["rows"]
    assert row["covered"]
    assert row["measured"] == pytest.approx(best_size(1e21), rel=0.2)
    assert row["params"] == pytest.approx(row["measured"], rel=0.2)


def test_the_hull_is_below_every_point():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 5, 200), rng.uniform(0, 1, 200)
    y = y + np.exp(-x)
    on = lower_hull(x, y)
    assert (np.diff(x[on]) > 0).all()
    assert (np.diff(y[on]) < 0).all()
    assert (np.diff(np.diff(y[on]) / np.diff(x[on])) > 0).all()
    inside = (x >= x[on][0]) & (x <= x[on][-1])
    assert (y[inside] >= np.interp(x[inside], x[on], y[on]) - 1e-12).all()
    assert (y[inside] < np.interp(x[inside], x[on], y[on]) + 0.1).any()


def test_the_envelope_gives_the_exponent_of_the_law():
    true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    document = quick("envelope", iso_rows(sizes=31))
    assert document["params"]["params_exponent"] == pytest.approx(true, abs=0.03)
    assert all(m["run"].startswith("r") for m in document["minima"])
    with pytest.raises(BadInput, match="lie on the envelope"):
        quick("envelope", iso_rows()[:1])


def test_the_envelope_of_whole_training_curves(tmp_path):
    for i, n in enumerate(np.geomspace(1e4, 1e6, 9)):
        with RunDirectory(tmp_path, f"r{i}") as directory:
            directory.write_once("config.json", {})
            d = 100 * n
            for step in (1, 4, 16, 50, 100):
                tokens = int(d * step / 100)
                loss = 1.7 + 400 / n**0.34 + 410 / tokens**0.28
                directory.append(step=step, tokens=tokens, loss=loss)
            facts = {"params": int(n), "tokens": int(d), "unique_tokens": int(d), "steps": 100}
            facts |= {"flops": 6 * n * d, "flops_6nd": 6 * n * d, "flops_convention": "x"}
            directory.write_result({"status": "done", "reason": "", "loss": loss, **facts})
    rows = table.read_runs(tmp_path, curves=True)
    assert len(rows) == 45
    assert all(r["flops"] == pytest.approx(6 * r["params"] * r["tokens"], rel=1e-3) for r in rows)
    assert all(r["flops"] == pytest.approx(r["flops_6nd"]) for r in rows)
    pooled = quick("envelope", rows, cluster="run")
    assert pooled["n_points"] == 45
    assert len(table.read_runs(tmp_path)) == 9
    (warning,) = [w for w in fit_law("chinchilla", rows)["warnings"] if "before the end" in w]
    assert warning.startswith("36 rows")
    assert not [w for w in fit_law("power", table.read_runs(tmp_path))["warnings"] if "before" in w]
    (tmp_path / "a.csv").write_text("params\n1\n")
    with pytest.raises(BadInput, match="--curves"):
        table.read_runs(tmp_path / "a.csv", curves=True)


def test_budgets_that_are_met_roughly_are_the_same():
    rng = np.random.default_rng(0)
    rough = [{**r, "flops": r["flops"] * (1 + 0.01 * rng.standard_normal())} for r in iso_rows()]
    assert len(group_by_budget(rough)[0]) == len(group_by_budget(iso_rows())[0]) == len(BUDGETS)
    apart = [{**r, "flops": r["flops"] * (1 + 0.2 * (i % 2))} for i, r in enumerate(iso_rows())]
    assert len(group_by_budget(apart)[0]) > len(BUDGETS)


def test_given_optima_have_their_power_laws_by_plain_least_squares(tmp_path):
    c = np.geomspace(1e18, 1e20, 5)
    n, d = 0.3 * c**0.45, c**0.55 / 1.8
    rows = [
        {"run": str(i), "flops": a, "params": b, "tokens": e}
        for i, (a, b, e) in enumerate(zip(c, n, d))
    ]
    found = fit_law("optima", rows)["optimal"]
    assert found["params_exponent"] == pytest.approx(0.45)
    assert found["params_coefficient"] == pytest.approx(0.3)
    assert found["tokens_exponent"] == pytest.approx(0.55)
    rows[2]["params"] *= 1.1
    moved = fit_law("optima", rows, predict_flops=[1e21])
    slope = np.polyfit(np.log(c), np.log([r["params"] for r in rows]), 1)[0]
    assert moved["params"]["params_exponent"] == pytest.approx(slope)
    low, high = moved["intervals"]["params_exponent"]
    assert low < slope < high
    assert moved["predictions"][0]["params"] > 0
    with pytest.raises(BadInput, match="at least 3"):
        fit_law("optima", rows[:2])
    with pytest.raises(BadInput, match="drop_top_loss"):
        fit_law("optima", rows, drop_top_loss=1)


@pytest.mark.skipif(not (DATA / "nanochat_isoflop_optima.csv").exists(), reason="no nanochat data")
@pytest.mark.parametrize(
    ("convention", "n", "d"),
    [("kaplan", 0.524, 0.479), ("chinchilla", 0.366, 0.490), ("transformer_only", 0.681, 0.397)],
)
def test_the_exponent_depends_on_how_parameters_are_counted(convention, n, d):
    names = {"params": "params_opt", "tokens": "tokens_opt"}
    rows = table.read_runs(DATA / "nanochat_isoflop_optima.csv", names)
    found = fit_law("optima", rows, where=f"param_convention=={convention}")["params"]
    assert found["params_exponent"] == pytest.approx(n, abs=1e-3)
    assert found["tokens_exponent"] == pytest.approx(d, abs=1e-3)


# Recipes.


def two_recipes(m=1.4, noise=0.004, exponent=None):
    rows = []
    for i, group in enumerate(("adamw", "muon")):
        for row in iso_rows(noise, sizes=7, seed=i, budgets=BUDGETS[:5]):
            n, d = row["params"], row["tokens"]
            if group == "muon":
                worth = math.sqrt(m)
                changed = {} if exponent is None else {"alpha": exponent}
                row["loss"] *= loss_at(n * worth, d * worth, **changed) / loss_at(n, d)
            rows.append({**row, "run": f"{group}{row['run']}", "group": group})
    return rows


@pytest.mark.parametrize("law", ["chinchilla", "power"])
def test_a_recipe_that_needs_less_compute_is_measured(law):
    rows = two_recipes()
    if law == "power":  # at the best size of each budget
        rows = [r for r in rows if abs(math.log(r["params"] / best_size(r["flops"]))) < 0.1]
    options = {"objective": "mse_log"} | ({"against": "flops"} if law == "power" else {})
    found = analyze(law, rows, options, compare_by="group")
    section = found.document["compare"]
    assert section["reference"] == "adamw"
    needs = section["groups"]["muon"]["needs"]
    assert needs["value"] == pytest.approx(1 / 1.4, rel=0.12)
    assert needs["interval"][0] < 1 / 1.4 < needs["interval"][1]
    assert needs["interval"][1] < 1
    assert section["test"]["shared_exponents_justified"]
    assert "muon needs 0." in section["words"][0]


@pytest.mark.slow
def test_exponents_that_are_not_shared_are_noticed():
    found = analyze(
        "chinchilla", two_recipes(1.0, 0.002, 0.32), {"bootstrap": 100}, compare_by="group"
    )
    assert not found.document["compare"]["test"]["shared_exponents_justified"]
    assert "reject shared exponents" in found.document["compare"]["words"][-1]


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        ({}, "recipe", "--compare=recipe: no column 'recipe'; there are "),
        ({"group": "one"}, "group", "every row is 'one'; two groups are needed"),
    ],
)
def test_groups_that_cannot_be_compared_are_reported(change, column, words):
    rows = [{**row, **change} for row in two_recipes()]
    with pytest.raises(BadInput, match=words):
        analyze("chinchilla", rows, {}, compare_by=column)


def test_the_multiverse_shows_what_an_outlier_does():
    rows = iso_rows(0.002, sizes=5, budgets=BUDGETS[:5])
    rows[3]["loss"] *= 1.3
    found = analyze("chinchilla", rows, {"predict_flops": [1e22]}, multiverse_too=True)
    section = found.document["multiverse"]
    assert len(section["universes"]) == 16
    spread = section["spread"]["exponent"]
    assert spread["least"] < spread["median"] < spread["most"]
    by = section["by_choice"]
    true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    assert abs(by["drop_top_loss"]["1"]["exponent"] - true) < 0.02
    squares = [u for u in section["universes"] if u["objective"] == "mse_log"]
    kept = [u["exponent"] for u in squares if not u["drop_top_loss"]]
    assert max(abs(e - true) for e in kept) > 0.03
    assert section["target"].startswith("the loss predicted at 1e22")
    assert not section["failed"]


def test_a_multiverse_counts_parameters_every_way():
    rows = iso_rows(0.001, sizes=5, budgets=BUDGETS[:5])
    rows = [{**row, "params_non_embedding": row["params"] ** 1.1 / 9} for row in rows]
    found = analyze("chinchilla", rows, {}, multiverse_too=True)
    by = found.document["multiverse"]["by_choice"]["params"]
    assert by["params_non_embedding"]["exponent"] != pytest.approx(
        by["params"]["exponent"], abs=0.005
    )


# What to run next.


@pytest.mark.slow
def test_the_proposed_runs_narrow_the_prediction_as_promised():
    rows = iso_rows(0.01, sizes=5, budgets=BUDGETS[:4])
    options = {"predict_flops": [1e22], "objective": "mse_log"}
    found = analyze("chinchilla", rows, options, next_budget=3e20)
    plan = found.document["next_runs"]
    assert plan["spent"] <= 3e20
    assert plan["half_width_after"] < 0.9 * plan["half_width_before"]
    ratios = [run["tokens"] / run["params"] for run in plan["runs"]]
    seen = [row["tokens"] / row["params"] for row in rows]
    assert min(seen) <= min(ratios)
    assert max(ratios) <= max(seen)

    def width(extra):
        """The spread of the prediction over 40 worlds in which these runs were made too."""
        rng = np.random.default_rng(0)
        out = []
        for _ in range(40):
            made = [{**r, "loss": loss_at(r["params"], r["tokens"])} for r in (*rows, *extra)]
            made = [
                {**r, "run": str(i), "loss": r["loss"] * np.exp(0.01 * rng.standard_normal())}
                for i, r in enumerate(made)
            ]
            law, chosen = named_law("chinchilla"), Options(objective="mse_log", bootstrap=0)
            fitted = Fit(law, split_rows(law, made, chosen), chosen)
            out.append(fitted.law.evaluate(fitted.best[None], fitted.law.prepare(plan_at))[0][0, 0])
        return np.std(out)

    plan_at = {k: np.array([v]) for k, v in plan["target"].items()}
    before, after = width([]), width(plan["runs"])
    cheap = sorted(rows, key=lambda r: r["flops"])[: len(plan["runs"])]
    assert after < 0.9 * before
    assert after < 0.9 * width(cheap)  # as many runs of no thought do less
    promised = plan["half_width_after"] / plan["half_width_before"]
    assert after / before == pytest.approx(promised, rel=0.5)


def test_runs_that_no_budget_buys_are_reported():
    with pytest.raises(BadInput, match=r"--next_runs=1: the cheapest run .* costs"):
        analyze("chinchilla", iso_rows(0.01), {}, next_budget=1.0)
    with pytest.raises(BadInput, match="isoflop predicts no loss"):
        analyze("isoflop", iso_rows(0.01), {}, next_budget=1e20)


def test_an_answer_that_has_settled_says_stop_and_one_that_moves_says_continue():
    squares = {"objective": "mse_log", "bootstrap": 100}
    quiet = analyze("chinchilla", iso_rows(1e-4), squares, anytime=True)
    section = quiet.document["settling"]
    spent = [stage["flops_spent"] for stage in section["stages"]]
    assert spent == sorted(spent)
    assert section["stages"][-1]["runs"] == len(iso_rows())
    options = {**squares, "predict_flops": [1e30], "far": True}
    loud = analyze(
        "chinchilla", iso_rows(0.05, sizes=4, budgets=BUDGETS[:3]), options, anytime=True
    )
    assert loud.document["settling"]["suggestion"].startswith("continue")
    near = {**squares, "predict_flops": [1e21]}
    settled = analyze("chinchilla", iso_rows(0.002, sizes=25), near, anytime=True)
    assert settled.document["settling"]["suggestion"].startswith("stop")


def test_slopes_that_nothing_pins_leave_coefficients_open():
    """No draw is lost because its coefficient is beyond all numbers: that would narrow the
    exponent's interval."""
    log_c = np.log(1e21 * np.array([1.0, 1.1, 1.21]))
    wild = power_laws.least_squares(log_c, np.array([20.0, 22.0, 19.0]), log_c - 20, 400, 0)
    assert len(wild.draws) == 400
    summary = wild.summary()
    low, high = summary["intervals"]["params_exponent"]
    assert high - low > 100
    assert summary["intervals"]["params_coefficient"][1] is None
    assert summary["standard_errors"]["params_coefficient"] is None
    assert wild.predict(1e24)["intervals"]["params"][1] is None
    tame = power_laws.least_squares(log_c, log_c / 2 - 1, log_c / 2 + 1, 400, 0)
    np.testing.assert_allclose(tame.predict(1e24)["params"], 1e12 * np.exp(-1), rtol=1e-6)
    assert None not in tame.summary()["intervals"]["params_coefficient"]


# Published data, where they are at hand.


def published(name):
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not at hand; ISOFLOP_DATA may name its folder")
    return table.read_runs(DATA / name)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "least"), [(1e20, 1e21), (3e19, 3e20)])
def test_the_average_holds_published_runs_at_ten_times_the_compute(most, least):
    rows = [r for r in published("chinchilla.csv") if not most < float(r["flops"]) < least]
    document = fit_law("auto", rows, holdout=f"flops>={least}", drop_top_loss=5)
    held = document["holdout"]
    assert held["covered"] >= 0.9 * len(held["rows"])
    width = [(high - low) / 2 / row["loss"]
             for row in held["rows"] for low, high in [row["run_interval"]]]  # fmt: skip
    assert np.median(width) < 0.04
    alone = fit_law("chinchilla", rows, holdout=f"flops>={least}", drop_top_loss=5)["holdout"]
    assert alone["covered"] < 0.9 * len(alone["rows"])


def test_the_published_points_are_fitted_to_the_optimum():
    rows = published("chinchilla.csv")
    document = fit_law("chinchilla", rows, drop_top_loss=5, bootstrap=400, predict_flops=[5.76e23])
    assert document["n_points"] == 240
    assert document["objective"] <= 1.018275e-3
    wanted = {"alpha": (0.3473, 0.0005), "beta": (0.3672, 0.0008), "E": (1.8172, 0.001)}
    wanted |= {"A": (477.8, 3), "B": (2143, 15)}
    for name, (value, tolerance) in wanted.items():
        assert document["params"][name] == pytest.approx(value, abs=tolerance)
    errors = document["standard_errors"]
    for name, value in {"alpha": 0.0154, "beta": 0.0206, "E": 0.02566, "A": 124.5}.items():
        assert errors[name] == pytest.approx(value, rel=0.15)  # 400 resamples
    (p,) = document["predictions"]
    assert p["params"] == pytest.approx(73.2e9, rel=0.01)
    assert p["tokens_per_param"] == pytest.approx(17.9, abs=0.3)
    every = fit_law("chinchilla", rows, bootstrap=0)
    assert every["params"]["beta"] == pytest.approx(0.4531, abs=0.001)


def test_a_published_point_is_scored_against_the_optimum():
    rows = published("chinchilla.csv")
    point = {"E": 1.81686, "A": 482.01, "B": 2085.43, "alpha": 0.34781, "beta": 0.36583}
    scored = fit_law("chinchilla", rows, drop_top_loss=5, bootstrap=0, score=point)["score"]
    assert scored["objective"] == pytest.approx(1.0186e-3, rel=1e-3)
    assert scored["improvable"]
    assert scored["after_local_fit"] == pytest.approx(1.018274e-3, rel=1e-6)
    best = fit_law("chinchilla", rows, drop_top_loss=5, bootstrap=0)["params"]
    again = fit_law("chinchilla", rows, drop_top_loss=5, bootstrap=0, score=best)["score"]
    assert not again["improvable"]


def test_published_isoflop_exponents_are_found_in_their_order():
    rows = published("porian_rw_isoflop.csv")
    wanted = {"reproducing_kaplan": 0.835, "last_layer_flops": 0.706, "short_warmup": 0.602}
    wanted |= {"cosine_decay": 0.572, "tuned_no_decay": 0.497}
    found = []
    for setting, value in wanted.items():
        document = fit_law("isoflop", rows, where=f"setting=={setting}")
        found.append(document["params"]["params_exponent"])
        assert found[-1] == pytest.approx(value, abs=0.01)
    assert found == sorted(found, reverse=True)


def test_published_optima_give_an_exponent_for_each_way_of_counting():
    rows = published("nanochat_isoflop_optima.csv")
    for convention, (n, d) in {
        "kaplan": (0.524, 0.479),
        "chinchilla": (0.366, 0.490),
        "transformer_only": (0.681, 0.397),
    }.items():
        its = [row for row in rows if row["param_convention"] == convention]
        log = {k: np.log([float(r[k]) for r in its]) for k in ("flops", "params_opt", "tokens_opt")}
        assert np.polyfit(log["flops"], log["params_opt"], 1)[0] == pytest.approx(n, abs=0.001)
        assert np.polyfit(log["flops"], log["tokens_opt"], 1)[0] == pytest.approx(d, abs=0.001)


# The command.


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(*flags):
    argv = [sys.executable, "-m", "experiments.fit", *map(str, flags)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_writes_the_contract_and_its_figures(tmp_path):
    path = write(tmp_path / "r.csv", two_recipes(noise=0.003))
    done = run(
        f"--runs={path}", "--law=chinchilla", f"--out={tmp_path / 'o'}", "--compare=group",
        "--bootstrap=60", "--predict_flops=1e22", "--holdout=flops>9e19", "--where=params>1e6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "muon needs" in done.stdout
    assert "best for 1e22 FLOPs" in done.stdout
    text = (tmp_path / "o" / "fit.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {"optimal", "predictions", "holdout", "compare", "identifiability"} <= document.keys()
    assert {"total", "agree_fraction"} <= document["starts"].keys()
    assert {"gradient_norm", "moved"} <= document["certificate"].keys()
    names = ("contours", "frontier", "residuals", "pairs", "compare")
    for name in names:
        assert (tmp_path / "o" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "o" / f"{name}.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_proposed_runs_are_a_sweep_that_can_be_planned(tmp_path):
    rows = [
        {"run": str(i), "params": n, "flops": 6e6 * n, "loss": 1.4 + 32 / n**0.4}
        for i, n in enumerate((14e3, 26e3, 42e3, 108e3, 179e3, 415e3))
    ]
    rows[2]["loss"] *= 1.01
    path, out = write(tmp_path / "r.csv", rows), tmp_path / "o"
    flags = (f"--runs={path}", f"--out={out}", "--next_runs=1e13")
    done = run(*flags, "--next_config=configs/lm_transformer.py", "--anytime")
    assert done.returncode == 0, done.stderr
    assert "would narrow the interval at the target" in done.stdout
    proposed = json.loads((out / "fit.json").read_text())["next_runs"]["runs"]
    plan = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", f"--config={out / 'next.py'}", "--plan",
         f"--workdir={tmp_path / 'w'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert plan.returncode == 0, plan.stderr
    assert f"{len(proposed)} runs" in plan.stdout
    bad = run(*flags, "--next_config=/etc/passwd")
    assert bad.returncode == 2
    assert "expected a config, a .py or .json file" in bad.stderr


def test_proposed_runs_go_on_from_a_config_anywhere(tmp_path, monkeypatch):
    base = tmp_path / "elsewhere" / "mine.py"
    base.parent.mkdir()
    base.write_text(Path("configs/mlp_teacher.py").read_text())
    known = load_config(str(base))[0]
    document = {"next_runs": {"runs": [{"params": 1e4}, {"params": 2e4, "tokens": 1e6}]}}
    (tmp_path / "c.json").write_text(json.dumps(known))
    monkeypatch.chdir(tmp_path)
    for name in (str(base), "elsewhere/mine.py", "c.json"):
        args = argparse.Namespace(next_runs=1e9, next_config=name)
        made = tmp_path / "next.py"
        made.write_text(render_sweep_config(parse_next_config(args) or "", document))
        config, module = load_config(str(made))
        assert config == known
        points = module.sweep(config)
        assert [p["size"] for p in points] == [1e4, 2e4]
        assert points[1]["horizon.amount"] == 1e6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--law=chinchilla", "--next_runs=-1"], "--next_runs=-1.0: expected a number of FLOPs"),
        (["--next_config=configs/lm_gru.py"], "--next_config: for the runs that --next_runs"),
        (["--law=kaplam"], "--law=kaplam: expected one of auto, power"),
        (["--law=chinchilla", "--fix=gamma=1"], "--fix: chinchilla has no parameter 'gamma'"),
        (["--law=chinchilla", "--fix=alpha"], "--fix=alpha: expected NAME=VALUE"),
        (["--law=chinchilla", "--fix=A=-1"], "--fix=A=-1: A is positive"),
        (["--law=chinchilla", "--init=E=1.8"], "--init: no value for A"),
        (["--law=chinchilla", "--score=E=x"], "--score=E=x: expected a number"),
        (["--law=power", "--predict_flops=1e20"], "--predict_flops: the law is against params"),
        (["--law=chinchilla", "--predict=1e9"], "--predict is for laws of one column"),
        (["--law=chinchilla", "--predict_flops=-1"], "--predict_flops: -1; expected numbers above"),
        (["--law=chinchilla", "--where=__import__('os')"], "expected comparisons"),
        (["--law=data_constrained"], "no column 'unique_tokens'"),
        (["--law=isoflop", "--compare=group"], "--compare: isoflop fits no law"),
        (["--law=chinchilla", "--huber_delta=0"], "--huber_delta=0.0: expected a number above 0"),
        (["--law=chinchilla", "--bootstrap=1"], "--bootstrap=1: one resample has no spread"),
        (["--law=saturating"], "no column 'accuracy'"),
    ],
)
def test_bad_flags_are_reported_and_leave_nothing(flags, words, tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "r.csv", iso_rows())
    with pytest.raises(BadInput, match=re.escape(words)):
        command.main([f"--runs={path}", f"--out={tmp_path / 'o'}", *flags])
    assert not (tmp_path / "o").exists()


def test_a_bad_flag_ends_the_command_with_exit_2(tmp_path):
    path = write(tmp_path / "r.csv", iso_rows())
    done = run(f"--runs={path}", f"--out={tmp_path / 'o'}", "--law=chinchilla", "--fix=A=-1")
    assert done.returncode == BadInput.exit_code == 2
    assert "--fix=A=-1: A is positive" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("column", "spread"), [("budget", 1.5), ("b", 1.5), ("budget", 1.0)])
def test_a_column_of_budgets_is_pointed_at_where_those_of_6nd_fall_apart(column, spread):
    """As in tables whose budgets count attention too: runs of one budget differ in 6 N D."""
    rows = []
    for budget, factor in ((1e18, 1.0), (4e18, 1.0), (1.6e19, 1.0), (6.4e19, spread)):
        for i, n in enumerate(best_size(budget) * np.geomspace(1 / 6, 6, 7)):
            d = budget / 6 / n * factor**i
            rows.append({"params": n, "tokens": d, "loss": loss_at(n, d), column: budget})
    words = " ".join(fit_law("isoflop", table.fill_flops(rows))["warnings"])
    assert ("--columns='flops=budget'" in words) == (column == "budget" and spread > 1)


def test_the_exponent_of_a_law_is_the_slope_over_the_tables_budgets():
    """Where it changes with the budget, as with a law that has a term of N and D together."""
    rows = [
        {"params": n, "tokens": c / 6 / n}
        for c in BUDGETS
        for n in best_size(c) * np.geomspace(1 / 4, 4, 5)
    ]
    for row in rows:
        of_n, of_d = 480 / row["params"] ** 0.35, 2100 / row["tokens"] ** 0.25
        row["loss"] = 1.8 + of_n + of_d + 0.5 * of_n * of_d
    law = named_law("interaction")
    fit = Fit(law, split_rows(law, rows, Options()), Options(bootstrap=0))
    optima = compute_optimal.optimal_params(law, fit.best[None], list(BUDGETS))[0]
    slope = np.polyfit(np.log(BUDGETS), np.log(optima), 1)[0]
    last = math.log(optima[-1] / optima[-2]) / math.log(BUDGETS[-1] / BUDGETS[-2])
    found = compute_optimal.optimal_power_laws(fit)
    assert found["params_exponent"] == pytest.approx(slope, abs=5e-4)
    assert abs(last - slope) > 5e-3  # or the slope at the largest budget were the same
    k = found["params_coefficient"] * BUDGETS ** found["params_exponent"]
    np.testing.assert_allclose(k, optima, rtol=0.05)
