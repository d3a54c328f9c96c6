"""A plan tells what a sweep costs, drops what makes no sense, and keeps to its limits."""

import subprocess
import sys

import pytest

from research.config import grid
from research.errors import BadInput
from research.models import accounting
from research.sweep import plan, prepare
from research.sweep.plan import Limits, Row
from research.sweep.points import resolve_points

FACTS = {
    "group": "transformer",
    "groups": {"attention": 600, "head": 400},
    "size": None,
    "params": 1000,
    "tokens": 20_000,
    "epochs": 0.5,
    "flops": 1e9,
    "batch": 4,
    "steps": 100,
    "context": 16,
    "lr": 0.01,
    "seed": 0,
    "warmup_steps": 10,
    "schedule": "cosine",
    "optimizer": "adamw",
    "head_share": 0.05,
    "attention_share": 0.05,
    "rules": "one rule\nrule of its own",
}


def row(run, status="new", seconds=None, compiling=0.0, program=None, **facts):
    return Row(run, status, FACTS | facts, seconds, compiling, program)


FIVE = [row(str(i), flops=float(10**i), params=10 * i, seed=0) for i in range(1, 6)]


# Limits.


def test_a_sweep_within_its_limits_is_left_as_it_is():
    assert plan.within(FIVE, Limits(111110, None, trim=False)) == (FIVE, [])
    assert plan.within(FIVE, Limits(None, None, trim=False)) == (FIVE, [])


def test_too_dear_a_sweep_is_refused_and_told_what_fits():
    with pytest.raises(BadInput) as error:
        plan.within(FIVE, Limits(2000, None, trim=False))
    assert "need 1.11e+05 flops; the 3 cheapest would fit (1.11e+03)" in str(error.value)
    assert "--trim leaves the 2 dearest out, --max_flops=1.2e+05 takes all" in str(error.value)
    assert plan.within(FIVE, Limits(1.2e5, None, trim=False)) == (FIVE, [])


def test_trimming_leaves_out_the_dearest_and_names_them():
    kept, told = plan.within(FIVE[::-1], Limits(2000, None, trim=True))
    assert [r.run for r in kept] == ["3", "2", "1"]
    assert [line.partition(" (")[0] for line in told] == [
        "left out by --max_flops=2000: run 5",
        "left out by --max_flops=2000: run 4",
    ]
    with pytest.raises(BadInput, match="not even the cheapest"):
        plan.within(FIVE, Limits(1, None, trim=True))


def test_what_is_done_costs_nothing_and_is_never_left_out():
    rows = [*FIVE[:2], FIVE[2]._replace(status="diverged"), FIVE[4]._replace(status="done")]
    assert plan.within(rows, Limits(110, None, trim=False)) == (rows, [])
    kept, told = plan.within(rows, Limits(10, None, trim=True))
    assert [r.run for r in kept] == ["1", "3", "5"]
    assert len(told) == 1


def test_hours_count_a_program_once():
    rows = [row(str(i), seconds=1800.0, compiling=1800.0, program=i // 2) for i in range(4)]
    assert plan.within(rows, Limits(None, 3.0, trim=False)) == (rows, [])
    with pytest.raises(BadInput, match="4 runs to train need 3 hours; the 3 cheapest"):
        plan.within(rows, Limits(None, 2.99, trim=False))
    with pytest.raises(BadInput, match="cannot be timed"):
        plan.within(FIVE, Limits(None, 3.0, trim=False))


# What is told.


def test_what_bends_a_law_is_warned_of():
    assert plan.warnings([FACTS, FACTS]) == []
    cases = (
        ("the head takes 5% to 30%", {"head_share": 0.3}),
        ("the attention takes 5% to 20%", {"attention_share": 0.2}),
        ("warm-up takes over 20% of the steps of 1 of 2 runs", {"warmup_steps": 30}),
        ("1 of 2 runs see more tokens than there are", {"epochs": 1.5}),
        ("--columns=flops=flops_6nd", {"budget_convention": "6nd"}),
        ("miss the budget of 1 of 2 runs by more than 1% (up to 3.0%)", {"budget_away": -0.03}),
    )
    for words, change in cases:
        (line,) = plan.warnings([FACTS, FACTS | change])
        assert words in line
    assert plan.warnings([FACTS | {"head_share": 0.3}] * 2) == []  # the same for all sizes
    assert plan.EXACT == accounting.FLOPS_CONVENTION
    assert plan.warnings([FACTS | {"epochs": 7.0, "context": 1}]) == []  # no text


def test_an_isoflop_cell_far_from_any_optimum_is_nonsense_and_no_other_point_is():
    cell = FACTS | {"budget": 1e9}
    assert plan.nonsense(cell) == ""
    assert "20 steps, fewer than 50" in plan.nonsense(cell | {"steps": 20})
    assert "0.05 tokens per parameter" in plan.nonsense(cell | {"tokens": 50})
    assert "2e+04 tokens per parameter" in plan.nonsense(cell | {"tokens": 2e7})
    assert plan.nonsense(FACTS | {"steps": 20}) == ""


def test_four_lengths_of_one_size_would_share_a_trunk():
    lengths = [row(str(d), flops=1e9 * d, steps=100 * d) for d in (1, 2, 4, 8)]
    assert any("9.4e+09 FLOPs instead of 1.5e+10" in line for line in plan.cheaper(lengths, {}))
    told = plan.cheaper(lengths, {"shared trunks": 5.6e9})
    assert told == ["shared trunks: 5.6e+09 of 1.5e+10 FLOPs are saved"]
    sizes = [row(str(n), flops=1e9, steps=100, params=n) for n in (10, 20, 40)]
    assert not any("trunk" in line for line in plan.cheaper(sizes, {}))


def test_seeds_and_the_largest_size_are_what_could_be_left_out():
    rows = [row(str(s), seed=s, flops=1e9) for s in range(3)] + [row("n", params=2000, flops=9e9)]
    told = plan.cheaper(rows, {})
    assert any(
        "(2,000 params)" in line and "3e+09 FLOPs instead of 1.2e+10" in line for line in told
    )
    assert any("one seed of each point: 1e+10 FLOPs" in line for line in told)
    done = [r._replace(status="done") for r in rows]
    assert plan.cheaper(done, {}) == []


def test_the_text_names_every_point_and_only_columns_that_tell_something():
    text = plan.text([row("aa", seconds=3.0, program=1), row("bb", seconds=5.0, program=1)])
    assert "aa" in text
    assert "bb" in text
    assert "seconds" in text.splitlines()[0]
    assert "about 8 s to train one after the other" in text
    assert "to compile 1 programs" in text
    assert "one rule" in text
    assert "size" not in text.splitlines()[0].split()
    text = plan.text([row("aa"), row("bb", rules="one rule")], left_out=["left out: cc"])
    assert "rule of its own" not in text
    assert "seconds" not in text.splitlines()[0]
    assert "--calibrate" in text
    assert text.endswith("left out: cc")
    assert "same run" not in text
    assert "warning: 2 points are the same run as another" in plan.text([row("aa")], repeats=2)
    large = [row("aa")._replace(memory=2e9), row("bb")._replace(memory=1e6)]
    assert "warning: 1 of 2 runs may not fit a device of 1 GB (up to 2 GB" in plan.text(
        large, room=1e9
    )


# Whole plans.


def cells(tiny, *points):
    return [(dict(p), tiny({"model.width": None, **SIZED, **p})) for p in points]


SIZED = {f"model.{key}": None for key in ("width", "depth", "heads", "kv_heads", "hidden")}


def test_nonsense_cells_are_dropped_with_a_reason_and_the_others_keep_their_budget(tiny, tmp_path):
    points = cells(tiny, *grid.isoflop([6e9], [16e3, 3e4, 6e4, 2e6, 1e1]))
    kept, dropped = prepare.sensible(points)
    assert [overrides["size"] for overrides, _ in kept] == [16e3, 3e4, 6e4]
    assert len(dropped) == 2
    assert dropped[0].startswith("dropped: size 2e+06 at 6e+09 flops: 2 steps, fewer than 50")
    assert "size 10 at 6e+09 flops: size: 10 parameters cannot be met" in dropped[1]
    for point in resolve_points(kept, tmp_path):
        assert point.run.facts["flops"] == pytest.approx(6e9, rel=0.01)
        assert abs(point.run.facts["budget_away"]) < 0.01
    with pytest.raises(BadInput, match="fewer than 50"):
        prepare.sensible(points[3:])
    long = {"optim.warmup.unit": "steps", "optim.warmup.amount": 100.0}
    short = cells(tiny, *grid.product([long], grid.isoflop([6e9], [16e3, 6e4])))
    kept, dropped = prepare.sensible(short)
    assert len(kept) == 1
    assert "optim.warmup.amount: 100 (steps) in" in dropped[0]
    other = cells(tiny, {"size": 10.0})  # no cell of a budget: a mistake, not a lattice
    assert prepare.sensible(other) == (other, [])
    with pytest.raises(BadInput, match="cannot be met"):
        resolve_points(other, tmp_path)


def test_every_convention_is_solved_for_its_own_tokens(tiny, tmp_path):
    units = ("flops", "flops_exact_causal", "flops_6nd", "flops_6nd_non_embedding")
    points = [p for u in units for p in grid.isoflop([1e10], [16e3], unit=u)]
    for point in resolve_points(cells(tiny, *points), tmp_path):
        unit = point.overrides["horizon.unit"]
        assert point.run.facts[unit] == pytest.approx(1e10, rel=0.01)


def test_a_rule_for_the_batch_is_resolved_and_repeats_the_run(tiny, tmp_path):
    ruled = {"batch.rule": "sqrt_tokens", "batch.size": 64, "horizon.unit": "tokens"}
    ruled["horizon.amount"] = 2e4
    (point,) = resolve_points([({}, tiny(ruled))], tmp_path)
    run = point.run
    assert run.batch == 8
    assert run.config["batch"] == {"size": 8, "seed": 0, "accumulate": 1}
    assert "batch = 64 sqrt(tokens" in run.facts["rules"]
    same = {"batch.size": 8, "horizon.unit": "tokens", "horizon.amount": 2e4}
    (again,) = resolve_points([({}, tiny(same))], tmp_path)
    assert again.run.id == run.id
    with pytest.raises(BadInput, match=r"batch\.rule: sqrt_tokens, but horizon.unit is steps"):
        resolve_points([({}, tiny({"batch.rule": "sqrt_tokens"}))], tmp_path)


# The command.


def command(corpus, tmp_path, *flags):
    line = [
        *(sys.executable, "-m", "experiments.sweep", "--plan", f"--workdir={tmp_path / 'w'}"),
        *("--config=configs/sweeps/lm_isoflop.py", f"--config.data.path={corpus}"),
        *("--config.eval.examples=8", *flags),
    ]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_refuses_and_trims(corpus, tmp_path):
    done = command(corpus, tmp_path, "--max_flops=1.3e12")
    assert done.returncode == 2
    assert "error: --max_flops=1.3e+12: the 18 runs to train need" in done.stderr
    done = command(corpus, tmp_path, "--max_flops=1.3e12", "--trim")
    assert done.returncode == 0
    assert done.stdout.count(" new") == 6
    assert done.stdout.count("left out by --max_flops=1.3e+12: run ") == 12
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_flops=-1"], "--max_flops=-1: expected a finite number above 0"),
        (["--max_hours=nan"], "--max_hours=nan: expected"),
        (["--trim"], "--trim: nothing to trim to"),
    ],
)
def test_limits_that_are_none_are_refused(flags, words, corpus, tmp_path):
    done = command(corpus, tmp_path, *flags)
    assert done.returncode == 2
    assert words in done.stderr
