"""Learning rate and batch as laws: --law=recipe."""

import csv
import json
import math

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.scaling import analyze, recipes

OFF = {"bootstrap": 0}  # no intervals of the optima
SLOPES = {"params": -0.4, "tokens": -0.1, "batch_tokens": 0.5}


def best_rate(n, d, b):
    logs = {"params": n / 1e6, "tokens": d / 2e7, "batch_tokens": b / 2**13}
    return 3e-3 * math.exp(sum(SLOPES[name] * math.log(x) for name, x in logs.items()))


def sweep(noise=0.002, sizes=(1e5, 5e5, 3e6), ratios=(10, 40), batches=(2**12, 2**13, 2**15),
          rates=(0.25, 0.5, 1, 2, 4), off=1.0):  # fmt: skip
    """Runs of every size, tokens and batch, at factors of a power of 2 near the best rate, or `off`
    it."""
    rng, rows = np.random.default_rng(0), []
    for n in sizes:
        for d in (n * r for r in ratios):
            for b in batches:
                best, best_batch = best_rate(n, d, b), 2**13 * (d / 2e7) ** 0.4
                for factor in rates:
                    lr = 2.0 ** round(math.log2(best)) * factor * off
                    loss = 1.8 + 480 / n**0.35 + 2100 / d**0.37
                    loss += 0.03 * math.log(lr / best) ** 2
                    loss += 0.02 * math.log(b / best_batch) ** 2
                    loss *= math.exp(noise * rng.standard_normal())
                    rows.append({"run": f"r{len(rows)}", "params": n, "tokens": d, "lr": lr}
                                | {"batch_tokens": float(b), "loss": loss})  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def document():
    return analyze("recipe", sweep(), {}).document


def test_the_recipe_that_made_the_rows_is_found(document):
    recipe, intervals = document["recipe"], document["intervals"]
    for letter, slope in zip("NDB", SLOPES.values(), strict=True):
        low, high = intervals[f"lr_{letter}"]
        assert low < slope < high
        assert high - low < 0.5
    n, d, b = 2e6, 3e7, 2**14
    line = recipe["log_lr"]
    found = line["constant"] + line["params"] * math.log(n)
    found += line["tokens"] * math.log(d) + line["batch"] * math.log(b)
    assert math.exp(found) == pytest.approx(best_rate(n, d, b), rel=0.1)
    assert math.exp(found) != pytest.approx(best_rate(n / 8, d, b), rel=0.1)  # a twin
    line = recipe["log_batch"]
    batch = math.exp(
        line["constant"] + sum(line[k] * math.log(v) for k, v in (("params", n), ("tokens", d)))
    )
    assert batch == pytest.approx(2**13 * (d / 2e7) ** 0.4, rel=0.3)


def test_the_optimum_of_every_cell_has_an_interval(document):
    cells = document["recipe"]["optima"]
    assert len(cells) == 3 * 2 * 3
    held = [
        cell["interval"][0] < best_rate(*(cell[n] for n in recipes.DEPENDS)) < cell["interval"][1]
        for cell in cells
    ]
    assert sum(held) >= 14
    assert all(cell["inside"] for cell in cells)


def test_rules_are_scored_on_cells_that_they_were_not_fitted_to(document):
    rules = document["recipe"]["rules"]
    assert rules[0]["rule"].startswith("fitted to the other")
    costs = [rule["loss"] for rule in rules]
    assert costs == sorted(costs)
    published = [rule for rule in rules if rule["constant"] == "published"]
    assert len(published) == 2
    one = {rule["rule"]: rule["loss"] for rule in rules if rule["constant"] == "fitted"}
    assert one["constant"] > 10 * costs[0]  # the best rate moves by a factor of 10 in this sweep


def test_a_best_rate_at_the_edge_is_placed_beyond_it_and_told():
    """All rates are below the best one: the least loss of every cell is at its edge."""
    found = analyze("recipe", sweep(noise=0.0005, off=2.0**-4.5, rates=(1, 2, 4, 8)), OFF).document
    for cell in found["recipe"]["optima"]:
        assert not cell["inside"]
        true = best_rate(*(cell[n] for n in recipes.DEPENDS))
        assert cell["tried"][1] < true
        assert cell["lr"] == pytest.approx(true, rel=0.4)
    assert any("beyond the rates tried" in line for line in found["warnings"])


@pytest.mark.parametrize("many", [False, True], ids=["one table", "a table for each fit"])
def test_the_derivative_is_that_of_the_prediction(many):
    rows = sweep()
    law = recipes.recipe_law(rows)
    x = law.prepare({name: np.array([row[name] for row in rows]) for name in law.columns})
    reported = [1.8, 480, 2100, 0.35, 0.37, 0.03, 3e-3, -0.4, -0.1, 0.5, 0.02, 8e3, 0.1, 0.4]
    theta = law.fitted(np.array(reported)) + np.linspace(-0.1, 0.1, 3)[:, None]
    x = np.stack([x, 2 * x, 3 * x]) if many else x
    value, slope, _ = law.evaluate(theta, x)
    expected, expected_slope = law._complex_step(theta, x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-9, atol=1e-14)
    other = law.evaluate(theta + 1e-3, x)[1]
    assert np.abs(other - slope).max() > 1e-6  # a twin


def test_what_does_not_vary_is_no_part_of_the_law():
    rows = sweep(ratios=(20,), batches=(2**13,))
    for row in rows:
        row["tokens"] = 2e7
    found = analyze("recipe", rows, OFF).document
    assert set(found["params"]) == {"E", "A", "alpha", "k", "lr_star", "lr_N"}
    assert found["recipe"]["log_batch"] is None
    assert set(document_columns(sweep())) == {"params", "tokens", "batch_tokens"}


def document_columns(rows):
    return [name for name in recipes.recipe_law(rows).columns if name != "lr"]


def test_batch_and_context_are_batch_tokens():
    rows = [{**row, "batch": row["batch_tokens"] / 128, "context": 128} for row in sweep()]
    for row in rows:
        del row["batch_tokens"]
    with_it = recipes.with_batch_tokens(rows)
    assert [row["batch_tokens"] for row in with_it] == [r["batch_tokens"] for r in sweep()]
    of_its_own = {"batch": 8, "context": 128, "batch_tokens": 5.0}
    assert recipes.with_batch_tokens([of_its_own])[0]["batch_tokens"] == 5.0


def test_rows_far_from_their_optimum_are_left_out_and_told():
    rows = sweep()
    wild = [{**rows[0], "run": "wild", "lr": 30.0, "loss": 9.0 * rows[0]["loss"]}]
    found = analyze("recipe", rows + wild, OFF).document
    assert [row["run"] for row in found["dropped"]] == ["wild"]
    assert any("a parabola in log lr does not hold" in line for line in found["warnings"])
    assert found["n_points"] == len(rows)


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        (
            sweep(rates=(1,), sizes=(1e6,), ratios=(20,), batches=(2**13,)),
            {},
            "1 values of lr; expected a sweep",
        ),
        ([{**row, "lr": ""} for row in sweep()], {}, "lr"),
        (sweep(), {"compare_by": "batch_tokens"}, "--compare: is for a law of size and tokens"),
        (sweep(), {"next_budget": 1e12}, "--next_runs: is for a law of size and tokens"),
        (sweep(), {"multiverse_too": True}, "--multiverse: is for a law of size and tokens"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused(rows, flags, said):
    with pytest.raises(BadInput, match=said):
        analyze("recipe", rows, {}, **flags)


def without_optimum(curvature, **shape):
    """Losses that do not depend on the learning rate, or are highest at the best one."""
    rng, rows = np.random.default_rng(0), sweep(**shape)
    for row in rows:
        n, d, b = (row[name] for name in recipes.DEPENDS)
        row["loss"] = 1.8 + 480 / n**0.35 + 2100 / d**0.37
        row["loss"] += curvature * math.log(row["lr"] / best_rate(n, d, b)) ** 2
        row["loss"] *= math.exp(0.002 * rng.standard_normal())
    return rows


@pytest.mark.parametrize("curvature", [0.0, pytest.param(-0.03, marks=pytest.mark.slow)])
def test_losses_without_a_best_rate_give_no_recipe(curvature):
    with pytest.raises(BadInput, match="show no best learning rate"):
        analyze("recipe", without_optimum(curvature, batches=(2**13,)), OFF)


def test_losses_without_a_best_batch_give_no_law_of_it():
    found = analyze("recipe", without_optimum(0.03), OFF).document
    assert found["recipe"]["log_batch"] is None
    assert any("show no best batch" in line for line in found["warnings"])
    assert not any(words.startswith("best batch") for words in found["recipe"]["words"])


def test_the_command_writes_the_recipe_and_its_figures(tmp_path, capsys):
    rows, path = sweep(sizes=(1e5, 3e6), batches=(2**13,)), tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    flags = [f"--runs={path}", "--law=recipe", f"--out={tmp_path}/fit", "--bootstrap=0"]
    assert command.main(flags) == 0
    assert "best learning rate: " in capsys.readouterr().out
    recipe = json.loads((tmp_path / "fit" / "recipe.json").read_text())
    assert recipe["format"] == recipes.FORMAT
    assert (tmp_path / "fit" / "recipe.png").stat().st_size > 10_000
