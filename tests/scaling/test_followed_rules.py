"""What a fit says of the rules that its runs followed."""

import pytest

from research.scaling import analyze
from research.scaling.followed_rules import (
    followed_rules,
    ratio_warning,
    repeat_warning,
    rule_warnings,
)
from tests.scaling.test_minima import iso_rows

BY_WIDTH = "size given\nlearning rate = 0.2 / width\nwidth {}: {}"
FIXED = "learning rate = {}, whatever the size"
MOVED = "transfer complete_p: the numbers of the config hold at width 64, depth 2, head size 16"


def rows(*rules):
    return [{"run": f"r{i}", "rules": text} for i, text in enumerate(rules)]


def test_runs_of_one_rule_are_told_with_their_range_of_rates():
    tuned = rows(*(FIXED.format(lr) for lr in (0.01, 0.001, 0.1)))
    assert followed_rules(tuned) == {
        "learning rate = ": {"learning rate = 0.001 to 0.1, whatever the size": 3}
    }
    assert rule_warnings(tuned) == []
    by_width = rows(*(BY_WIDTH.format(w, 0.2 / w) for w in (16, 32)))
    assert followed_rules(by_width)["learning rate = "] == {"learning rate = 0.2 / width": 2}
    horizon = "horizon power_lines (Power Lines): the numbers hold at 1e+06 tokens and batch 4"
    several = rows(*(f"{FIXED.format(1)}\n{horizon}; batch x {x}, tokens x 2" for x in (1, 2)))
    assert followed_rules(several)["horizon "] == {horizon: 2}
    assert rule_warnings(several) == []
    assert followed_rules([{"run": "a", "loss": 1.0}]) == {}  # a table from elsewhere


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ((BY_WIDTH.format(16, 0.1), FIXED.format(0.1)), "learning rate = 0.1, whatever the size"),
        ((FIXED.format(1), f"{FIXED.format(1)}\n{MOVED}"), "no rule of transfer (1 of them)"),
        ((MOVED, MOVED.replace("width 64", "width 128")), "hold at width 128"),
        ((FIXED.format(1), f"{FIXED.format(1)}\nbatch = 0.58 tokens^0.571"), "as the config gives"),
    ],
)
def test_runs_of_several_rules_are_a_warning(rules, says):
    (told,) = rule_warnings(rows(*rules))
    assert told.startswith("these runs follow 2 rules: ")
    assert says in told


def test_a_target_of_other_tokens_per_parameter_is_a_warning():
    runs = [{"run": f"r{n}", "params": 1e6, "tokens": 1e6 * n} for n in (5, 10, 20, 40)]
    assert ratio_warning(runs, [{"tokens_per_param": 20.0}]) == []
    assert ratio_warning(runs, [{"tokens_per_param": None}]) == ratio_warning(runs, []) == []
    (told,) = ratio_warning(runs, [{"tokens_per_param": 20.0}, {"tokens_per_param": 400.0}])
    assert "400 tokens per parameter, the runs 5 to 40, 0 of 4 within a factor of 4" in told
    (told,) = ratio_warning(runs, [{"tokens_per_param": 81.0}])
    assert "1 of 4 within" in told


def test_a_target_that_would_repeat_the_data_is_a_warning():
    runs = [{"run": f"r{n}", "params": n, "tokens": 1e6, "unique_tokens": 1.5e6} for n in (1, 2)]
    assert repeat_warning(runs, [{"tokens": 5e6}]) == repeat_warning(runs, []) == []
    (told,) = repeat_warning(runs, [{"tokens": 5e6}, {"tokens": 9e6}])
    assert "takes 9M tokens, 6 times the 1.5M that the data have" in told
    assert repeat_warning([*runs, {"params": 3, "tokens": 1e6}], [{"tokens": 9e6}]) == []
    table = [{**row, "unique_tokens": 1e12} for row in iso_rows(0.001)]
    for unique, count in ((1e12, 0), (1e8, 1)):
        for row in table:
            row["unique_tokens"] = unique
        options = {"bootstrap": 0, "predict_flops": [1e22]}
        told = analyze("chinchilla", table, options, checks_too=False).document["warnings"]
        assert sum("that the data have" in line for line in told) == count


def test_a_fit_says_that_it_mixes_rules():
    table = iso_rows(0.001)
    for i, row in enumerate(table):
        row["rules"] = BY_WIDTH.format(16, 0.1) if i % 2 else FIXED.format(0.1)

    def told():
        return analyze("chinchilla", table, {"bootstrap": 0}, checks_too=False).document["warnings"]

    assert any("these runs follow 2 rules" in line for line in told())
    for row in table:
        row["rules"] = FIXED.format(0.1)
    assert not any("rules" in line for line in told())
