"""What is known of parameters beside the rows."""

import dataclasses

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.io import files
from research.report import fit_text
from research.scaling import Fit, Options, averaging, fit_law, named_law, split_rows
from tests.scaling.test_averaging import iso_rows

HELD = {"alpha": 0.35, "beta": 0.37}


def fitted(rows, **options):
    law, options = named_law("chinchilla"), Options(**options)
    return Fit(law, split_rows(law, rows, options), options)


def floor(fit):
    """E and half of its interval."""
    low, high = fit.reported_intervals()["E"]
    return fit.params["E"], (high - low) / 2


@pytest.mark.parametrize("options", [{}, {"objective": "huber_log"}, {"bootstrap": 400}])
def test_rows_and_prior_are_weighed_by_what_each_is_certain_of(options):
    rows = iso_rows(noise=0.003)
    alone, half = floor(fitted(rows, fix=HELD, **options))
    sd = half / 2
    mean = alone + 2 * sd
    value, left = floor(fitted(rows, fix=HELD, prior={"E": (mean, sd)}, **options))
    assert value == pytest.approx((alone + mean) / 2, abs=0.35 * sd)
    assert left == pytest.approx(half / np.sqrt(2), rel=0.25)


def test_a_tight_prior_is_a_value_that_is_held_and_a_wide_one_is_none():
    rows = iso_rows()
    free, held = fitted(rows), fitted(rows, fix={"E": 1.7})
    tight, wide = (fitted(rows, prior={"E": (1.7, sd)}) for sd in (1e-5, 1e3))
    for name in ("A", "alpha", "B", "beta"):
        assert tight.params[name] == pytest.approx(held.params[name], rel=2e-3)
        assert wide.params[name] == pytest.approx(free.params[name], rel=1e-4)
        assert held.params[name] != pytest.approx(free.params[name], rel=0.02)
    assert wide.covariance == pytest.approx(free.covariance, rel=1e-3, abs=1e-12)
    at = free.params["E"]  # elsewhere, what E cannot do is noise where it is held
    tight, held = fitted(rows, prior={"E": (at, 1e-5)}), fitted(rows, fix={"E": at})
    assert tight.covariance[1:, 1:] == pytest.approx(held.covariance[1:, 1:], rel=0.1, abs=1e-6)
    assert 2 * tight.covariance[1, 1] < free.covariance[1, 1]


@pytest.mark.parametrize("objective", ["mse_log", "huber_log", "mse"])
def test_the_derivatives_of_the_objective_hold_those_of_the_prior(objective):
    problem = fitted(
        iso_rows(), objective=objective, prior={"E": (1.5, 0.2), "beta": (0.3, 0.1)}
    ).problem
    at = named_law("chinchilla").fitted(np.array([1.9, 500.0, 2000.0, 0.36, 0.35]))
    _, gradient, _, newton = problem.derivatives(at[None])
    steps = 1e-6 * np.eye(5)
    ahead, behind = problem.derivatives(at + steps), problem.derivatives(at - steps)
    np.testing.assert_allclose((ahead[0] - behind[0]) / 2e-6, gradient[0], rtol=1e-5)
    without = dataclasses.replace(problem, prior=None)
    plain = without.derivatives(at[None])
    of_prior = newton[0] - plain[3][0]
    slopes = [[problem.derivatives(at[None] + s)[1] - without.derivatives(at[None] + s)[1]
               for s in (step, -step)] for step in steps]  # fmt: skip
    numeric = np.array([(a - b)[0] for a, b in slopes]) / 2e-6
    np.testing.assert_allclose(numeric, of_prior, rtol=1e-4, atol=1e-9 * np.abs(numeric).max())
    assert np.abs(of_prior[0, 0]) > 0
    assert plain[1][0, 0] != pytest.approx(gradient[0, 0])
    assert problem.value(at[None]) > without.value(at[None])


def test_the_answer_without_the_prior_stands_beside_it(monkeypatch):
    monkeypatch.setattr(averaging, "BY_BOTH", ("chinchilla", "overtraining"))
    rows = iso_rows()[::3]
    plain = fit_law("auto", rows, predict_flops=[1e23])
    document = fit_law("auto", rows, predict_flops=[1e23], prior={"E": (1.8, 1e-3)})
    assert document["without_prior"]["predictions"] == plain["predictions"]
    assert document["options"]["prior"] == {"E": [1.8, 1e-3]}
    (before,), (after,) = plain["predictions"], document["predictions"]
    assert np.ptp(after["interval"]) < 0.8 * np.ptp(before["interval"])
    words = fit_text.fit_summary(document)
    assert "without the prior: E = " in words
    assert f"loss {before['loss']:.4g} " in words
    assert "without the prior" not in fit_text.fit_summary(plain)


def test_rows_that_speak_against_the_prior_are_told():
    told = [fit_law("chinchilla", iso_rows(), prior={"E": (mean, 0.02)})["warnings"]
            for mean in (1.5, 1.8)]  # fmt: skip
    against = [any("from the prior" in words for words in warnings) for warnings in told]
    assert against == [True, False]


@pytest.mark.parametrize(
    ("law", "prior", "words"),
    [
        ("chinchilla", {"G": (1.0, 0.1)}, "--prior: chinchilla has no parameter 'G'"),
        ("auto", {"Q": (1.0, 0.1)}, "has no parameter 'Q'"),
        ("chinchilla", {"E": (1.6, 0.0)}, "--prior=E=1.6±0: .* standard deviation above 0"),
        ("chinchilla", {"E": (1.6, -1.0)}, "standard deviation above 0"),
        ("chinchilla", {"E": (np.inf, 1.0)}, "a finite mean"),
        ("chinchilla", {"E": 1.6}, "expected MEAN±SD"),
        ("chinchilla", {"E": (-1.6, 0.1)}, "E is positive"),
        ("isoflop", {"E": (1.6, 0.1)}, "--prior: isoflop has no parameters"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(law, prior, words):
    rows = [{**row, "flops": 6 * row["params"] * row["tokens"]} for row in iso_rows()]
    with pytest.raises(BadInput, match=words):
        fit_law(law, rows, prior=prior)
    with pytest.raises(BadInput, match="--fix gives its value"):
        fit_law("chinchilla", rows, prior={"E": (1.6, 0.1)}, fix={"E": 1.6})


@pytest.mark.parametrize(
    "sign", ["+-", *(pytest.param(s, marks=pytest.mark.slow) for s in ("±", "+/-"))]
)
def test_the_flag_takes_several(sign, tmp_path, capsys, without_figures):
    lines = [f"{row['params']},{row['tokens']},{row['loss']}" for row in iso_rows()]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,loss", *lines]))
    flags = [f"--runs={tmp_path / 'runs.csv'}", "--law=chinchilla", f"--out={tmp_path / 'out'}"]
    command.main([*flags, f"--prior=E=1.8{sign}0.1,alpha=0.35{sign}0.01"])
    assert "without the prior: E = " in capsys.readouterr().out
    document = files.read_json(tmp_path / "out" / "fit.json")
    assert document["options"]["prior"] == {"E": [1.8, 0.1], "alpha": [0.35, 0.01]}
    with pytest.raises(BadInput, match=r"--prior=E=1\.8: expected MEAN±SD"):
        command.main([*flags, "--prior=E=1.8"])
