"""Tables that leave open what is asked: sizes and tokens that go together, or take few values, one
budget, a loss that rises, conventions that are mixed. Each has a twin that tells what it asks."""

import math

import numpy as np
import pytest

from research.errors import BadInput
from research.scaling import checks, compute_optimal, fit_law
from research.scaling.fit import Fit
from research.scaling.fit_document import seed_noise
from research.scaling.laws import named_law
from research.scaling.options import Options, Split
from tests.tables.test_tables_from_elsewhere import loss_at

ROWS = ("params", "tokens", "loss")


def runs(pairs, noise=5e-4):
    rng = np.random.default_rng(0)
    return [
        {"run": f"r{i}", "params": n, "tokens": d, "flops": 6 * n * d,
         "loss": loss_at(n, d) * math.exp(noise * rng.standard_normal())}
        for i, (n, d) in enumerate(pairs)
    ]  # fmt: skip


SIZES = np.geomspace(2e7, 2e9, 7)
GRID = [(n, d) for n in SIZES for d in np.geomspace(1e9, 6e10, 4)]


@pytest.mark.parametrize(
    ("pairs", "together"),
    [
        ([(n, 20 * n) for n in SIZES], True),
        ([(n, 1e5 * n**0.5) for n in SIZES], True),  # either term may be the other's
        ([(n, 3e11) for n in SIZES], True),
        ([(1e8, n) for n in SIZES], True),
        ([(n, 1e18 / n) for n in SIZES], False),  # a valley: one term rises where the other falls
        (GRID, False),
    ],
)
def test_what_goes_together_is_seen(pairs, together):
    assert compute_optimal.vary_together(runs(pairs)) == together


def test_two_lengths_tell_no_optimum_and_three_or_a_known_floor_do():
    def document(lengths, **options):
        rows = runs([(n, d) for n in SIZES[::2] for d in lengths])
        known = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.33}
        return fit_law("chinchilla", rows, predict_flops=[1e21], bootstrap=0, init=known, **options)

    few = document((1e9, 1e10))
    assert few["predictions"][0]["params"] is None
    assert any("tokens have fewer than 3 values" in words for words in few["warnings"])
    for other in (document((1e9, 5e9, 4e10)), document((1e9, 1e10), fix={"E": 1.7})):
        assert other["predictions"][0]["params"] == pytest.approx(2.8e9, rel=0.5)


def test_one_budget_leaves_the_loss_elsewhere_open():
    """E may be anything there, and where the best of the objective has none, no step of its
    logarithm finds another. Twin: several budgets."""

    def found(budgets):
        rows = runs([(n, c / n) for c in budgets for n in np.geomspace(6e7, 1e9, 10)])
        for row in rows:
            row["loss"] = 60 * row["params"] ** -0.2 + 150 * row["tokens"] ** -0.21
            row["loss"] *= 1 + 3e-4 * math.cos(9 * math.log(row["params"]))
        init = {"E": 1e-8, "A": 60.0, "B": 150.0, "alpha": 0.2, "beta": 0.21}
        options = Options(init=init, objective="mse_log")
        return Fit(named_law("chinchilla"), Split(rows, [], []), options)

    one, several = found([1.6e18]), found([1.6e17, 1.6e18, 1.6e19])
    here = {"params": [4e9], "tokens": [8e10]}
    (center,), ((_, high),), _ = one.predict(here)
    (known,), ((least, most),), _ = several.predict(here)
    assert len(one.floors)
    assert high > 1.2 * center
    assert 0.98 * known < least < most < 1.02 * known
    assert one.simulate(20)[:, 0].max() > -1  # some draws have a floor


def test_a_law_says_its_noise_and_what_its_intervals_are_made_of():
    rows = runs(GRID)
    init = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.33}
    document = fit_law("chinchilla", rows, predict_flops=[1e21], init=init)
    assert document["noise"]["value"] == pytest.approx(5e-4, rel=0.4)
    assert document["noise"]["freedom"] == 23
    (point,) = document["predictions"]
    parts, (low, high) = point["parts"], point["interval"]
    assert parts["noise"] == pytest.approx(1.96 * document["noise"]["value"])
    assert parts["parameters"] == pytest.approx(math.log(high / low) / 2)
    assert 0 < parts["floor"] <= parts["parameters"]
    assert parts["law"] == 0


def told(rows, needed=ROWS, **options):
    return checks.check_table(rows, needed, Options(**options), "chinchilla", False)


def test_a_loss_that_rises_with_compute_is_told_and_has_no_optimum():
    rows = runs(GRID)
    turned = [{**row, "loss": 6 - row["loss"]} for row in rows]
    assert any("losses rise with compute" in words for words in told(turned))
    assert not any("losses rise" in words for words in told(rows))
    law = named_law("overtraining")
    falls, rises = law.fitted(np.array([[1.7, 480.0, 1300.0, 0.17], [0.1, 0.1, 0.05, -0.07]]))
    assert np.isfinite(compute_optimal.optimal_params(law, falls[None], [1e21]))
    assert np.isnan(compute_optimal.optimal_params(law, rises[None], [1e21]))


def test_budgets_that_differ_by_whole_steps_do_not_rank_losses():
    sizes = np.geomspace(4e8, 3e9, 8)  # above the optimum: losses rise with size
    valley = runs([(n, 1e18 / 6 / n * (1 + 1e-13 * n)) for n in sizes])
    assert not any("losses rise" in words for words in told(valley))
    two = [*valley, *runs([(n, 3e18 / 6 / n) for n in sizes])]  # and fall with compute
    assert not any("losses rise" in words for words in told(two))
    assert any(
        "losses rise" in words for words in told([{**r, "loss": 9 - r["loss"]} for r in two])
    )


def test_two_ways_of_counting_flops_are_told_and_refused_where_they_are_read():
    rows = runs(GRID)
    mixed = [{**row, "flops": row["flops"] * (1.4 if i % 2 else 1.0)} for i, row in enumerate(rows)]
    jittered = [{**row, "flops": row["flops"] * (1 + 0.004 * (i % 5))}
                for i, row in enumerate(mixed)]  # fmt: skip
    for table in (mixed, jittered):
        assert sum("two conventions" in words for words in told(table)) == 1
        with pytest.raises(BadInput, match=r"two conventions.*--odd_units"):
            told(table, (*ROWS, "flops"))
        assert told(table, (*ROWS, "flops"), odd_units=True)
    by_size = [{**row, "flops": row["flops"] * (1.4 if row["params"] < 1e8 else 1.15)}
               for row in rows]  # fmt: skip
    for table in (rows, by_size):  # small models have a larger share of attention
        assert not any("two conventions" in words for words in told(table, (*ROWS, "flops")))


def test_rows_that_differ_in_tokens_are_no_seeds_of_a_law_of_params():
    rows = runs(GRID)
    assert seed_noise(rows, ("params",))["seed_noise"] is None
    alike = [{**row, "tokens": 1e9} for row in rows]
    assert seed_noise(alike, ("params",))["seed_noise"]


@pytest.mark.parametrize(("exponent", "known"), [(4e-14, False), (0.3, True)])
def test_exponents_that_are_nothing_but_rounding_have_no_optimum(exponent, known):
    """As where all losses are one: N* was 0, with all tokens of the budget."""
    law = named_law("chinchilla")
    theta = law.fitted(np.array([[1.7, 4e-4, 7e-4, exponent, 1.1 * exponent]]))
    assert np.isfinite(compute_optimal.optimal_params(law, theta, [1e21])).all() == known


def test_repeated_data_are_told():
    rows = runs(GRID)
    assert not any("saw their data" in words for words in told(rows))
    few = [{**row, "unique_tokens": 5e9} for row in rows]
    assert any("more than 4 times (up to 12)" in words for words in told(few))
    assert not any("saw their data" in words for words in told(few, (*ROWS, "unique_tokens")))
    epochs = [{**row, "epochs": 3 + i} for i, row in enumerate(rows[:9])]
    assert any("7 rows saw their data more than 4 times (up to 11)" in w for w in told(epochs))


def test_a_count_beyond_all_numbers_is_refused():
    rows = [{**row, "params": 1e300} if i == 3 else row for i, row in enumerate(runs(GRID))]
    with pytest.raises(BadInput, match=r"params of r3 is 1e\+300.*--where='params<1e\+60'"):
        told(rows)


def test_runs_given_as_optima_are_told():
    rows = runs([(n, c / n) for c in (1e17, 1e18, 1e19) for n in SIZES])
    words = fit_law("optima", rows)["warnings"]
    assert any("21 rows of 3 budgets were given as optima" in line for line in words)
    assert not fit_law("optima", rows[::7])["warnings"]


def test_an_envelope_of_runs_that_had_no_choice_is_no_optimum():
    """One or two lengths for each size: the exponent of .5 is that of the design. Twin: budgets at
    which several sizes were tried."""
    for ratios in ((20,), (20, 25)):
        with pytest.raises(BadInput, match="how the runs were chosen"):
            fit_law("envelope", runs([(n, k * n) for n in SIZES for k in ratios]), bootstrap=0)
    tried = [(n, c / n) for c in (1e16, 1e17, 1e18, 1e19) for n in SIZES]
    found = fit_law("envelope", runs(tried, noise=0), bootstrap=0)
    assert not any("how the runs were chosen" in words for words in found["warnings"])


def test_an_envelope_of_runs_that_mostly_had_no_choice_is_told():
    middle = SIZES[3]
    some = [(middle / 1.3, 8 * middle), (middle / 1.5, 30 * middle), (1.5 * middle, 13 * middle)]
    found = fit_law("envelope", runs([(n, 20 * n) for n in SIZES] + some, noise=0), bootstrap=0)
    (words,) = [w for w in found["warnings"] if "how the runs were chosen" in w]
    assert words.startswith("of 4 of the 5 runs")


def test_tokens_that_are_steps_in_some_rows_are_told():
    """Twin: rows that are all tokens, whatever the tokens per parameter."""
    rows = runs([(n, k * n) for n in SIZES for k in (1, 20, 200, 2000)])
    assert not checks._odd_tokens(rows, ROWS)
    mixed = [{**r, "tokens": r["tokens"] / (2**19 if i % 2 else 1)} for i, r in enumerate(rows)]
    (words,) = checks._odd_tokens(mixed, ROWS)
    assert words.startswith("14 rows have up to 0.0038 tokens per parameter, the other 14 from 1 ")
    assert "or some be steps" in words
    (words,) = checks._odd_tokens([{**r, "tokens": r["tokens"] / 2**19} for r in rows], ROWS)
    assert "steps: times the tokens of one" in words


def test_perplexities_of_good_models_are_no_losses():
    rows = runs(GRID)
    assert not checks._large_losses(rows, ROWS)
    told = checks._large_losses([{**r, "loss": math.exp(r["loss"] - 0.4)} for r in rows], ROWS)
    assert "--columns='loss=ln(loss)'" in told[0]
