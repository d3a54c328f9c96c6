"""What rows share, and predictions that are averaged over laws."""

import math

import numpy as np
import pytest

from research.errors import BadInput
from research.report import fit_text
from research.scaling import (
    Fit,
    Options,
    analyze,
    averaged_predictions,
    averaging,
    compare,
    compute_optimal,
    design,
    effects,
    fit_law,
    lack_of_fit,
    named_law,
    split_rows,
)
from research.scaling.extrapolation import effects_of

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
SIZES = np.geomspace(2e7, 1.6e10, 20)
BUDGETS = 1e18 * 3.0 ** np.arange(7)


def truth(n, d, interaction=0.0):
    size, tokens = TRUTH["A"] * n ** -TRUTH["alpha"], TRUTH["B"] * d ** -TRUTH["beta"]
    return TRUTH["E"] + size + tokens + interaction * size * tokens


def iso_rows(seed=0, noise=0.001, of_sizes=0.0, of_valleys=0.0, of_levels=0.0, interaction=0.0):
    """Sizes of one ladder around the optimum of every budget; sizes, and budgets' valleys and
    levels, have effects of their own."""
    rng, rows = np.random.default_rng(seed), []
    worth = dict(zip(SIZES, np.exp(of_sizes * rng.standard_normal(len(SIZES))), strict=True))
    for c in BUDGETS:
        valley, level = (sd * rng.standard_normal() for sd in (of_valleys, of_levels))
        best = np.sqrt(c / 6) / 4.5
        for n in SIZES[(best / 5 < SIZES) & (best * 5 > SIZES)]:
            d = c / 6 / n
            loss = truth(n * worth[n] * math.exp(-valley), d * math.exp(valley), interaction)
            loss *= math.exp(level + noise * rng.standard_normal())
            rows.append({"run": f"{c:.0e}-{n:.0f}", "params": n, "tokens": d, "loss": loss})
    return rows


def fitted(rows, law="chinchilla", **options):
    law, options = named_law(law), Options(**options)
    return Fit(law, split_rows(law, rows, options), options)


@pytest.fixture(scope="module")
def plain():
    """The average over laws where the rows are those of the simplest."""
    return fit_law("auto", iso_rows(), predict_flops=[1e21, 1e23])


@pytest.fixture
def few_laws(monkeypatch):
    """An average over two laws instead of seven, where it matters not which."""
    monkeypatch.setattr(averaging, "BY_BOTH", ("chinchilla", "overtraining"))


def median_effects(**true):
    return np.median([fitted(iso_rows(seed, **true)).effects.mean_sds() for seed in range(5)], 0)


@pytest.fixture(scope="module")
def quiet():
    return median_effects()


@pytest.mark.parametrize("which", range(3))
def test_effects_are_found_where_they_are(which, quiet):
    true = {"of_sizes": 0.04, "of_valleys": 0.12, "of_levels": 0.004}
    name = list(true)[which]
    median = median_effects(**{name: true[name]})
    assert median[which] == pytest.approx(true[name], rel=0.5)
    assert median[which] > 2.5 * quiet[which]
    for other in {0, 1, 2} - {which}:
        assert median[other] < 0.5 * list(true.values())[other]


def test_effects_need_sizes_and_budgets_that_were_trained_more_than_once():
    rng = np.random.default_rng(0)
    tokens = rng.permutation(np.geomspace(1e9, 3e11, 14))
    rows = [
        {"run": str(i), "params": n, "tokens": d, "loss": truth(n, d) * (1 + rng.normal() / 1e3)}
        for i, (n, d) in enumerate(zip(np.geomspace(2e7, 1e10, 14), tokens, strict=True))
    ]
    assert not fitted(rows).effects.shared
    assert fitted(iso_rows()).effects.shared


def exponent_interval(rows):
    optimal = compute_optimal.optimal_power_laws(fitted(rows))
    return optimal["intervals"]["params_exponent"]


def test_what_budgets_share_widens_the_intervals():
    true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    inside, widths = 0, []
    for seed in range(12):
        low, high = exponent_interval(iso_rows(seed, of_valleys=0.1))
        inside += low < true < high
        widths.append(high - low)
    assert inside >= 10
    low, high = exponent_interval(iso_rows())
    assert np.median(widths) > 3 * (high - low)


def test_the_derivatives_of_the_loss_are_those_of_the_law():
    law = named_law("chinchilla")
    theta = law.fitted(np.array(list(TRUTH.values())))
    n, d = np.array([1e8, 3e9]), np.array([2e9, 1e10])
    along_n, along_budget = effects.log_loss_slope(law, theta, {"params": n, "tokens": d})
    of_n = -TRUTH["alpha"] * TRUTH["A"] * n ** -TRUTH["alpha"] / truth(n, d)
    of_d = -TRUTH["beta"] * TRUTH["B"] * d ** -TRUTH["beta"] / truth(n, d)
    np.testing.assert_allclose(along_n, of_n, rtol=1e-5)
    np.testing.assert_allclose(along_budget, of_n - of_d, rtol=1e-4)
    assert not np.allclose(along_budget, along_n, rtol=1e-2)


def weights(document):
    out = {}
    for law in document["laws"]:
        out[law["law"]] = out.get(law["law"], 0.0) + law["weight"]
    return out


@pytest.mark.slow
def test_the_law_that_made_the_rows_weighs_most_and_predicts(plain):
    document = fit_law("auto", iso_rows(interaction=2.0), predict_flops=[1e22])
    assert weights(document)["chinchilla"] < 0.05
    assert weights(document)["interaction"] + weights(document)["skaling"] > 0.9
    (point,) = document["predictions"]
    n, d = point["params"], point["tokens"]
    low, high = point["interval"]
    assert low < truth(n, d, 2.0) < high
    assert not low < truth(n, d) < high
    of_plain = weights(plain)
    assert of_plain["chinchilla"] > 0.15
    assert sum(of_plain.values()) == pytest.approx(1, abs=0.02)


def test_an_average_says_what_its_interval_is_made_of(plain, few_laws):
    near, far = plain["predictions"]
    for point in (near, far):
        parts = point["parts"]
        assert set(parts) == {"noise", "parameters", "law", "floor"}
        assert parts["floor"] <= parts["parameters"]
        low, high = np.log(point["interval"])
        own = np.hypot(parts["parameters"], parts["law"])
        assert (high - low) / 2 == pytest.approx(own, rel=0.25)
        run_low, run_high = np.log(point["run_interval"])
        assert run_low < low < high < run_high
    assert far["parts"]["law"] > 3 * near["parts"]["law"]
    noisy = fit_law("auto", iso_rows(noise=0.01), predict_flops=[1e21])["predictions"][0]
    assert noisy["parts"]["noise"] > 4 * near["parts"]["noise"]
    words = fit_text.fit_summary(plain)
    assert "averaged over laws" in words
    assert "choice of the law" in words


def test_held_out_rows_are_predicted_by_the_average(few_laws):
    document = fit_law("auto", iso_rows(), holdout="params>3e9")
    held = document["holdout"]
    assert held["covered"] >= len(held["rows"]) - 1
    assert document["n_points"] + len(held["rows"]) == len(iso_rows())
    moved = [{**r, "loss": r["loss"] * (1.05 if r["params"] > 3e9 else 1)} for r in iso_rows()]
    assert fit_law("auto", moved, holdout="params>3e9")["holdout"]["covered"] == 0


def asked(rows, options=Options()):  # noqa: B008
    """The names of the laws that are asked about rows, each once."""
    return tuple(dict.fromkeys(law.name for law in averaging.candidates(rows, options)))


def test_rows_of_one_column_are_averaged_over_laws_of_one():
    rows = [
        {"run": str(i), "params": n, "loss": 1.4 + 32 / n**0.4}
        for i, n in enumerate(np.geomspace(1e4, 1e6, 9))
    ]
    document = fit_law("auto", rows, predict=[1e7])
    assert {law["law"] for law in document["laws"]} == {"power", "broken"}
    assert document["predictions"][0]["loss"] == pytest.approx(1.4 + 32 / 1e7**0.4, rel=0.01)
    assert asked(iso_rows()) == averaging.BY_BOTH
    together = [{**r, "tokens": 20 * r["params"]} for r in iso_rows()]
    assert asked(together) == averaging.BY_ONE


def test_a_floor_that_is_given_is_not_uncertain(few_laws):
    free = fit_law("auto", iso_rows(), predict_flops=[1e23])["predictions"][0]
    given = fit_law("auto", iso_rows(), predict_flops=[1e23], fix={"E": 1.8})["predictions"][0]
    assert given["parts"]["floor"] < 1e-9
    assert given["parts"]["parameters"] < free["parts"]["parameters"]


def test_rows_that_no_law_fits_are_refused():
    with pytest.raises(BadInput, match="distinct"):
        fit_law("auto", iso_rows()[:3])


def test_rows_of_one_run_are_no_matter_for_an_average(few_laws):
    rows = iso_rows()
    twice = rows + [{**row, "loss": row["loss"] * 1.001} for row in rows]
    with pytest.raises(BadInput, match=r"rows of one run err together.*--last_rows.*--law="):
        fit_law("auto", twice)
    assert fit_law("chinchilla", twice)["n_points"] == len(twice)
    with pytest.raises(BadInput, match="--cluster"):
        fit_law("auto", rows, cluster="group")


def test_laws_of_size_and_tokens_are_asked_where_both_vary():
    rows = iso_rows()
    assert asked(rows) == averaging.BY_BOTH
    of_one_size = [{**row, "params": 1e8} for row in rows]
    alike = [{**row, "tokens": 20 * row["params"]} for row in rows]
    without = [{k: v for k, v in row.items() if k != "tokens"} for row in rows]
    for table in (of_one_size, alike, without):
        assert asked(table) == averaging.BY_ONE
    # Rows that are not fitted do not decide.
    one_budget = Options(where="tokens==1e9")
    some = rows + [{**row, "tokens": 1e9} for row in rows]
    assert asked(some, one_budget) == averaging.BY_ONE
    assert asked(some) == averaging.BY_BOTH
    with pytest.raises(BadInput, match="params"):
        averaging.candidates([{**row, "params": "large"} for row in rows], Options())


@pytest.mark.slow
def test_few_rows_do_not_choose_the_simplest_law():
    """A correction for few rows would leave the law of fewest parameters alone, with an interval
    that is too narrow."""
    for seed in range(2):
        some = iso_rows(seed, noise=0.003)[3::9][:8]
        assert weights(fit_law("auto", some))["overtraining"] < 0.5


def test_a_law_whose_loss_would_rise_has_no_weight(monkeypatch):
    monkeypatch.setattr(averaging, "BY_BOTH", ("chinchilla", "skaling"))
    rising = [{**row, "loss": 2 + 1e-3 * row["params"] ** 0.25 + 40 * row["tokens"] ** -0.2}
              for row in iso_rows()]  # fmt: skip
    average = averaging.fit_average(
        averaging.candidates(iso_rows(), Options()), iso_rows(), Options()
    )
    assert not any(averaging.rising(member.fit) for member in average.members)
    # Where no law falls, the least wrong one answers, with a warning.
    document = fit_law("auto", rising)
    assert any("alpha is negative" in words for words in document["warnings"])
    fits = [averaging.rising(fitted(rows)) for rows in (rising, iso_rows())]
    assert [bool(reason) for reason in fits] == [True, False]


def test_a_law_that_bends_in_place_of_a_floor_has_no_weight(monkeypatch):
    """But where the simplest law has no floor either, nobody knows that there is one."""
    monkeypatch.setattr(averaging, "BY_BOTH", ("chinchilla", "skaling"))

    def average(k, floor, size, tokens):
        rows = iso_rows()[::3]
        for row in rows:
            two = size * row["params"] ** -0.34 + tokens * row["tokens"] ** -0.59
            row["loss"] = floor + two**k
        options = Options(bootstrap=0)
        return averaging.fit_average(averaging.candidates(rows, options), rows, options)

    bent, straight = average(0.54, 0.0, 78.0, 4700.0), average(1.0, 0.0, 78.0, 4700.0)
    assert "skaling" not in [member.fit.law.name for member in bent.members]
    (reason,) = [other["reason"] for other in bent.others]
    assert reason == "its E vanishes, and that of chinchilla does not"
    assert not any("E vanishes" in other["reason"] for other in straight.others)
    assert not averaging.has_floor(straight.members[0].fit)
    # Not even where the law that contains it has one.
    only_there = average(1.5, 3e-4, 78.0, 4700.0)
    assert [averaging.has_floor(fit) for fit in only_there.fits] == [False, True]
    assert not any("E vanishes" in other["reason"] for other in only_there.others)
    # That it would have followed the rows better is told.
    assert [fit.law.name for fit in bent.fits] == ["chinchilla", "skaling"]
    (told,) = averaged_predictions._floor_warning(bent)
    assert told.startswith("skaling follows these rows better")
    assert not averaged_predictions._floor_warning(straight)
    document = averaged_predictions.build_average(bent, Options(bootstrap=0))
    assert told in document["warnings"]
    said = fit_text.laws_sentence(document["laws"])
    assert said == f"predictions are of chinchilla alone: skaling is left out: {reason}"


def test_a_law_that_describes_the_rows_is_asked_before_none_is_said_to(monkeypatch):
    off = {"chinchilla": 0.02, "skaling": 0.0}
    fits = [fitted(iso_rows(noise=0.01), law) for law in off]
    monkeypatch.setattr(lack_of_fit, "misfit", lambda fit: off[fit.law.name])
    assert not lack_of_fit.misfit_warning(fits, averaged=True)
    off["skaling"] = 0.03
    (told,) = lack_of_fit.misfit_warning(fits, averaged=True)
    assert told.startswith("no law here describes these rows: the nearest, chinchilla, is off by 2")


def test_a_prediction_that_says_little_tells_why():
    def told(by_laws, **at):
        parts = {"law": 0.3 if by_laws else 0.1, "parameters": 0.2}
        point = {**at, "interval": [1.0, 2.0], "parts": parts}
        (words,) = averaged_predictions._wide_warnings("loss", [point])
        assert words.startswith("the loss is known to ±41% only: ")
        return words

    assert "disagree" in told(True, flops=1e21)
    assert "do not determine the parameters" in told(False, flops=1e21)
    # Budgets have best sizes only where sizes and tokens are read.
    for by_laws in (True, False):
        assert "best size of their budget" in told(by_laws, flops=1e21, params=1e9)
        assert "best size of their budget" not in told(by_laws, flops=1e21)
    narrow = {"flops": 1e21, "interval": [1.0, 1.1], "parts": {"law": 0.0, "parameters": 0.05}}
    assert not averaged_predictions._wide_warnings("loss", [narrow])


def test_a_law_drifts_by_what_budgets_do_and_by_how_far_the_point_is(plain):
    fit = fitted(iso_rows())

    def outside(n, d):
        return averaged_predictions._decades_outside(
            fit, {"params": np.array([n]), "tokens": np.array([d])}
        )

    largest = max(fit.parts.fitted, key=lambda row: row["params"] * row["tokens"])
    n, d = largest["params"], largest["tokens"]
    assert outside(n, d) == pytest.approx(0, abs=1e-12)
    assert outside(*np.sqrt([SIZES[8] * n, 1e9 * d])) == 0
    far = outside(10 * n, 10 * d)
    assert far == pytest.approx(2, abs=0.25)
    assert outside(n, 1e3 * d) > far  # tokens that nobody has seen, at a size of the table
    assert outside(1e-3 * n, 1e-3 * d) > 1

    quiet, level, valley = (
        fitted(iso_rows(2, **{name: sd})).effects
        for name, sd in (("of_sizes", 0.0), ("of_levels", 0.004), ("of_valleys", 0.12))
    )
    assert level.of_budget(0.0) > 3 * quiet.of_budget(0.0)
    assert valley.of_budget(0.0) < level.of_budget(0.0)
    # Where the loss does not change with size at a budget, that its valley lies elsewhere is free.
    assert valley.of_budget(0.05) > 3 * valley.of_budget(0.0)
    assert valley.of_budget(100.0) == valley.off_the_law


def test_misfit_is_no_effect_of_budgets():
    """Whole budgets that are a tenth off in their losses are no level that was tuned a little
    otherwise: their standard deviation is held well below what they show."""
    for seed in range(3):
        level = fitted(iso_rows(seed, of_levels=0.1)).effects.mean_sds()[2]
        assert 0.02 < level < 0.06


def test_a_parameter_of_nothing_explains_no_residuals():
    """The interaction of rows that have none ends at 0, and the law is Chinchilla's: as a logarithm
    its derivative is all but 0, and linearized it followed residuals with a value below 0."""
    noisy = iso_rows(noise=0.01)
    one, more = (effects_of(fitted(noisy, law)) for law in ("chinchilla", "interaction"))
    assert fitted(noisy, "interaction").params["G"] < 1e-3
    assert more.deviance == pytest.approx(one.deviance, abs=0.01)
    real = iso_rows(noise=0.001, interaction=0.5)
    one, more = (effects_of(fitted(real, law)) for law in ("chinchilla", "interaction"))
    assert more.deviance < one.deviance - 10


def test_how_rows_are_followed_counts_as_a_few_rows(monkeypatch, few_laws):
    """Doubling a table doubles what AIC says, and hardly changes what the laws weigh."""
    rows = iso_rows(interaction=0.05, noise=0.003)
    once = fit_law("auto", rows, bootstrap=0)
    odds = [one["weight"] for one in once["laws"]]
    aic = [one["aic"] for one in once["laws"] if "aic" in one]
    assert max(aic) - min(aic) > 10
    monkeypatch.setattr(averaging, "TELLING", 10**9)
    sure = fit_law("auto", rows, bootstrap=0)
    assert min(odds) > 0.02
    assert min(one["weight"] for one in sure["laws"]) < min(odds) / 5


def test_where_an_exponent_changes_is_told_by_all_rows_and_counts_as_one_law():
    """Breaks that fit alike share the weight of one law; of others the best has nearly all."""
    telling = averaging.TELLING / 60

    def weights_of(kind):
        return np.exp([averaging._support(a, np.array(kind), telling) for a in kind])

    assert weights_of([5.0] * 3) == pytest.approx(weights_of([5.0])[0] / 3)
    apart = weights_of([0.0, 20.0, 20.0])
    assert apart[0] > 0.99 * apart.sum()
    # Neither more than that of a law which follows the rows as well, nor much less.
    assert 0.9 * weights_of([0.0])[0] < apart.sum() <= weights_of([0.0])[0]


def test_the_page_says_that_other_laws_could_not_be_fitted():
    one = {"law": "chinchilla", "weight": 1.0}
    lost = {"law": "skaling", "weight": 0.0, "fitted": False, "reason": "too few rows"}
    weak = {"law": "skaling", "weight": 1e-9, "reason": "too small"}
    assert "could be fitted" in fit_text.laws_sentence([one, lost])
    assert fit_text.laws_sentence([one, weak]).endswith("the other laws have next to no weight")


def test_sizes_and_budgets_of_one_row_share_what_the_others_tell():
    rows = iso_rows(of_sizes=0.04)
    sizes = [row["params"] for row in rows]
    alone = [i for i, n in enumerate(sizes) if sizes.count(n) == 1]
    alone = [i for i in alone if sizes[i] < 1e8]  # whose loss depends on their size
    assert alone
    of_sizes = fitted(rows).effects
    assert of_sizes.designs[0].shape[1] == len(set(sizes))
    variance = np.diag(of_sizes.covariance())
    quiet = np.diag(fitted(iso_rows()).effects.covariance())
    assert (variance[alone] > 4 * quiet[alone]).all()


def two_recipes(seed, of_sizes, multiplier=1.25, more=0.0):
    """Tables of two recipes, whose architectures are worth more or less each in its own way."""
    out = []
    for i, (name, m) in enumerate((("adamw", 1.0), ("muon", multiplier))):
        for row in iso_rows(2 * seed + i, of_sizes=of_sizes):
            n, d = row["params"], row["tokens"]
            loss = row["loss"] * truth(n * m**0.5, d * m**0.5) / truth(n, d)
            loss += i * more * (n / 1e9) ** -0.1
            out.append({**row, "run": f"{name}-{row['run']}", "loss": loss, "group": name})
    return out


def compared(*table):
    law = named_law("chinchilla")
    return compare.fit_groups(law, two_recipes(*table), Options(), "group")[1]


def multiplier(section):
    return section["groups"]["muon"]["compute_multiplier"]["interval"]


@pytest.mark.slow
def test_multipliers_are_less_certain_where_architectures_differ():
    quiet, scattered = (np.ptp(multiplier(compared(0, of_sizes))) for of_sizes in (0.0, 0.05))
    assert scattered > 2 * quiet
    assert not compared(0, 0.0, 1.25, 0.02)["test"]["shared_exponents_justified"]


@pytest.mark.slow
@pytest.mark.parametrize("of_sizes", [0.0, 0.05])
def test_multipliers_and_their_test_hold_what_they_say(of_sizes):
    sections = [compared(seed, of_sizes) for seed in range(12)]
    ends = [multiplier(section) for section in sections]
    assert sum(low < 1.25 < high for low, high in ends) >= 10
    assert sum(not s["test"]["shared_exponents_justified"] for s in sections) <= 3


def test_proposals_know_that_rows_of_one_size_err_together():
    halves = []
    for of_sizes in (0.0, 0.05):
        fit = fitted(iso_rows(of_sizes=of_sizes))
        target = {"params": 3e10, "tokens": 6e11}
        plan = design.propose_runs([(fit, 1.0)], target, 1e22)
        _, interval, _ = fit.predict({k: [v] for k, v in target.items()})
        half = float(np.diff(np.log(interval[0]))[0]) / 2
        assert plan["half_width_before"] == pytest.approx(half, rel=0.35)
        assert plan["half_width_after"] < plan["half_width_before"]
        halves.append(half)
    assert halves[1] > 2 * halves[0]


def test_proposals_are_averaged_over_laws():
    average = averaging.fit_average(
        [named_law(name) for name in ("chinchilla", "interaction")], iso_rows()[::2], Options()
    )
    options = Options(predict_flops=[1e23])
    both, alone = average.weighted, [[(fit, 1.0)] for fit, _ in average.weighted]
    assert both[0][0] is average.best
    assert len(both) == 2
    target = design.prediction_target(both, options)
    sizes = [design.prediction_target(one, options)["params"] for one in alone]
    assert min(sizes) < target["params"] < max(sizes)
    plan = design.propose_runs(both, target, 1e21)
    plans = [design.propose_runs(one, target, 1e21) for one in alone]
    weights = [weight for _, weight in both]
    before = np.average([one["half_width_before"] ** 2 for one in plans], weights=weights)
    assert plan["half_width_before"] ** 2 == pytest.approx(before)
    least = np.average([one["half_width_after"] ** 2 for one in plans], weights=weights)
    assert least <= plan["half_width_after"] ** 2 * 1.05  # each alone is free to choose its own
    assert plan["half_width_after"] < plan["half_width_before"]


@pytest.mark.slow
def test_stages_are_averaged_over_laws():
    rows = [{**row, "flops": 6 * row["params"] * row["tokens"]} for row in iso_rows()[::3]]
    options = {"predict_flops": [1e22]}
    found = analyze("auto", rows, options, anytime=True, checks_too=False).document
    last = found["settling"]["stages"][-1]
    (whole,) = found["predictions"]
    assert last["runs"] == len(rows)
    assert last["loss"] == pytest.approx(whole["loss"], rel=2e-3)
    one = analyze("chinchilla", rows, options, anytime=True, checks_too=False).document
    assert one["settling"]["stages"][-1]["loss"] != last["loss"]
    assert np.ptp(last["interval"]) > 0.8 * np.ptp(one["settling"]["stages"][-1]["interval"])


def test_a_stage_that_leaves_the_interval_before_it_is_no_reason_to_stop():
    before = {"loss": 2.9, "interval": [2.85, 2.95], "noise": 0.05}
    out = design._suggestion([before, {"loss": 2.84, "interval": [2.8, 2.88], "noise": 0.05}])
    assert out.startswith("continue, and doubt the law")
    inside = design._suggestion([before, {"loss": 2.88, "interval": [2.85, 2.91], "noise": 0.05}])
    assert inside.startswith("stop")


def test_an_average_has_the_break_that_its_rows_tell():
    rows = iso_rows(noise=0.0003)
    at = float(np.median([row["params"] for row in rows]))
    for row in rows:
        size = TRUTH["A"] * row["params"] ** -TRUTH["alpha"]
        row["loss"] += size * (max(row["params"] / at, 1.0) ** -0.25 - 1)
    laws = averaging.candidates(rows, Options())
    members = averaging.fit_average(laws, rows, Options()).members
    weights = [m.weight for m in members if m.fit.law.name == "broken_size"]
    assert sum(weights) > 0.5
    assert max(weights) > 0.9 * sum(weights)


def test_a_prediction_that_is_hardly_known_says_so_and_why():
    def told(*points, law=0.3, parameters=0.1, **more):
        parts = {"noise": 0.01, "parameters": parameters, "law": law}
        each = [{"loss": 3.0, "interval": [*ends], "parts": parts, **more} for ends in points]
        return averaged_predictions._wide_warnings("loss", each)

    (words,) = told((2.9, 3.1), (2.0, 4.5), flops=1e20, params=1e9)
    assert words.startswith("the loss is known to ±50% only: the laws that fit these rows disagree")
    assert "--law=isoflop" in words
    (words,) = told((2.0, 4.5), law=0.1, parameters=0.3)
    assert "do not determine the parameters" in words
    assert "--law=isoflop" not in words
    assert not told((2.6, 3.4), (None, 4.5))


@pytest.mark.slow
def test_rows_that_no_law_describes_are_told_with_what_to_do(few_laws):
    def told(law, rows):
        return [w for w in fit_law(law, rows)["warnings"] if "beyond their noise (F test)" in w]

    wavy = [{**row, "loss": row["loss"] * (1 + 0.04 * math.sin(math.log(row["params"])))}
            for row in iso_rows()]  # fmt: skip
    bent = iso_rows(interaction=2.0)
    (words,) = told("auto", wavy)
    assert words.startswith("no law here describes these rows: the nearest, ")
    assert "--law=isoflop" in words
    (words,) = told("chinchilla", bent)
    assert words.startswith("chinchilla does not describe these rows: it is off by 2")
    assert told("chinchilla", iso_rows()) == told("interaction", bent) == []
    scattered = iso_rows(noise=0.02, of_sizes=0.05, of_valleys=0.1)
    assert told("chinchilla", scattered) == []
    rng = np.random.default_rng(0)
    crashed = iso_rows()
    for i in rng.choice(len(crashed), 4, replace=False):
        crashed[i]["loss"] *= 1 + rng.uniform(0.1, 0.6)
    assert told("chinchilla", crashed) == []
