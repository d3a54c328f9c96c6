"""The largest runs of a table, predicted from far smaller ones of it, lead the answer."""

import numpy as np
import pytest

from research.errors import BadInput
from research.report import fit_text
from research.scaling import analyze, averaging, extrapolation, fit_law
from tests.scaling.test_averaging import iso_rows

FLOPS = 6 * np.array([row["params"] * row["tokens"] for row in iso_rows()])
COLUMNS = ("params", "tokens")


@pytest.fixture
def few_laws(monkeypatch):
    monkeypatch.setattr(averaging, "BY_BOTH", ("chinchilla", "overtraining"))


def trial_of(rows, *asked):
    return extrapolation.nearest_trial(rows, COLUMNS, 5, asked)


@pytest.mark.parametrize(("factor", "ratio"), [(3, 3), (10, 9), (25, 27), (1e4, 81)])
def test_the_trial_is_as_far_as_the_question_where_the_table_allows(factor, ratio):
    """Budgets are powers of 3; what is fitted keeps a third of the rows."""
    trial = trial_of(iso_rows(), factor * FLOPS.max())
    assert trial.ratio == pytest.approx(ratio, rel=0.01)
    assert trial.largest == pytest.approx(FLOPS.max() / ratio, rel=0.01)
    parts = trial.parts
    assert {6 * row["params"] * row["tokens"] > FLOPS.max() / 1.1 for row in parts.held_out} == {1}
    assert max(6 * row["params"] * row["tokens"] for row in parts.fitted) <= 1.01 * trial.largest
    assert len(parts.fitted) + len(parts.held_out) < len(FLOPS) or ratio == 3
    assert len(parts.fitted) >= len(FLOPS) / 3


def test_ten_times_the_table_is_asked_where_nothing_is():
    rows = iso_rows()
    assert trial_of(rows).ratio == trial_of(rows, 10 * FLOPS.max()).ratio
    assert trial_of(rows, FLOPS.min()).ratio == trial_of(rows).ratio  # within the table
    assert trial_of(rows, 3 * FLOPS.max()).ratio < trial_of(rows).ratio


def test_runs_of_one_budget_are_those_of_its_own_flops():
    uneven = [
        {**row, "tokens": row["tokens"] * (1 + 3 * (i % 2))} for i, row in enumerate(iso_rows())
    ]
    own = [{**row, "flops": float(c)} for row, c in zip(uneven, FLOPS)]
    top = [row["run"] for row, c in zip(uneven, FLOPS) if FLOPS.max() / 1.1 < c]
    assert [row["run"] for row in trial_of(own).parts.held_out] == top
    trial = trial_of(own)
    most = max(row["flops"] for row in trial.parts.fitted)
    assert FLOPS.max() / most == pytest.approx(9, rel=0.01)
    # What is said of them counts as targets do.
    at = [
        np.mean([np.log(6 * row["params"] * row["tokens"]) for row in rows])
        for rows in (
            trial.parts.held_out,
            [row for row in trial.parts.fitted if row["flops"] > most / 1.1],
        )
    ]
    assert trial.ratio == pytest.approx(np.exp(at[0] - at[1]))
    assert trial.largest == pytest.approx(np.exp(at[1]))
    assert trial.largest != pytest.approx(most, rel=0.1)
    assert trial.convention == "6 * params * tokens"
    assert [row["run"] for row in trial_of(uneven).parts.held_out] != top


def test_a_table_that_is_too_small_for_a_trial_says_why():
    largest = [row for row, c in zip(iso_rows(), FLOPS) if c > FLOPS.max() / 4]
    with pytest.raises(BadInput, match="of 2 budgets and 3 sizes"):
        trial_of(largest)
    together = [{**row, "tokens": 20 * row["params"]} for row in iso_rows()]
    with pytest.raises(BadInput, match="below the largest"):
        trial_of(together)
    document = fit_law("chinchilla", largest)
    assert document["extrapolation"]["rows"] == []
    assert fit_text.headline(document).startswith(
        "No backtest: a fit to the rows below the largest"
    )
    assert trial_of(iso_rows()).parts.fitted


@pytest.mark.parametrize("law", ["auto", "chinchilla"])
def test_the_answer_begins_with_what_the_law_made_of_the_largest_runs(law, few_laws):
    rows = iso_rows()
    document = fit_law(law, rows)
    trial = document["extrapolation"]
    assert document["holdout"] is None
    assert document["n_points"] == len(rows)
    assert trial["n_points"] < len(rows)
    assert trial["covered"] >= len(trial["rows"]) - 1
    assert trial["mean_absolute_error"] < 0.003
    first = fit_text.fit_summary(document).splitlines()[0]
    assert first == fit_text.headline(document)
    assert f"from the {trial['n_points']} runs of at most 8.1e19 FLOPs" in first
    assert f"{len(trial['rows'])} runs at 9 times as much lie inside" in first

    top = [6 * row["params"] * row["tokens"] > FLOPS.max() / 1.1 for row in rows]
    moved = [{**r, "loss": r["loss"] * (1.05 if t else 1)} for r, t in zip(rows, top)]
    assert fit_law(law, moved)["extrapolation"]["covered"] == 0


def test_rows_that_are_held_out_by_hand_lead_in_its_place():
    document = fit_law("chinchilla", iso_rows(), holdout="params>3e9")
    assert document["extrapolation"] is None
    first = fit_text.fit_summary(document).splitlines()[0]
    assert f"of {len(document['holdout']['rows'])} runs that were held out lie inside" in first
    # Nothing is inside an interval that there is not.
    for rows in (document["holdout"]["rows"], document["holdout"]["rows"][:1]):
        none = [{**row, "run_interval": [None, None]} for row in rows]
        first = fit_text.headline({**document, "holdout": {**document["holdout"], "rows": none}})
        assert "runs that were held out have no intervals; mean absolute error" in first
        assert "inside" not in first


def test_sizes_at_minima_and_laws_of_one_column_are_tried_too():
    rows = [{**row, "flops": c} for row, c in zip(iso_rows(), FLOPS)]
    document = fit_law("isoflop", rows)
    trial = document["extrapolation"]
    assert trial["ratio"] == pytest.approx(9, rel=0.01)
    (row,) = trial["rows"]
    assert abs(np.log(row["params"] / row["measured"])) < 0.5
    assert "1 of 1 optimal sizes at 9 times as much" in fit_text.headline(document)
    one = [{"params": n, "loss": 1.4 + 32 / n**0.4} for n in np.geomspace(1e4, 1e6, 7)]
    trial = fit_law("power", one)["extrapolation"]
    assert [row["params"] for row in trial["rows"]] == pytest.approx([1e6 / 10 ** (1 / 3), 1e6])
    assert trial["ratio"] > 5


def test_what_cannot_be_tried_says_so():
    accuracy = [{"loss": x, "accuracy": 0.25 + 0.6 / (1 + np.exp(4 * (x - 2.8)))}
                for x in np.linspace(2, 4, 12)]  # fmt: skip
    assert "from the loss" in fit_law("saturating", accuracy)["extrapolation"]["why"]
    options = {"bootstrap": 0}
    assert analyze("chinchilla", iso_rows(), options).document["extrapolation"] is None
