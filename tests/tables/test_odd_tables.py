"""Tables that nobody made for us: without noise, on one ray, with weights, odd columns, zeros."""

import json

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.report import fit_figures, fit_text
from research.scaling import Options, analyze, checks, extrapolation, fit_law, groups
from research.scaling.budgets import group_by_budget
from research.scaling.envelope import lower_hull
from research.scaling.laws import named_law
from research.tables import table
from tests.scaling.test_minima import TRUTH, iso_rows, loss_at, two_recipes
from tests.scaling.test_scaling import law_at, noisy, rows_of
from tests.tables.test_tables_from_elsewhere import GRID

SIZES = np.geomspace(1e6, 1e9, 12)


def grid(**changed):
    return [
        {"run": f"{i}-{k}", "params": n, "tokens": k * n, "loss": loss_at(n, k * n, **changed)}
        for i, n in enumerate(np.geomspace(1e7, 1e10, 6))
        for k in (5, 20, 80, 320)
    ]


@pytest.mark.parametrize(
    ("law", "rows", "flags"),
    [
        ("power", rows_of(SIZES, law_at(SIZES)), ["--predict=1e10", "--holdout=largest"]),
        pytest.param(
            *("chinchilla", grid(), ["--predict_flops=1e22", "--anytime", "--next_runs=1e21"]),
            marks=pytest.mark.slow,
        ),
        pytest.param("overtraining", grid(), ["--multiverse"], marks=pytest.mark.slow),
        pytest.param("isoflop", iso_rows(), ["--multiverse"], marks=pytest.mark.slow),
        pytest.param(
            *("power", rows_of(SIZES, np.full(12, 2.0)), ["--score=E=1,A=10,alpha=.3"]),
            marks=pytest.mark.slow,
        ),
        ("power", rows_of(SIZES, 0.1 + 1e-3 * SIZES**-0.3), ["--score=E=.2,A=.001,alpha=.3"]),
        pytest.param(
            *("chinchilla", two_recipes(noise=0.0), ["--compare=group"]), marks=pytest.mark.slow
        ),
    ],
)
def test_the_command_ends_well_on_tables_without_noise(law, rows, flags, tmp_path):
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert command.main([f"--runs={tmp_path / 't.csv'}", f"--law={law}", f"--out={tmp_path / 'o'}",
                         *flags]) == 0  # fmt: skip
    document = json.loads((tmp_path / "o" / "fit.json").read_text(), parse_constant=pytest.fail)
    assert document["law"] == law
    assert not [w for w in document["warnings"] if "move" in w or "agree" in w]


@pytest.mark.parametrize(
    ("alpha", "floor"),
    [(0.02, 1.0), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((0.02, 0.0), (0.005, 2.0)))],
)
def test_small_exponents_are_found(alpha, floor):
    loss = floor + 3 * SIZES**-alpha
    document = fit_law("power", rows_of(SIZES, loss), bootstrap=0)
    assert document["objective"] < 1e-12
    assert document["certificate"]["converged"] == (floor > 0)
    assert not [w for w in document["warnings"] if "arrived" in w]
    near = fit_law("power", rows_of(SIZES, loss * (1 + 1e-3 * (-1) ** np.arange(12))), bootstrap=0)
    assert near["objective"] > 1e-12


@pytest.mark.slow
def test_tokens_that_go_with_parameters_leave_no_optimum():
    rows = [{**row, "tokens": 20 * row["params"]} for row in grid()[::4]]
    rows = [{**r, "loss": loss_at(r["params"], r["tokens"])} for r in rows]
    extra = np.geomspace(2e7, 5e9, 8)
    rows += [
        {"run": str(n), "params": n, "tokens": 20 * n, "loss": loss_at(n, 20 * n)} for n in extra
    ]
    document = fit_law("chinchilla", rows, predict_flops=[1e21])
    assert document["optimal"] is None
    assert document["predictions"][0]["params"] is None
    assert "vary together" in document["warnings"][0]
    with pytest.raises(BadInput, match="vary together"):
        analyze("chinchilla", rows, {}, next_budget=1e20)
    assert fit_law("chinchilla", grid())["optimal"]["params_exponent"] == pytest.approx(
        TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"]), abs=1e-3
    )


def test_the_unit_of_weights_is_no_matter():
    for weight in (100.0, 0.01):
        one, other = (
            fit_law("power", [{**r, "weight": w} for r in noisy(0)], holdout="largest")
            for w in (1.0, weight)
        )
        assert other["holdout"]["rows"][0]["run_interval"] == pytest.approx(
            one["holdout"]["rows"][0]["run_interval"], rel=1e-4
        )
    rows = [{**r, "weight": 1.0 + i} for i, r in enumerate(noisy(0))]
    assert fit_law("power", rows)["params"] != pytest.approx(
        fit_law("power", noisy(0))["params"], rel=1e-4
    )


def test_rows_without_weight_are_left_out_and_counted():
    rows = [{**r, "weight": float(i < 3)} for i, r in enumerate(noisy(0))]
    with pytest.raises(BadInput, match="weight is 0"):
        fit_law("power", rows)


def test_noise_that_differs_between_rows_widens_the_interval():
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e5, 1e8, 20), 6)
    sd = 0.04 * (n / 1e5) ** -0.6 + 0.001
    draws = rng.standard_normal(len(n))
    uneven = fit_law("power", rows_of(n, law_at(n) * np.exp(sd * draws)), objective="mse_log")
    resampled = fit_law(
        "power", rows_of(n, law_at(n) * np.exp(sd * draws)), objective="mse_log", bootstrap=400
    )
    for name in ("alpha", "A"):
        ours, theirs = (d["standard_errors"][name] for d in (uneven, resampled))
        assert ours == pytest.approx(theirs, rel=0.3)
    even = fit_law("power", rows_of(n, law_at(n) * np.exp(sd.mean() * draws)), objective="mse_log")
    assert even["standard_errors"]["alpha"] < 0.9 * uneven["standard_errors"]["alpha"]


def test_columns_can_change_places(tmp_path):
    (tmp_path / "t.csv").write_text("params,tokens,loss\n1e6,1e9,3\n")
    (row,) = table.read_runs(tmp_path / "t.csv", {"params": "tokens", "tokens": "params"})
    assert (row["params"], row["tokens"]) == ("1e9", "1e6")


def test_a_column_of_states_from_elsewhere_is_no_matter():
    rows = [{**r, "status": "finished"} for r in noisy(0)]
    assert fit_law("power", rows)["n_points"] == len(rows)
    assert fit_law("power", [*rows, {**rows[0], "status": "failed"}])["n_points"] == len(rows)


def test_flops_in_text_are_numbers_too():
    rows = [{**r, "flops": str(12 * r["params"] * r["tokens"])} for r in grid()]
    assert [w for w in fit_law("chinchilla", rows)["warnings"] if "2 times that" in w]
    rows = [{**r, "flops": "NA"} for r in grid()]
    assert analyze("chinchilla", rows, {}, anytime=True).document["settling"]["stages"]


def test_the_cheapest_by_a_hair_is_not_on_the_hull():
    log_c = np.log([1e18 * 0.99999, 1e18, 1e19 * 0.9999, 1e19, 1e20])
    on = lower_hull(log_c, np.log([4.2, 3.1, 3.9, 2.8, 2.6]))
    assert on.tolist() == [1, 3, 4]


def test_given_optima_err_together_where_the_budget_is_given():
    rng = np.random.default_rng(0)
    c = np.geomspace(1e18, 1e21, 6)
    n = 0.1 * c**0.5 * np.exp(0.1 * rng.standard_normal(6))
    rows = [
        {"run": str(i), "flops": a, "params": b, "tokens": a / 6 / b}
        for i, (a, b) in enumerate(zip(c, n))
    ]
    ends = fit_law("optima", rows, predict_flops=[1e22])["predictions"][0]["intervals"]
    spans = {k: np.log(v[1] / v[0]) for k, v in ends.items() if k != "loss"}
    assert spans["tokens_per_param"] == pytest.approx(2 * spans["params"], rel=0.01)
    assert spans["params"] == pytest.approx(spans["tokens"], rel=0.01)


def test_replicates_locate_a_minimum_more_sharply():
    rng = np.random.default_rng(0)
    rows = [
        {**r, "run": f"{r['run']}-{k}", "loss": r["loss"] * np.exp(0.002 * rng.standard_normal())}
        for r in iso_rows()
        for k in range(4)
    ]
    many, few = fit_law("isoflop", rows), fit_law("isoflop", rows[::4])
    assert many["noise"]["value"] == pytest.approx(0.002, rel=0.2)
    assert few["noise"]["source"] == "scatter about smooth valleys: no run was repeated"

    def width(document):
        low, high = document["intervals"]["params_exponent"]
        return high - low

    assert width(many) < 0.8 * width(few)
    assert group_by_budget(rows)[0][0].runs.tolist() == [4] * len(group_by_budget(rows)[0][0].runs)


def test_a_small_group_has_its_place_on_the_shared_law():
    rows = two_recipes()
    names = [row["group"] for row in rows]
    small = [r for r in rows if r["group"] == names[0]]
    small += [r for r in rows if r["group"] != names[0]][:4]
    section = analyze("chinchilla", small, {}, compare_by="group").document["compare"]
    assert section["test"]["p_value"] is None
    assert [entry["params"] is None for entry in section["groups"].values()].count(True) == 1
    assert "too few rows" in section["words"][-1]
    with pytest.raises(BadInput, match="--score"):
        analyze("chinchilla", rows, {"score": TRUTH}, compare_by="group")


@pytest.mark.parametrize("most", [1.0, 100.0])
def test_no_score_beyond_the_most_is_predicted(most):
    """Twin: scores that level off below it, of which nothing is cut off."""
    x = np.geomspace(1e18, 1e21, 12)
    for rise, cut in ((1.3, True), (0.5, False)):
        score = most * (0.1 + rise / (1 + (1e20 / x) ** 0.5))
        rows = [{"run": f"{i}", "flops": c, "accuracy": y} for i, (c, y) in enumerate(zip(x, score))
                if y < most]  # fmt: skip
        document = fit_law("logistic", rows, against="flops", predict=[1e24], bootstrap=0)
        (point,) = document["predictions"]
        assert point["accuracy"] <= most
        assert max(point["interval"][1], point["run_interval"][1]) <= most
        assert (point["accuracy"] == most) == cut
        told = [w for w in document["warnings"] if f"cut off at {most:g}" in w]
        assert len(told) == cut


def test_the_column_that_varies_is_named_where_another_does_not():
    """Twin: no column that varies enough."""
    for count, told in ((10, True), (3, False)):
        rows = [{"run": f"{i}", "params": 1e9, "tokens": 1e9 * 2**i, "loss": 3 - i / 9}
                for i in range(count)]  # fmt: skip
        with pytest.raises(BadInput, match="1 distinct value of params to fit") as refused:
            fit_law("power", rows)
        assert ("there are 10 of tokens: --against=tokens" in str(refused.value)) == told


def test_budgets_of_tokens_that_go_with_params_are_told(tmp_path):
    rows = [{"run": f"{i}", "params": 1e8 * 2**i, "tokens": 2e9 * 2**i, "loss": 3 - i / 9}
            for i in range(7)]  # fmt: skip
    with pytest.raises(BadInput, match=r"params and tokens vary together.*--against=flops"):
        analyze("auto", rows, {"predict_flops": [1e24]})


def test_losses_that_rise_with_size_are_told():
    """Twin: losses that fall."""
    for sign in (1, -1):
        rows = [{"run": f"{i}", "params": 10.0 ** (6 + i / 2), "loss": 3 + sign * i ** 0.9 / 9}
                for i in range(8)]  # fmt: skip
        warnings = fit_law("power", rows, bootstrap=0)["warnings"]
        told = any("losses rise with params (rank correlation +1.00)" in w for w in warnings)
        assert told == (sign > 0)


def test_a_prediction_near_nothing_has_its_digits():
    rows = [{"run": f"{i}", "params": 100.0 * 2**i, "loss": 1e-4 + 0.3 * (100.0 * 2**i) ** -0.8}
            for i in range(9)]  # fmt: skip
    document = fit_law("power", rows, predict=[1e6], bootstrap=0)
    assert "predicted at 1M: 0.0001048" in fit_text.fit_summary(document)


def test_columns_that_changed_places_are_told():
    """Twin: the columns as they are."""
    for names, told in ((("tokens", "params"), True), (("params", "tokens"), False)):
        rows = [dict(zip((*names, "loss"), point), run=f"{i}") for i, point in enumerate(GRID)]
        warnings = checks.check_table(rows, ("params", "tokens", "loss"), Options(), "x", True)
        assert any("params=tokens,tokens=params" in w for w in warnings) == told


def test_equal_losses_are_drawn():
    """Twin: losses that fall, which have contours at round levels."""
    assert fit_figures._round_levels(2.5, 2.5) == [2.5]
    levels = fit_figures._round_levels(2.0, 4.0)
    assert len(levels) > 3
    assert all(2 < level < 4 and round(level, 1) == level for level in levels)
    rows = [{**row, "loss": 2.5} for row in grid()]
    analysis = analyze("chinchilla", rows, {"bootstrap": 0}, checks_too=False)
    assert fit_figures.draw_figures(analysis, "contours")


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_table_of_several_seeds_has_its_backtest(seeds):
    rows = [
        {"run": f"{n}-{d}-{k}", "params": n, "tokens": d, "seed": k,
         "loss": loss_at(n, d) * (1 + 1e-4 * ((i * 7 + k * 5) % 11 - 5))}
        for i, (n, d, _) in enumerate(GRID)
        for k in range(seeds)]  # fmt: skip
    trial = extrapolation.find_trial(rows, named_law("chinchilla"), Options())
    assert len(trial.parts.fitted) >= len(rows) / 3


def test_scores_of_several_sets_are_groups():
    """Twin: a column of another name with the same words, which is told and parts nothing."""
    for name, parts in (("downstream_dataset", 2), ("upstream_dataset", 2), ("shape", 1)):
        rows = [{"flops": 10.0**i, "accuracy": 0.1 + 0.01 * i, name: words}
                for i in range(8) for words in ("cifar", "imagenet")]  # fmt: skip
        assert len(groups.split(rows, Options())) == parts
