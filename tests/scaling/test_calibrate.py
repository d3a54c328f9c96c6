"""Simulated tables have the truth that they are said to have, and intervals are counted rightly."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import calibrate as command
from research.errors import BadInput, StorageError
from research.io import source
from research.report import calibration_text
from research.scaling import calibrate, calibrate_record, fit_law, uncertainty, worlds

CELL = {"tables", "coverage", "width", "open", "failed"}


@pytest.fixture(scope="module")
def shape():
    """Four budgets of the default shape: few rows, so that fits are quick."""
    whole = worlds.isoflop_shape()
    return dataclasses.replace(whole, rows=[row for row in whole.rows if row["flops"] < 5e19])


def plan(shape, tables=1, world="seed", methods=("parabola",), **options):
    return calibrate.Plan(shape, [world], list(methods), tables, 0, options)


def measure(plan):
    return [one for some in calibrate.measure(plan, 1) for one in some]


def test_the_default_shape_is_seven_budgets_of_sizes_around_their_optimum():
    shape = worlds.isoflop_shape()
    budgets = {row["flops"] for row in shape.rows}
    assert len(budgets) == 7
    for c in budgets:
        sizes = np.array([row["params"] for row in shape.rows if row["flops"] == c])
        best = worlds.Simulator(shape, worlds.WORLDS["seed"]).optimum(c)[0]
        assert len(sizes) == 8
        assert sizes.min() < best < sizes.max()
        assert np.abs(np.log(sizes / best)).max() <= math.log(worlds.WITHIN)
    assert all(
        row["flops"] == pytest.approx(6 * row["params"] * row["tokens"]) for row in shape.rows
    )


def test_the_optimum_is_the_closed_form_of_the_law_and_not_that_of_another(shape):
    """Hoffmann's closed form, and worlds whose law has none."""
    t, c = shape.truth, 3e21
    a, b = t["alpha"], t["beta"]
    g = (a * t["A"] / (b * t["B"])) ** (1 / (a + b))
    n = g * (c / 6) ** (b / (a + b))
    truth = worlds.Simulator(shape, worlds.WORLDS["seed"])
    found, loss = truth.optimum(c)
    assert found == pytest.approx(n, rel=1e-5)
    assert loss == pytest.approx(t["E"] + t["A"] / n**a + t["B"] / (c / 6 / n) ** b)
    assert truth.exponent() == pytest.approx(b / (a + b), rel=1e-5)
    broken = worlds.Simulator(shape, worlds.WORLDS["broken"])
    assert abs(math.log(broken.optimum(c / 1e3)[0] / truth.optimum(c / 1e3)[0])) > 0.05
    # The bend is what it says: the exponent of N goes from alpha to alpha - BEND.
    few, many = (
        broken.loss(x, math.inf) - t["E"] for x in (np.array([1.0, 10.0]), np.array([1e18, 1e19]))
    )
    assert np.log10(few[0] / few[1]) == pytest.approx(a, abs=1e-6)
    assert np.log10(many[0] / many[1]) == pytest.approx(a - worlds.BEND, abs=1e-6)
    assert worlds.Simulator(shape, worlds.WORLDS["interaction"]).optimum(c)[1] > loss


def deviations(shape, world, number=0):
    """Log losses of a table above the true law [n]."""
    simulator = worlds.Simulator(shape, worlds.WORLDS[world])
    rows = simulator.table(0, number)
    return np.array(
        [math.log(row["loss"] / simulator.loss(row["params"], row["tokens"])) for row in rows]
    )


def test_a_table_is_a_function_of_its_seed_and_number(shape):
    simulator = worlds.Simulator(shape, worlds.WORLDS["scatter"])
    assert simulator.table(3, 5) == simulator.table(3, 5)
    assert simulator.table(3, 5) != simulator.table(3, 6)
    assert simulator.table(3, 5) != simulator.table(4, 5)


def test_worlds_add_what_they_say(shape):
    quiet = dataclasses.replace(shape, noise=1e-12)
    sizes = np.array([row["params"] for row in shape.rows])
    assert np.abs(deviations(quiet, "seed")).max() < 1e-10
    assert np.std([deviations(shape, "seed", k) for k in range(50)]) == pytest.approx(
        0.001, rel=0.1
    )
    # A size's efficiency is the same at every budget, up to what the rest of the loss leaves of it.
    scattered = deviations(quiet, "scatter")
    for size in set(sizes):
        assert len(set(np.sign(scattered[sizes == size]))) == 1
    # The noise of sizes differs tenfold, and a crash is only ever a loss that is too high.
    uneven = np.std([deviations(shape, "uneven", 0) / deviations(shape, "seed", 0)], 0)
    assert uneven.shape == sizes.shape
    ratio = deviations(shape, "uneven") / deviations(shape, "seed")
    assert ratio.max() / ratio.min() == pytest.approx(10, rel=1e-6)
    crashed = deviations(quiet, "crashed")
    assert (crashed > math.log(1.04)).sum() == worlds.FEWEST_CRASHED
    assert crashed.min() > -1e-10
    # A tilted budget has the least loss that it had, at another size.
    still = dataclasses.replace(quiet, scatter=1e-12)
    assert np.abs(deviations(still, "tilted")).max() > 1e-4


def test_the_shape_of_a_table_is_its_runs_its_law_and_its_noise(shape):
    rows = worlds.Simulator(shape, worlds.WORLDS["seed"]).table(0, 0)
    rows = [{**row, "group": "g", "extra": "x"} for row in rows]
    found = worlds.shape_of(rows, {})
    assert len(found.rows) == len(rows)
    assert sorted(row["params"] for row in found.rows) == sorted(row["params"] for row in rows)
    assert {row["group"] for row in found.rows} == {"g"}
    assert found.noise == pytest.approx(0.001, rel=0.4)
    assert found.truth == fit_law("chinchilla", rows)["params"]
    some = worlds.shape_of(rows, {"where": "flops>2e18"})
    assert 0 < len(some.rows) < len(rows)
    with pytest.raises(BadInput, match="distinct points of params, tokens to fit"):
        worlds.shape_of(rows[:4], {})


def test_a_law_without_an_optimum_is_no_truth_and_what_is_told_of_a_table_is_told(shape):
    """Twin: the truth that is given."""
    tied = [{**row, "tokens": 20 * row["params"], "flops": None} for row in shape.rows]
    truth = worlds.Simulator(shape, worlds.WORLDS["seed"])
    tied = [{**row, "loss": truth.loss(row["params"], row["tokens"])} for row in tied]
    with pytest.raises(BadInput, match="no truth of simulated tables: --truth="):
        worlds.shape_of(tied, {})
    given = dataclasses.replace(worlds.shape_of(tied, {}, found=False), truth=shape.truth)
    assert any("vary together" in words for words in given.warnings)
    document = calibrate.summarize(plan(given), [])
    assert document["warnings"] == list(given.warnings)
    assert f"warning: {given.warnings[0]}" in calibration_text.calibration_table(document)
    assert not calibrate.summarize(plan(shape), [])["warnings"]


@pytest.mark.slow
def test_the_truth_lies_in_the_intervals_of_the_document_and_a_narrow_one_is_seen(
    shape, monkeypatch
):
    """Twin: a quantile of Student's distribution that is a tenth of what it should be."""
    of_fits = plan(shape, 6, methods=["chinchilla"])
    honest = calibrate.summarize(of_fits, measure(of_fits))["worlds"]["seed"]["chinchilla"]
    quantile = uncertainty.stdtrit
    monkeypatch.setattr(uncertainty, "stdtrit", lambda *args: quantile(*args) / 10)
    narrow = calibrate.summarize(of_fits, measure(of_fits))["worlds"]["seed"]["chinchilla"]
    for k in calibrate.FURTHER:
        assert honest[f"loss_{k}x"]["coverage"] >= 4 / 6
        assert narrow[f"loss_{k}x"]["coverage"] <= 2 / 6
        assert narrow[f"loss_{k}x"]["width"] < honest[f"loss_{k}x"]["width"] / 5


def answered(*triples):
    return calibrate._calibration(triples, 10.0, relative=True)


def test_open_ends_contain_the_truth_but_have_no_width_and_failures_are_counted():
    assert answered((9.0, 8.0, 11.0), (12.0, 11.0, 13.0)) == {
        "tables": 2, "coverage": 0.5, "width": pytest.approx(0.25), "open": 0, "failed": 0
    }  # fmt: skip
    half_open = answered((9.0, 8.0, None), (9.0, None, 9.5), (9.0, 8.0, 11.0))
    assert half_open == {
        "tables": 3, "coverage": pytest.approx(2 / 3), "width": None, "open": 2, "failed": 0
    }  # fmt: skip
    assert answered((9.0, 8.0, 11.0), None) == {
        "tables": 2, "coverage": 1.0, "width": pytest.approx(0.3), "open": 0, "failed": 1
    }  # fmt: skip
    assert answered(None) == {
        "tables": 1, "coverage": None, "width": None, "open": 0, "failed": 1
    }  # fmt: skip


def test_a_method_that_refuses_a_table_has_failed(shape):
    one = dataclasses.replace(shape, rows=[row for row in shape.rows if row["flops"] == 1e18])
    of_one = plan(one, methods=["parabola", "envelope"])
    document = calibrate.summarize(of_one, measure(of_one))
    for cells in document["worlds"]["seed"].values():
        assert {cell["failed"] for cell in cells.values()} == {1}
    assert " –" in calibration_text.calibration_table(document)


def run(capsys, *flags):
    assert command.main(["--shape=isoflop", "--methods=parabola", *flags]) == 0
    return capsys.readouterr()


def test_the_document_and_the_table_of_a_small_run(capsys, tmp_path):
    told = run(capsys, "--tables=2", "--worlds=seed,wrong_law", "--processes=1",
               f"--out={tmp_path}")  # fmt: skip
    document = json.loads((tmp_path / "calibration.json").read_text())
    assert list(document["worlds"]) == ["seed", "interaction", "broken"]
    for methods in document["worlds"].values():
        assert list(methods) == ["parabola"]
        assert list(methods["parabola"]) == list(calibrate.QUANTITIES)
        assert all(set(cell) == CELL for cell in methods["parabola"].values())
    assert document["standard_error"] == pytest.approx(math.sqrt(0.95 * 0.05 / 2))
    assert document["shape"]["truth"] == worlds.CHINCHILLA
    assert "seed" in told.out
    assert "interaction  parabola" in told.out
    assert "6 of 6 fits" in told.err


def test_the_number_of_processes_changes_nothing(capsys, tmp_path):
    """Twin: another seed."""
    found = []
    for name, flags in {
        "one": ["--processes=1"],
        "two": ["--processes=2"],
        "other": ["--processes=1", "--seed=1"],
    }.items():
        run(capsys, "--tables=3", "--worlds=seed", *flags, f"--out={tmp_path / name}")
        found.append(json.loads((tmp_path / name / "calibration.json").read_text())["worlds"])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_table_of_ones_own_is_simulated(capsys, tmp_path, shape):
    rows = worlds.Simulator(shape, worlds.WORLDS["seed"]).table(0, 0)
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["N", "D", "loss"])
        writer.writerows([row["params"], row["tokens"], row["loss"]] for row in rows)
    flags = ["--columns=params=N,tokens=D", "--tables=1", "--worlds=seed", "--methods=parabola"]
    flags += [f"--runs={tmp_path / 'runs.csv'}", f"--out={tmp_path}", "--processes=1"]
    assert command.main([*flags, "--noise=0.002", "--where=params>2e7"]) == 0
    document = json.loads((tmp_path / "calibration.json").read_text())
    assert document["shape"]["noise"] == 0.002
    assert document["shape"]["rows"] == sum(row["params"] > 2e7 for row in rows)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--runs, --shape: expected one of them"),
        (["--shape=isoflop", "--runs=x.csv"], "--runs, --shape: expected one of them"),
        (["--shape=isoflop", "--where=params>1"], "--where: is for the table of --runs"),
        (["--runs=nowhere.csv"], "--runs=nowhere.csv: no such file"),
        (["--shape=isoflop", "--tables=0"], "--tables=0: expected 1 or more"),
        (["--shape=isoflop", "--processes=0"], "--processes=0: expected 1 or more"),
        (["--shape=isoflop", "--seed=-1"], "--seed=-1: expected 0 or more"),
        (["--shape=isoflop", "--noise=2"], "--noise=2.0: expected a number between 0 and 1"),
        (["--shape=isoflop", "--worlds=sed"], "--worlds=sed: expected some of seed, scatter"),
        (["--shape=isoflop", "--methods=power"], "--methods=power: expected some of envelope"),
        (["--shape=isoflop", "--truth=E=1"], "--truth=E=1: expected E, A, B, alpha, beta"),
        (
            ["--shape=isoflop", "--truth=E=1,A=-1,B=1,alpha=1,beta=1"],
            "--truth=A=-1: expected a number above 0",
        ),
        (["--shape=isoflop", "--objective=l1"], "--objective=l1: expected one of"),
    ],
)
def test_bad_flags_are_refused_with_a_message(flags, words, tmp_path):
    with pytest.raises(BadInput) as error:
        command.main([*flags, f"--out={tmp_path / 'out'}"])
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_law_of_params_and_tokens_is_a_method_by_its_name():
    assert calibrate.chosen_methods(["overtraining", "akima"]) == ["overtraining", "akima"]
    assert {"envelope", "akima", "parabola", "chinchilla"} <= set(calibrate.chosen_methods([]))


def small(out, *flags):
    """One world and method, unless flags say otherwise."""
    return ["--worlds=seed", "--processes=1", f"--out={out}", *flags]


def test_a_calibration_goes_on_where_it_was(capsys, tmp_path, monkeypatch):
    """Its figures are those of one that was never interrupted. Twin: another seed starts anew."""
    run(capsys, *small(tmp_path / "whole", "--tables=3"))
    run(capsys, *small(tmp_path / "parts", "--tables=1"))
    with open(tmp_path / "parts" / "measured.jsonl", "a") as file:
        file.write('\n3\n{"of": "x", "world": "seed", "number": 1, "method": "parabola", ')
        file.write('"answers": {"exponent": 1}, "seconds": 1}\n{"of": "cut o')
    done, task = [], calibrate.measure_task
    monkeypatch.setattr(calibrate, "measure_task", lambda *x: done.append(x[1]) or task(*x))
    told = run(capsys, *small(tmp_path / "parts", "--tables=3"))
    assert done == [("seed", 1, ["parabola"]), ("seed", 2, ["parabola"])]
    assert "1 of 3 measurements are in" in told.err
    documents = [json.loads((tmp_path / x / "calibration.json").read_text()) for x in
                 ("whole", "parts")]  # fmt: skip
    assert documents[0] == documents[1]
    done.clear()
    run(capsys, *small(tmp_path / "parts", "--tables=3"))
    assert not done
    run(capsys, *small(tmp_path / "parts", "--tables=1", "--seed=1"))
    assert len(done) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"world": ["seed"]},
        {"number": "0"},
        {"seconds": "x"},
        {"answers": {"exponent": [0.5, None, "x"]}},
        {"answers": {"exponent": [0.5]}},
        {"answers": {"exponent": [math.nan, 0.4, 0.6]}},
    ],
)
def test_a_damaged_line_is_no_measurement(damage, tmp_path, shape):
    """Twin: the line as it was written is one."""
    record = calibrate_record.Record(tmp_path, plan(shape))
    one = calibrate.Measured("seed", 0, "parabola", {"exponent": (0.5, None, 0.6)}, 1.0)
    record.add([one])
    with open(record.path, "ab") as file:
        file.write(b"\n\x00\xff\n")
    assert record.read() == [one]
    line = json.loads(record.path.read_bytes().split(b"\n")[1])
    record.path.write_text(json.dumps(line | damage))
    assert record.read() == []


def test_a_full_disk_is_named_with_the_file(tmp_path, shape):
    record = calibrate_record.Record(tmp_path, plan(shape))
    record.path.symlink_to("/dev/full")
    one = calibrate.Measured("seed", 0, "parabola", {}, 1.0)
    with pytest.raises(StorageError, match=r"measured.jsonl: cannot be written: No space left"):
        record.add([one])


def test_measurements_by_other_code_do_not_count(tmp_path, shape, monkeypatch):
    one = calibrate.Measured("seed", 0, "parabola", {"exponent": (0.5, None, 0.6)}, 1.0)
    calibrate_record.Record(tmp_path, plan(shape)).add([one])
    files = dict(source.library().files)
    changed = files | {"research/report/page.py": "x"}
    monkeypatch.setattr(source, "library", lambda: source.Library(changed, frozenset()))
    assert calibrate_record.Record(tmp_path, plan(shape)).read() == [one]
    changed |= {"research/scaling/drift.py": "x"}
    assert calibrate_record.Record(tmp_path, plan(shape)).read() == []


def test_ctrl_c_ends_the_workers_and_keeps_what_was_measured(tmp_path):
    flags = ["--shape=isoflop", "--tables=500", "--methods=parabola", "--processes=2",
             f"--out={tmp_path}"]  # fmt: skip
    code = "import sys; from experiments import calibrate as c; sys.exit(c.main(sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stderr
    deadline = time.monotonic() + 120
    while not (workers := _children(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    measured = tmp_path / "measured.jsonl"
    while not (measured.exists() and measured.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does, to workers as well
    told = child.communicate(timeout=60)[1]
    assert child.returncode == 130, told
    assert "Traceback" not in told
    cells = json.loads((tmp_path / "calibration.json").read_text())["worlds"]
    counts = [cell["exponent"]["tables"] for world in cells.values() for cell in world.values()]
    assert f"interrupted: {sum(counts)} of 3500 measurements" in told
    assert sum(counts) == measured.read_text().count('{"of') > 0
    assert workers
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_running(pid) for pid in workers)


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_no_jax_is_loaded(tmp_path):
    code = (
        "import sys; from experiments import calibrate as c\n"
        "code = c.main(sys.argv[1:])\n"
        "assert 'jax' not in sys.modules\n"
        "sys.exit(code)"
    )
    flags = ["--shape=isoflop", "--tables=1", "--worlds=seed", "--methods=envelope"]
    subprocess.run(
        [sys.executable, "-c", code, *flags, "--processes=1", f"--out={tmp_path}"], check=True
    )
