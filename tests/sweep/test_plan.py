"""A plan says what a sweep costs, drops cells that tell nothing, and keeps to its limits."""

import subprocess
import sys

import pytest

from research.config import grid
from research.config.loading import validated
from research.errors import BadInput
from research.models import accounting
from research.sweep.limits import Limits, PlannedRun, apply_limits
from research.sweep.plan import drop_cells, price_points, reject_cell
from research.sweep.plan_text import EXACT, law_warnings, plan_text
from research.sweep.points import locate_points, resolve_configs, resolve_points

pytestmark = pytest.mark.usefixtures("barely_optimized")

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


def row(run, status="new", seconds=None, compile_seconds=0.0, program=None, **facts):
    return PlannedRun(run, status, FACTS | facts, seconds, compile_seconds, program)


FIVE = [row(str(i), flops=float(10**i), params=10 * i, seed=0) for i in range(1, 6)]


# Limits.


def test_a_sweep_within_its_limits_is_left_as_it_is():
    assert apply_limits(FIVE, Limits(111110, None, trim=False)) == (FIVE, [])
    assert apply_limits(FIVE, Limits(None, None, trim=False)) == (FIVE, [])


def test_too_expensive_a_sweep_is_rejected_with_what_would_fit():
    with pytest.raises(BadInput) as error:
        apply_limits(FIVE, Limits(2000, None, trim=False))
    assert "need 1.11e+05 flops; the 3 cheapest would fit (1.11e+03)" in str(error.value)
    assert "--trim drops the 2 most expensive, --max_flops=1.2e+05 allows all" in str(error.value)
    assert apply_limits(FIVE, Limits(1.2e5, None, trim=False)) == (FIVE, [])


def test_trimming_drops_the_most_expensive_and_names_them():
    kept, messages = apply_limits(FIVE[::-1], Limits(2000, None, trim=True))
    assert [r.run for r in kept] == ["3", "2", "1"]
    assert [line.partition(" (")[0] for line in messages] == [
        "dropped by --max_flops=2000: run 5",
        "dropped by --max_flops=2000: run 4",
    ]
    with pytest.raises(BadInput, match="not even the cheapest"):
        apply_limits(FIVE, Limits(1, None, trim=True))


def test_what_is_done_costs_nothing_and_is_never_dropped():
    rows = [*FIVE[:2], FIVE[2]._replace(status="diverged"), FIVE[4]._replace(status="done")]
    assert apply_limits(rows, Limits(110, None, trim=False)) == (rows, [])
    kept, messages = apply_limits(rows, Limits(10, None, trim=True))
    assert [r.run for r in kept] == ["1", "3", "5"]
    assert len(messages) == 1


def test_hours_count_a_program_once():
    rows = [row(str(i), seconds=1800.0, compile_seconds=1800.0, program=i // 2) for i in range(4)]
    assert apply_limits(rows, Limits(None, 3.0, trim=False)) == (rows, [])
    with pytest.raises(BadInput, match="4 runs to train need 3 hours; the 3 cheapest"):
        apply_limits(rows, Limits(None, 2.99, trim=False))
    with pytest.raises(BadInput, match="cannot be timed"):
        apply_limits(FIVE, Limits(None, 3.0, trim=False))


# The text.


def test_what_biases_a_law_is_warned_of():
    assert law_warnings([FACTS, FACTS]) == []
    cases = (
        ("the head takes 5% to 30%", {"head_share": 0.3}),
        ("the attention takes 5% to 20%", {"attention_share": 0.2}),
        (
            "embedding and head are 40% to 60% of the parameters",
            {"groups": {"attention": 400, "embedding": 200, "head": 400}},
        ),
        ("warm-up takes over 20% of the steps of 1 of 2 runs", {"warmup_steps": 30}),
        ("1 of 2 runs see more tokens than there are", {"epochs": 1.5}),
        ("--columns=flops=flops_6nd", {"budget_convention": "6nd"}),
        ("miss the budget of 1 of 2 runs by more than 1% (up to 3.0%)", {"budget_away": -0.03}),
    )
    for words, change in cases:
        (line,) = law_warnings([FACTS, FACTS | change])
        assert words in line
    assert law_warnings([FACTS | {"head_share": 0.3}] * 2) == []  # the same for all sizes
    assert EXACT == accounting.FLOPS_CONVENTION
    assert law_warnings([FACTS | {"epochs": 7.0, "context": 1}]) == []  # no text


def test_an_isoflop_cell_far_from_any_optimum_is_rejected_and_no_other_point_is():
    cell = FACTS | {"budget": 1e9}
    assert reject_cell(cell) == ""
    assert "20 steps, fewer than 50" in reject_cell(cell | {"steps": 20})
    assert "0.05 tokens per parameter" in reject_cell(cell | {"tokens": 50})
    assert "2e+04 tokens per parameter" in reject_cell(cell | {"tokens": 2e7})
    assert reject_cell(FACTS | {"steps": 20}) == ""


def test_the_text_names_every_point_and_only_columns_that_tell_something():
    text = plan_text([row("aa", seconds=3.0, program=1), row("bb", seconds=5.0, program=1)])
    assert "aa" in text
    assert "bb" in text
    assert "seconds" in text.splitlines()[0]
    assert "about 8 s to train one after the other" in text
    assert "to compile 1 programs" in text
    assert "one rule" in text
    assert "size" not in text.splitlines()[0].split()
    text = plan_text([row("aa"), row("bb", rules="one rule")], notes=["dropped: cc"])
    assert "rule of its own" not in text
    assert "seconds" not in text.splitlines()[0]
    assert "--calibrate" in text
    assert text.endswith("dropped: cc")
    assert "same run" not in text
    assert "warning: 2 points are the same run as another" in plan_text([row("aa")], repeats=2)
    large = [row("aa")._replace(memory=2e9), row("bb")._replace(memory=1e6)]
    assert "warning: 1 of 2 runs may not fit a device of 1 GB (up to 2 GB" in plan_text(
        large, device_memory=1e9
    )


def test_the_plan_has_what_rules_of_transfer_and_horizon_make_of_every_point():
    words = "transfer mup: the numbers of the config hold at width 32"
    own = {
        width: f"width {width}, head size 16: hidden: lr x {32 / width:g}" for width in (64, 128)
    }
    ratio = "horizon power_lines (2505.13738): the numbers hold at 1e6; tokens x {}: lr x 1"
    rows = [
        row(
            f"r{width}",
            rules=f"size {width}: width {width}\n{ratio.format(width)}\n{words}\n{line}",
        )
        for width, line in own.items()
    ]
    shown = plan_text([*rows, rows[0]]).splitlines()
    for line in (words, *own.values(), *(ratio.format(width) for width in own)):
        assert shown.count(line) == 1, line
    assert not any(line.startswith("size 64:") for line in shown)


# Whole plans.


def cells(tiny, *points):
    return [(dict(p), tiny({"model.width": None, **SIZED, **p})) for p in points]


SIZED = {f"model.{key}": None for key in ("width", "depth", "heads", "kv_heads", "hidden")}


def test_rejected_cells_are_dropped_with_a_reason_and_the_others_keep_their_budget(tiny, tmp_path):
    points = cells(tiny, *grid.isoflop([6e9], [16e3, 3e4, 6e4, 2e6, 1e1]))
    kept, dropped = drop_cells(resolve_configs(points))
    assert [cell.overrides["size"] for cell in kept] == [16e3, 3e4, 6e4]
    assert len(dropped) == 2
    assert dropped[0].startswith("dropped: size 2e+06 at 6e+09 flops: 2 steps, fewer than 50")
    assert "size 10 at 6e+09 flops: size: 10 parameters cannot be met" in dropped[1]
    for point in locate_points(kept, tmp_path):
        assert point.run.facts["flops"] == pytest.approx(6e9, rel=0.01)
        assert abs(point.run.facts["budget_away"]) < 0.01
    with pytest.raises(BadInput, match="fewer than 50"):
        drop_cells(resolve_configs(points[3:]))
    long = {"optim.warmup.unit": "steps", "optim.warmup.amount": 100.0}
    short = cells(tiny, *grid.product([long], grid.isoflop([6e9], [16e3, 6e4])))
    kept, dropped = drop_cells(resolve_configs(short))
    assert len(kept) == 1
    assert "optim.warmup.amount: 100 (steps) in" in dropped[0]
    other = cells(tiny, {"size": 10.0})  # no cell of a budget: a mistake, not a lattice
    kept, dropped = drop_cells(resolve_configs(other))
    assert ([cell[:2] for cell in kept], dropped) == (other, [])
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
    assert run.config["batch"] == {"size": 8, "grad_accumulation": 1, "rule": "constant"}
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


@pytest.mark.slow
def test_the_command_rejects_and_trims(corpus, tmp_path):
    done = command(corpus, tmp_path, "--max_flops=1.3e12")
    assert done.returncode == 2
    assert "error: --max_flops=1.3e+12: the 20 runs to train need" in done.stderr
    done = command(corpus, tmp_path, "--max_flops=1.3e12", "--trim")
    assert done.returncode == 0
    assert done.stdout.count(" new") == 5
    assert done.stdout.count("dropped by --max_flops=1.3e+12: run ") == 15
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_flops=-1"], "--max_flops=-1: expected a finite number above 0"),
        (["--max_hours=nan"], "--max_hours=nan: expected"),
        (["--trim"], "--trim: nothing to trim to"),
    ],
)
def test_limits_that_are_none_are_rejected(flags, words, corpus, tmp_path):
    done = command(corpus, tmp_path, *flags)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ((1e-3, 3e-3), ("0.001", "0.003")),
        ((0.012345678, 0.5), ("0.0123", "0.5")),
        ((0.00316227766, 0.00316329), ("0.003162", "0.003163")),
        ((0.1, 0.1), ("0.1", "0.1")),
        ((1.0, 1.0 + 2**-52), ("1", "1.0000000000000002")),
    ],
)
def test_learning_rates_that_differ_look_different(rates, shown):
    text = plan_text([row(f"run{i}", lr=rate) for i, rate in enumerate(rates)])
    head, *lines = (line.split() for line in text.splitlines()[: 1 + len(rates)])
    assert tuple(line[head.index("lr")] for line in lines) == shown


def test_a_plan_shows_the_settings_that_vary():
    def with_norm(i, norm, **more):
        one = row(str(i), params=1000 * i)
        return one._replace(settings={"model.norm": norm, "optim.clip": 1.0, **more})

    shown = plan_text([with_norm(1, "rms"), with_norm(2, "layer"), with_norm(3, "rms")])
    assert "model.norm" in shown.splitlines()[0]
    assert "optim.clip" not in shown
    assert "layer" in shown.splitlines()[2]
    alike = plan_text([with_norm(1, "rms"), with_norm(2, "rms")])
    assert "model.norm" not in alike


def test_the_config_of_a_point_is_in_its_row_of_the_plan(tiny, tmp_path):
    changes = [{"model.qk_norm": switch} for switch in (False, True)]
    points = resolve_points([(c, validated(tiny(c))) for c in changes], tmp_path)
    rows = price_points(points, calibrate=False, needs_seconds=False)
    assert sorted(row.settings["model.qk_norm"] for row in rows) == [False, True]
    assert "model.qk_norm" in plan_text(rows).splitlines()[0]
