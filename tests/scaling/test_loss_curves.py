"""The law of training curves under a schedule: it finds the law that made curves, predicts a
schedule that it has not seen, and refuses what is no such table."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.scaling import loss_curves
from research.scaling.options import Options

TRUTH = {"L0": 2.0, "A": 3.0, "alpha": 0.5, "B": 300.0, "C": 2.0, "beta": 0.6, "gamma": 0.6}
PEAK, WARMUP, EVERY = 1e-3, 200, 20


def rates(name, steps):
    """The learning rate [steps] of a schedule after a linear warm-up."""
    share = (np.arange(steps) - WARMUP) / (steps - WARMUP)
    after = {
        "constant": np.ones(steps),
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * share)),
        "wsd": np.where(share < 0.8, 1.0, 1 - 0.9 * (share - 0.8) / 0.2),
        "drop": np.where(share < 0.4, 1.0, 0.3),
    }[name]
    return PEAK * np.where(share < 0, np.arange(steps) / WARMUP, after)


def losses(rate, truth=TRUTH):
    """The law by its definition, a sum over all steps, at every EVERY-th step after the warm-up."""
    area = np.cumsum(rate)
    out = {}
    for t in range(WARMUP + EVERY, len(rate), EVERY):
        k = np.arange(WARMUP + 1, t + 1)
        x = rate[k] ** -truth["gamma"] * (area[t] - area[k - 1])
        drop = (rate[k - 1] - rate[k]) @ (1 - (1 + truth["C"] * x) ** -truth["beta"])
        out[t] = truth["L0"] + truth["A"] * area[t] ** -truth["alpha"] - truth["B"] * drop
    return out


def records_of(name, steps, noise=2e-4, seed=0, shown=None):
    """What a run logs: its rate at every tenth step, and losses with noise. `shown` is the
    schedule that it says it had."""
    rng, rate = np.random.default_rng(seed), rates(name, steps)
    said = rates(shown or name, steps)
    out = [{"step": t, "lr": said[t]} for t in range(0, steps, EVERY // 2)]
    out += [{"step": t, "loss": y * np.exp(noise * rng.normal())} for t, y in losses(rate).items()]
    return sorted(out, key=lambda record: record["step"])


RUNS = {"constant": ("constant", 3000), "cosine": ("cosine", 3000), "drop": ("drop", 3000)}


def fitted(extra, **options):
    runs = {**RUNS, **extra}
    records = {
        run: records_of(*how) if isinstance(how, tuple) else how for run, how in runs.items()
    }
    rows = [{"run": run, "params": 1000} for run in runs]
    return loss_curves.fit_curves(rows, loss_curves.read_curves(rows, records.__getitem__),
                                  Options(**options))  # fmt: skip


def test_it_finds_the_law_that_made_the_curves_and_predicts_another_schedule():
    document, _ = fitted({"wsd": ("wsd", 4000)}, holdout="run==wsd")
    assert document["n_points"] == 3
    (row,) = document["holdout"]["rows"]
    assert row["run"] == "wsd"
    assert row["error"] < 2e-3
    assert row["predicted"] == pytest.approx(row["loss"], rel=4e-3)
    assert document["params"]["L0"] == pytest.approx(TRUTH["L0"], rel=0.03)
    assert document["params"]["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.08)
    assert max(row["error"] for row in document["runs"]) < 1e-3


def test_it_reads_the_schedule_and_not_the_losses_of_what_it_predicts():
    """The same losses under a schedule that was not theirs are not predicted."""
    lied = records_of("wsd", 4000, shown="constant")
    document, _ = fitted({"wsd": lied}, holdout="run==wsd")
    (row,) = document["holdout"]["rows"]
    assert row["predicted"] > 1.02 * row["loss"]


@pytest.mark.slow
def test_each_run_is_predicted_by_those_of_other_schedules():
    document, _ = fitted({"again": records_of("cosine", 3000, seed=1)})
    rows = document["holdout"]["rows"]
    assert [row["run"] for row in rows] == [*RUNS, "again"]
    assert all(row["error"] < 0.02 for row in rows)
    few, _ = fitted({"drop": records_of("cosine", 3000, seed=1)})
    assert few["holdout"]["rows"] == []
    assert "no run checks the law" in few["warnings"][0]


@pytest.mark.slow
def test_units_of_rate_and_step_are_those_of_the_table():
    """Rates in thousandths are another B and A, and the same predictions."""
    thousand = {
        run: [{**r, **({"lr": 1000 * r["lr"]} if "lr" in r else {})} for r in records_of(*how)]
        for run, how in RUNS.items()
    }
    plain, _ = fitted({})
    scaled, _ = fitted(thousand)
    for a, b in zip(plain["runs"], scaled["runs"], strict=True):
        assert a["predicted"] == pytest.approx(b["predicted"], rel=1e-4)
    assert scaled["params"]["B"] == pytest.approx(plain["params"]["B"] / 1000, rel=1e-2)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"cosine": ("constant", 3000), "drop": ("constant", 3000)}, "1 learning-rate schedules"),
        ({"cosine": records_of("cosine", 3000)[:9]}, "held-out losses and"),
        ({"cosine": [{**r, "step": 7} for r in records_of("cosine", 3000)]}, "do not grow"),
        ({"cosine": [{**r, **({"lr": -1.0} if "lr" in r else {})}
                     for r in records_of("cosine", 3000)]}, "learning rate that is no number"),
        ({"cosine": [{**r, **({"loss": float("nan")} if "loss" in r else {})}
                     for r in records_of("cosine", 3000)]}, "loss that is no number"),
    ],
)  # fmt: skip
def test_what_is_no_curve_is_refused(runs, message):
    with pytest.raises(BadInput, match=message):
        fitted(runs)


def test_losses_before_the_peak_alone_and_a_hold_out_of_nobody_are_refused():
    rates_alone = [r for r in records_of("cosine", 3000) if "lr" in r]
    early = rates_alone + [{"step": s, "loss": 3.0} for s in range(1, 15)]
    with pytest.raises(BadInput, match="run cosine has 0 held-out losses after the peak"):
        fitted({"cosine": early})
    with pytest.raises(BadInput, match="--holdout=run==nobody: no run is of that kind"):
        fitted({}, holdout="run==nobody")


def test_runs_that_share_no_law_are_told():
    thousand = [{**r, **({"lr": 1000 * r["lr"]} if "lr" in r else {})}
                for r in records_of("cosine", 3000)]  # fmt: skip
    document, _ = fitted({"cosine": thousand}, holdout="run==drop")
    assert any("share no law" in line for line in document["warnings"])
    plain, _ = fitted({}, holdout="run==drop")
    assert not any("share no law" in line for line in plain["warnings"])


def test_runs_that_differ_in_more_than_their_schedule_are_refused():
    rows = [{"run": run, "params": 1000 + 500 * (run == "drop")} for run in RUNS]
    curves = loss_curves.read_curves(rows, lambda run: records_of(*RUNS[run]))
    with pytest.raises(BadInput, match="params is 1000 or 1500: choose with --where"):
        loss_curves.fit_curves(rows, curves, Options())


def write_table(path, columns=("run", "step", "lr", "loss")):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        for run, how in RUNS.items():
            rate = rates(*how)
            for step, loss in losses(rate).items():
                table.writerow({"run": run, "step": step, "lr": rate[step], "loss": loss})
    return path


def test_the_command_reads_a_table_of_curves(tmp_path, capsys):
    path = write_table(tmp_path / "curves.csv")
    given = [f"--runs={path}", "--law=curve", "--holdout=run==cosine", f"--out={tmp_path / 'out'}"]
    assert command.main(given) == 0
    said = capsys.readouterr().out
    assert "predicted  cosine" in said
    assert "fitted     drop" in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "fit.json", "curves.png", "curves.svg",
    }  # fmt: skip


def test_the_command_names_what_a_table_lacks_and_flags_of_other_laws(tmp_path):
    path = write_table(tmp_path / "curves.csv", ("run", "step", "loss"))
    given = [f"--runs={path}", "--law=curve", f"--out={tmp_path / 'out'}"]
    with pytest.raises(BadInput, match="run, step, lr and loss; this table has run, step, loss"):
        command.main(given)
    with pytest.raises(BadInput, match="--predict_flops: --law=curve does not use it"):
        command.main([*given, "--predict_flops=1e9"])
    assert not (tmp_path / "out").exists()


PUBLISHED = Path(os.environ.get("ISOFLOP_TEST_CURVES", "absent"))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="ISOFLOP_TEST_CURVES: csv_25, csv_100, csv_400")
@pytest.mark.parametrize(("size", "most"), [("25", 1.3e-3), ("100", 1.6e-3), ("400", 2.2e-3)])
def test_published_schedules_are_predicted(size, most):
    """Curves of Luo et al. 2025, who report 1.1e-3, 1.4e-3 and 1.7e-3 for the same six."""
    folder = PUBLISHED / f"csv_{size}"
    records = {
        path.stem: [
            {k: float(v) for k, v in row.items()}
            for row in csv.DictReader(path.read_text().splitlines())
        ]
        for path in sorted(folder.glob("*.csv"))
    }
    fitted_to = ("cosine_24000", "constant_24000", "wsdcon_9")
    rows = [{"run": run, "held": run not in fitted_to} for run in records]
    curves = loss_curves.read_curves(rows, records.__getitem__)
    document, _ = loss_curves.fit_curves(rows, curves, Options(holdout="held==True"))
    errors = [row["error"] for row in document["holdout"]["rows"]]
    assert len(errors) == 6
    assert np.mean(errors) < most
