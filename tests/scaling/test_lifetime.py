"""Optima that count inference: against a search by other means, in their limits, over laws."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from research.errors import BadInput
from research.report import fit_text, interactive
from research.scaling import analyze, averaging, compute_optimal, lifetime, named_law
from research.scaling.options import Options
from tests.scaling.test_minima import iso_rows

BUDGET = 1e22


def section(rows, law="chinchilla", **options):
    options = {"predict_flops": [BUDGET], **options}
    return analyze(law, rows, options, checks_too=False).document


def loss(params, n, d):
    p = params
    return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


@pytest.mark.parametrize("served", [1e10, 1e12, 1e14])
def test_the_optima_are_those_of_a_search_by_other_means(served):
    document = section(iso_rows(0.0), inference_tokens=served)
    p, (found,) = document["params"], document["inference"]["optima"]

    def least(total, count):
        def of_size(log_n):
            d = (total / math.exp(log_n) - 2 * served) / 6
            return loss(p, math.exp(log_n), d) if d > 0 else 1e9

        ends = (math.log(total / (2 * served)) - 12, math.log(total / (2 * served)) - 1e-6)
        return minimize_scalar(of_size, bounds=ends, method="bounded", options={"xatol": 1e-9})

    best = least(BUDGET, served)
    at = found["same_total"]
    assert at["params"] == pytest.approx(math.exp(best.x), rel=0.01)
    assert 6 * at["params"] * at["tokens"] + 2 * at["params"] * served == pytest.approx(BUDGET)
    assert at["loss"] == pytest.approx(best.fun, rel=1e-5)
    training, cheap = found["training"], found["same_loss"]
    wanted = loss(p, training["params"], training["tokens"])
    assert loss(p, cheap["params"], cheap["tokens"]) == pytest.approx(wanted, rel=1e-5)
    total = 6 * cheap["params"] * cheap["tokens"] + 2 * cheap["params"] * served
    assert cheap["total_flops"] == pytest.approx(total, rel=1e-6)
    assert cheap["saved"] == pytest.approx(1 - total / training["total_flops"], abs=1e-6)
    # Nothing cheaper is as good, and a little more is enough.
    assert least(0.999 * total, served).fun > wanted
    assert least(1.001 * total, served).fun < wanted


def test_more_inference_asks_for_a_smaller_model_trained_for_longer():
    rows = iso_rows(0.01)
    few, some, many = (section(rows, inference_tokens=x)["inference"]["optima"][0]
                       for x in (1e3, 1e12, 1e13))  # fmt: skip
    best = section(rows)["predictions"][0]
    assert few["same_loss"]["params"] == pytest.approx(best["params"], rel=0.01)
    assert few["same_loss"]["saved"] == pytest.approx(0, abs=1e-4)
    assert few["same_total"]["loss"] == pytest.approx(best["loss"], rel=1e-4)
    for less, more in ((few, some), (some, many)):
        assert less["same_loss"]["params"] > more["same_loss"]["params"]
        assert less["same_loss"]["tokens"] < more["same_loss"]["tokens"]
        assert less["same_loss"]["saved"] < more["same_loss"]["saved"]
        assert less["same_total"]["loss"] < more["same_total"]["loss"]
    for optimum in (some, many):
        for name in ("params", "tokens", "total_flops", "saved"):
            low, high = optimum["same_loss"]["intervals"][name]
            assert low < optimum["same_loss"][name] < high
        low, high = optimum["same_total"]["interval"]
        assert low < optimum["same_total"]["loss"] < high


def test_an_average_lies_among_its_laws():
    rows = iso_rows(0.01)
    laws = [named_law(name) for name in ("chinchilla", "interaction")]
    options = Options(predict_flops=[BUDGET], inference_tokens=1e12)
    average = averaging.fit_average(laws, rows, options)
    (whole,) = lifetime.lifetime_optima(average, options)["optima"]
    own = [
        lifetime.lifetime_optima(averaging.average_of(member.fit), options)["optima"][0]
        for member in average.members
    ]
    sizes = [optimum["same_loss"]["params"] for optimum in own]
    assert len(sizes) == 2
    assert min(sizes) <= whole["same_loss"]["params"] <= max(sizes)


def test_it_is_told_in_words_and_on_the_slider():
    document = section(iso_rows(0.01), inference_tokens=1e12)
    words = fit_text.fit_summary(document)
    assert "with 1T tokens of inference, the cheapest that is as good as the best for 1e22" in words
    assert "less than with that" in words
    assert "tokens of inference" not in fit_text.fit_summary(section(iso_rows(0.01)))
    rows = [{"run": "r", "flops": 1e21, "loss": 2.0, "params": 1e9, "tokens": 1e11}]
    for used in (document, {**document, "inference": None}):
        chart = interactive.budget_chart(rows, used, "nats")["explore"].to_dict()
        assert ("tokens of inference" in str(chart)) == (used["inference"] is not None)


@pytest.mark.parametrize(
    ("law", "options", "problem"),
    [
        ("chinchilla", {"inference_tokens": -1.0}, "--inference_tokens=-1.0: expected a number"),
        ("chinchilla", {"inference_tokens": math.nan}, "--inference_tokens=nan"),
        ("chinchilla", {"inference_tokens": "many"}, "expected a number"),
        ("isoflop", {"inference_tokens": 1e9}, "--inference_tokens: isoflop does not use it"),
        ("power", {"inference_tokens": 1e9, "predict_flops": ()}, "power does not read params"),
    ],
)
def test_what_has_no_such_optimum_is_refused(law, options, problem):
    with pytest.raises(BadInput, match=problem):
        section(iso_rows(0.01), law, **options)


@pytest.mark.slow
def test_where_params_and_tokens_vary_together_there_is_none():
    rows = [{"run": f"r{i}", "params": n, "tokens": 20 * n, "flops": 120 * n * n,
             "loss": 2 + 400 / n**0.4 + i % 2 / 1e3}
            for i, n in enumerate(np.geomspace(1e7, 1e9, 9))]  # fmt: skip
    assert compute_optimal.vary_together(rows)
    with pytest.raises(BadInput, match="vary together"):
        section(rows, inference_tokens=1e9)
