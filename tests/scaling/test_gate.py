"""The promotion decision of `experiments.fit --compare=COLUMN --gate='B>A@C'`."""

import csv

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.io import files
from research.scaling import analyze, gate


def grid(multiplier, alpha=0.35, noise=0.002):
    """Two groups at four budgets, five sizes each; the second needs 1/multiplier of the compute,
    and has an exponent of its own where `alpha` is not 0.35."""
    rng, rows = np.random.default_rng(0), []
    for name, m, a in (("adamw", 1.0, 0.35), ("muon", multiplier, alpha)):
        for c in np.geomspace(1e18, 1e20, 4):
            for n in 0.1 * np.sqrt(c) * np.geomspace(1 / 8, 8, 5):
                d = c / 6 / n
                loss = 1.8 + 480 / (n * m**0.5) ** a + 2100 / (d * m**0.5) ** 0.37
                loss *= np.exp(noise * rng.standard_normal())
                rows.append({"optimizer": name, "params": n, "tokens": d, "loss": loss})
    return rows


def curve(multiplier, exponent=0.2, noise=0.002, seed=0):
    """The same along one size for each budget: a law of FLOPs alone."""
    rng, rows = np.random.default_rng(seed), []
    for name, m, a in (("adamw", 1.0, 0.2), ("muon", multiplier, exponent)):
        for c in np.geomspace(1e15, 1e19, 12):
            loss = 1.5 + 2 / (m * c / 1e15) ** a
            loss *= np.exp(noise * rng.standard_normal())
            rows.append({"optimizer": name, "flops": c, "loss": loss})
    return rows


def decided(rows, text, law="power"):
    options = {"against": "flops"} if law == "power" else {}
    found = analyze(
        law, rows, options, compare_by="optimizer", checks_too=False, gate=text
    ).document
    return found["compare"]["gate"]


def test_a_better_recipe_passes_and_the_worse_one_does_not():
    rows = curve(1.5)
    better = decided(rows, "muon>adamw@1e19")
    assert better["passed"]
    assert better["by"] == "shared exponents"
    low, high = better["multiplier"]["interval"]
    assert low < 1.5 < high
    assert high / low < 1.2
    worse = decided(rows, "adamw>muon@1e19")
    assert not worse["passed"]
    assert worse["multiplier"]["value"] == pytest.approx(1 / better["multiplier"]["value"], 1e-3)


@pytest.mark.slow
def test_equal_recipes_seldom_pass():
    outcomes = [decided(curve(1.0, seed=s), "muon>adamw@1e19") for s in range(10)]
    assert [o["passed"] for o in outcomes].count(True) <= 2  # .025 each


def test_where_exponents_differ_the_laws_of_the_groups_decide_at_the_budget():
    rows = curve(1.0, exponent=0.24)
    near, far = (decided(rows, f"muon>adamw@{c}") for c in ("1e16", "1e18"))
    for found, c in ((near, 1e16), (far, 1e18)):
        assert found["by"] == "own laws"
        true = (c / 1e15) ** (0.24 / 0.2) / (c / 1e15)  # L_A(m C) = L_B(C)
        low, high = found["multiplier"]["interval"]
        assert low < true < high
        assert high / low < 1.5
    assert far["multiplier"]["value"] > 1.5 * near["multiplier"]["value"]


@pytest.mark.slow
def test_of_sizes_and_tokens_the_best_size_of_each_budget_is_compared():
    better = decided(grid(1.5), "muon>adamw@1e20", "chinchilla")
    assert better["passed"]
    low, high = better["multiplier"]["interval"]
    assert low < 1.5 < high
    rows = grid(1.0, alpha=0.36, noise=0.0005)
    own = decided(rows, "muon>adamw@1e20", "chinchilla")
    assert own["by"] == "own laws"

    def least(c, a):
        n = np.geomspace(1e6, 1e12, 20001)
        return (1.8 + 480 / n**a + 2100 / (c / 6 / n) ** 0.37).min()

    m = own["multiplier"]["value"]
    assert least(m * 1e20, 0.35) == pytest.approx(least(1e20, 0.36), rel=2e-3)
    assert least(1e20, 0.35) != pytest.approx(least(1e20, 0.36), rel=2e-3)  # a twin


def test_the_command_says_it_by_one_line_and_its_exit_code(tmp_path, capsys, without_figures):
    rows, path = curve(1.5), tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    flags = [f"--runs={path}", "--law=power", "--against=flops", "--compare=optimizer"]
    flags += [f"--out={tmp_path}/fit", "--bootstrap=0"]
    assert command.main([*flags, "--gate=muon>adamw@1e19"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gate ")]
    assert len(said) == 1
    assert "gate passed: muon at 1e19 is worth 1." in said[0]
    assert files.read_json(tmp_path / "fit" / "fit.json")["compare"]["gate"]["passed"] is True
    assert command.main([*flags, "--gate=adamw>muon@1e19"]) == 1
    assert "gate not passed" in capsys.readouterr().out


def test_how_far_beyond_the_table_it_is_asked_is_told():
    assert "beyond" not in decided(curve(1.5), "muon>adamw@1e19")["words"]
    far = decided(curve(1.5), "muon>adamw@1e23")["words"]
    assert "1e+04 times beyond the table's largest" in far
    near = decided(curve(1.5), "muon>adamw@1e7")["words"]
    assert "1e+08 times below the table's smallest" in near


@pytest.mark.parametrize("asked", ["muon>adamw@1e19", None])
def test_where_the_loss_rises_with_compute_nothing_is_worth_compute(asked):
    rows = [{**row, "loss": 10 / row["loss"]} for row in curve(1.5)]
    with pytest.raises(BadInput, match="does not fall with flops"):
        decided(rows, asked)
    assert decided(curve(1.5), "muon>adamw@1e19")["passed"]


def test_names_may_hold_the_signs_of_the_grammar():
    found = gate.parse_gate("a>b>c@x@1e3", ["a>b", "c@x"])
    assert found == ("a>b", "c@x", 1e3)
    assert found != gate.parse_gate("c@x>a>b@1e3", ["a>b", "c@x"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("muon", "expected BETTER>REFERENCE@FLOPS"),
        ("muon>adamw", "expected BETTER>REFERENCE@FLOPS"),
        ("muon>adamw@soon", "expected BETTER>REFERENCE@FLOPS"),
        ("muon>adamw@-1", "expected BETTER>REFERENCE@FLOPS"),
        ("muon>adamw@nan", "expected BETTER>REFERENCE@FLOPS"),
        ("muon>adamw@inf", "expected BETTER>REFERENCE@FLOPS"),
        ("sgd>adamw@1e20", "two of the groups 'adamw', 'muon'"),
        ("muon>muon@1e20", "two different groups"),
    ],
)
def test_a_gate_that_asks_nothing_is_refused(text, said):
    with pytest.raises(BadInput, match=said):
        decided(curve(1.5), text)


@pytest.mark.parametrize("fixed", [{"E", "alpha"}, {"E", "A", "alpha"}])
def test_exponents_that_are_given_are_not_tested(fixed):
    """A law for each group has then no more parameters than the shared one. Twin: a floor alone."""
    known = {"E": 1.6, "A": 40.0, "alpha": 0.3}

    def found(names):
        fix = {name: known[name] for name in names}
        rng = np.random.default_rng(0)
        rows = [
            {"run": f"{group}{i}", "group": group, "params": n,
             "loss": (1.6 + 40 * (m * n) ** -0.3) * np.exp(1e-3 * rng.standard_normal())}
            for group, m in (("a", 1.0), ("b", 1.5))
            for i, n in enumerate(np.geomspace(1e6, 1e9, 8))
        ]  # fmt: skip
        return analyze("power", rows, {"bootstrap": 0, "fix": fix}, compare_by="group").document

    untested = found(fixed)["compare"]
    assert untested["test"] == dict.fromkeys(("f", "p_value", "shared_exponents_justified"))
    assert "too few rows, or free parameters" in untested["words"][-1]
    assert found({"E"})["compare"]["test"]["p_value"] is not None


def test_a_gate_needs_groups():
    with pytest.raises(BadInput, match=r"--gate=muon>adamw@1e20: .* --compare=COLUMN"):
        analyze("chinchilla", grid(1.5), {}, gate="muon>adamw@1e20")
