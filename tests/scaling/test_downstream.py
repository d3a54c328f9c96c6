"""From compute to scores: what made the rows is found again, what is held out is not looked at, and
the way that fits what made the rows predicts them better."""

import json

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.report import downstream_text
from research.scaling import Options, downstream, flags, trends

SCORE = "score/copy"
FLOPS = np.geomspace(1e12, 3e15, 16)
OF_LOSS = {"E": 1.5, "A": 400.0, "alpha": 0.2}
OF_SCORE = {"floor": 0.25, "rise": 0.7, "k": 4.0, "L0": 2.2}


def made(seed=0, noise=0.0, run_noise=0.0, flops=FLOPS, score=None, **more):
    """Rows whose scores follow from their losses, or from `score` (FLOPs)."""
    rng = np.random.default_rng(seed)
    loss = OF_LOSS["E"] + OF_LOSS["A"] * flops ** -OF_LOSS["alpha"]
    loss = loss * np.exp(run_noise * rng.standard_normal(len(flops)))
    p = OF_SCORE
    y = p["floor"] + p["rise"] / (1 + np.exp(p["k"] * (loss - p["L0"])))
    y = (score(flops) if score else y) + noise * rng.standard_normal(len(flops))
    beside = {"score_chance/copy": 0.25, "score_recipe/copy": "abc", "status": "done", **more}
    return [
        {"run": f"r{i:02d}", "flops": float(c), "params": float(c**0.5),
         "tokens": float(c**0.5 / 6), "loss": float(x), SCORE: float(s), **beside}
        for i, (c, x, s) in enumerate(zip(flops, loss, y, strict=True))
    ]  # fmt: skip


def fitted(rows, **options):
    return downstream.fit_downstream(rows, Options(**options), SCORE)


def errors(section):
    return {way: e["mean_absolute_error"] for way, e in section["holdout"]["errors"].items()}


@pytest.fixture(scope="module")
def exact():
    return fitted(made())


def test_the_laws_that_made_the_rows_are_found(exact):
    laws = exact["laws"]
    assert laws["loss_of_flops"]["params"] == pytest.approx(OF_LOSS, rel=1e-3)
    assert laws["score_of_loss"]["params"] == pytest.approx(OF_SCORE, rel=1e-3)
    assert exact["chance"] == 0.25
    other = fitted([row | {"score_chance/copy": 0.2} for row in made()])
    assert other["laws"]["score_of_loss"]["params"]["floor"] == pytest.approx(0.2)
    assert other["laws"]["score_of_loss"]["params"]["k"] != pytest.approx(OF_SCORE["k"], rel=1e-3)


def test_a_chance_that_is_not_known_is_fitted():
    rows = [{k: v for k, v in row.items() if k != "score_chance/copy"} for row in made()]
    section = fitted(rows)
    assert section["chance"] is None
    assert section["laws"]["score_of_loss"]["params"] == pytest.approx(OF_SCORE, rel=1e-2)


def test_the_way_that_made_the_rows_predicts_what_was_held_out(exact):
    assert errors(exact)["two_steps"] < 1e-3
    assert errors(exact)["measured_loss"] < 1e-3
    assert errors(exact)["direct"] > 5e-3

    def direct(flops):
        return 0.25 + 0.7 / (1 + (3e14 / flops) ** 0.9)

    other = errors(fitted(made(score=direct)))
    assert other["direct"] < 1e-3
    assert other["two_steps"] > 2 * other["direct"]


def test_the_largest_runs_are_held_out_and_not_looked_at(exact):
    rows = made()
    held = [row["run"] for row in exact["holdout"]["rows"]]
    assert held == [row["run"] for row in rows[-len(held) :]]
    changed, other = (
        fitted([row | ({SCORE: 0.3} if row["run"] in of else {}) for row in rows], bootstrap=0)
        for of in (held, ["r12"])
    )
    for row, a, b in zip(*(s["holdout"]["rows"] for s in (exact, changed, other))):
        for way in ("direct", "two_steps"):
            assert a[way]["score"] == pytest.approx(row[way]["score"], rel=1e-9)
            assert b[way]["score"] != pytest.approx(row[way]["score"], rel=1e-9)
    of_all = (s["predictions"][0]["direct"]["score"] for s in (exact, changed))
    assert next(of_all) != pytest.approx(next(of_all), rel=1e-9)


def test_other_runs_can_be_held_out():
    section = fitted(made(), holdout="flops>1e15")
    assert {row["run"] for row in section["holdout"]["rows"]} == {
        row["run"] for row in made() if row["flops"] > 1e15
    }
    assert section["holdout"]["largest"] <= 1e15


@pytest.mark.slow
def test_intervals_hold_what_is_measured_and_grow_with_the_noise():
    inside, widths = 0, {}
    for noise in (0.003, 0.03):
        sections = [fitted(made(seed, noise, 0.003)) for seed in range(4)]
        rows = [row for section in sections for row in section["holdout"]["rows"]]
        for way in downstream.ROUTES:
            ends = np.array([row[way]["run_interval"] for row in rows])
            widths[noise, way] = float(np.median(ends[:, 1] - ends[:, 0]))
        inside += sum(s["holdout"]["errors"]["two_steps"]["covered"] for s in sections)
    assert inside >= 0.8 * 2 * len(rows)
    assert all(widths[0.03, way] > 1.5 * widths[0.003, way] for way in downstream.ROUTES)


def test_budgets_that_are_asked_are_predicted_by_both_ways(exact):
    (ahead,) = exact["predictions"]
    assert ahead["flops"] == pytest.approx(10 * FLOPS[-1])
    first, second = fitted(made(), predict_flops=[1e13, 1e17])["predictions"]
    assert first["two_steps"]["score"] < second["two_steps"]["score"] <= 1
    loss = OF_LOSS["E"] + OF_LOSS["A"] * 1e17 ** -OF_LOSS["alpha"]
    expected = 0.25 + 0.7 / (1 + np.exp(OF_SCORE["k"] * (loss - OF_SCORE["L0"])))
    assert second["two_steps"]["score"] == pytest.approx(expected, abs=1e-3)
    assert second["direct"]["score"] != pytest.approx(expected, abs=1e-3)
    assert first["direct"]["interval"][0] >= 0


def test_scores_that_were_not_measured_alike_are_refused():
    rows = made()
    rows[3]["score_recipe/copy"] = "other"
    with pytest.raises(BadInput, match="score_recipe/copy: abc, other"):
        fitted(rows)
    rows[3][SCORE] = None  # then it says nothing
    assert fitted(rows)["n_points"] == len(rows) - 1
    with pytest.raises(BadInput, match="no column 'score/other'"):
        downstream.fit_downstream(rows, Options(), "score/other")


def test_scores_that_no_way_describes_are_refused():
    """Percent was clipped to 1, and error rates had flat laws, with exit code 0."""
    free = {"score_chance/copy": ""}
    percent = [{**row, SCORE: 100 * row[SCORE], **free} for row in made(noise=0.01)]
    with pytest.raises(BadInput, match="expected shares between 0 and 1: of percent"):
        fitted(percent)
    rates = [{**row, SCORE: 1 - row[SCORE], **free} for row in made(noise=0.01)]
    with pytest.raises(BadInput, match=r"get worse as the loss falls \(rank correlation"):
        fitted(rates)
    for chance in (25, "a quarter"):
        with pytest.raises(BadInput, match=f"score_chance/copy: '{chance}'; expected a share"):
            fitted([{**row, "score_chance/copy": chance} for row in made()])
    for seed in range(5):  # scores of chance alone have a direction too
        downstream._check_scores(
            [{**row, "accuracy": row[SCORE]} for row in at_chance(seed)], SCORE
        )


def at_chance(seed=0):
    return made(seed, noise=0.01, score=lambda flops: 0.25 + 0 * flops)


@pytest.mark.parametrize("by", ["loss", "flops"])
def test_scores_that_fall_are_told_where_a_law_rises(by):
    rows = [{**row, "accuracy": row[SCORE]} for row in made(noise=0.01)]
    rates = [{**row, "accuracy": 1 - row[SCORE]} for row in rows]
    (told,) = trends.check_trends(rates, (by, "accuracy"))
    assert "add a column of 1 minus it" in told
    assert not trends.check_trends(rows, (by, "accuracy"))
    some = [{**row, "accuracy": row[SCORE]} for row in at_chance()]
    assert not trends.check_trends(some, (by, "accuracy"))


def test_few_rows_have_no_hold_out_and_fewer_no_law():
    section = fitted(made(flops=FLOPS[::4]))
    assert section["holdout"]["rows"] == []
    assert "without the largest runs: 2 distinct values" in section["holdout"]["why"]
    assert "no run is held out" in downstream_text.downstream(section)
    with pytest.raises(BadInput, match="3 distinct values of flops"):
        fitted(made(flops=FLOPS[::6]))


def test_the_text_has_both_ways_side_by_side(exact):
    shown = downstream_text.downstream(exact)
    assert "chance 0.25" in shown
    assert "FLOPs to score: accuracy(C) = floor + rise / (1 + (x_half / C)^k)" in shown
    assert len(downstream_text.table_rows(exact)) == len(exact["holdout"]["rows"]) + 1
    assert "by the loss ±0.000, 3 of 3 inside" in shown
    assert "by the loss ±0.000, without intervals" in downstream_text.downstream(
        fitted(made(), bootstrap=0)
    )


@pytest.mark.slow
def test_scores_at_chance_have_a_law_of_noise_and_it_is_said():
    rows, error = at_chance(), {"score_error/copy": 0.05}
    said = [downstream_text.downstream(fitted([row | error for row in rows], bootstrap=0))]
    rows[-1][SCORE] = 0.4
    said.append(downstream_text.downstream(fitted([row | error for row in rows], bootstrap=0)))
    assert "none of the scores is above chance by more than two standard errors" in said[0]
    assert "1 of the scores is above chance by more than two standard errors; a law" in said[1]
    fine = downstream_text.downstream(fitted([row | error for row in made()], bootstrap=0))
    assert "above chance" not in fine  # the twin


def parsed(*argv):
    import argparse

    parser = argparse.ArgumentParser()
    flags.add_flags(parser)
    return parser.parse_args(argv)


def test_the_law_of_a_score_is_one_that_rises():
    args = flags.with_law(parsed(f"--response={SCORE}"))
    assert args.law == "logistic"
    assert flags.parse_columns(args) == {"accuracy": SCORE}
    args = flags.with_law(parsed(f"--response={SCORE}", "--law=saturating"))
    assert (args.law, flags.parse_columns(args)) == ("saturating", {"accuracy": SCORE})
    bits = "score_bits/copy"
    args = flags.with_law(parsed(f"--response={bits}"))
    assert (args.law, flags.parse_columns(args)) == ("auto", {"loss": bits})
    with pytest.raises(BadInput, match="power is of a loss, which falls"):
        flags.with_law(parsed(f"--response={SCORE}", "--law=power"))


def test_the_command_writes_the_section(tmp_path, capsys, without_figures):
    table = tmp_path / "runs.json"
    table.write_text(json.dumps(made(noise=0.01, run_noise=0.003)))
    where = [f"--runs={table}", f"--out={tmp_path / 'out'}", "--bootstrap=0"]
    assert command.main([*where, "--law=power", "--against=flops", f"--downstream={SCORE}"]) == 0
    written = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert written["downstream"]["n_points"] == len(FLOPS)
    assert "directly" in capsys.readouterr().out
    assert command.main([*where, f"--response={SCORE}", "--against=flops"]) == 0
    written = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert written["law"] == "logistic"
    assert "downstream" not in written
