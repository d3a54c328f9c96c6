"""Rungs are registered before their runs are trained, are not changed, and are compared."""

import json
import math
import shutil

import numpy as np
import pytest

from experiments import verify as command
from research.config import validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.io import files
from research.report import build, ladder_text
from research.runs import ladder
from research.runs.directory import RunDirectory
from research.runs.table import read_row, read_table
from research.sweep import verify
from research.sweep.verify import Asked

pytestmark = pytest.mark.usefixtures("barely_optimized")

LARGEST = 2.7e9  # 6 N D of the largest run of the sweep


@pytest.fixture
def swept(tmp_path, corpus):
    """The records of a sweep whose losses follow a law, and the file that its launch left."""
    for i, n in enumerate(np.geomspace(1e3, 1e4, 4)):
        for k in (0.2, 1.0, 4.5):
            with RunDirectory(tmp_path, f"r{i}{k}") as directory:
                directory.write_once("config.json", {})
                loss = 2.0 + 40 / n**0.4 + 60 / (k * n) ** 0.35
                loss *= 1 + 1e-3 * math.sin(17 * i + 5 * k)
                facts = {"params": int(n), "tokens": int(k * n), "flops": 7 * k * n * n}
                facts |= {"optimizer": "adamw", "loss": loss}
                directory.write_result({"status": "done", "reason": "", **facts})
    config, _ = load_config("configs/lm_transformer.py")
    changes = {"data.path": str(corpus), "data.context": 32, "eval.examples": 64, "eval.every": 0}
    config, problems = validation.override(config, changes)
    assert not problems
    files.make_directory(tmp_path / "sweeps")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    points = [{"run": name, "config": validated(config)} for name in names]
    files.write_json(tmp_path / "sweeps" / "a.json", {"points": points})
    return tmp_path


def registered(swept, *ratios, **how):
    """The document of a registration that is made now."""
    path = verify.register(swept, Asked(ratios, **how))
    assert path is not None
    return files.read_json(path)


def done(swept, rung, loss):
    """The run of a rung, as if it had been trained."""
    with RunDirectory(swept / "verify", rung["run"]) as directory:
        directory.write_once("config.json", rung["config"])
        facts = {name: rung[name] for name in ("params", "tokens", "flops")}
        directory.write_result({"status": "done", "reason": "", "loss": loss, **facts})


def test_rungs_are_registered_before_their_runs_and_are_not_changed(swept):
    made = registered(swept, 10.0, 3.0)
    path = swept / "verify" / "registration.json"
    written = path.read_bytes()
    assert not (swept / "verify" / "runs").exists()
    assert files.as_digested(made)
    assert made["largest_budget"] == pytest.approx(LARGEST, rel=0.01)
    assert [rung["ratio"] for rung in made["rungs"]] == [3.0, 10.0]
    for rung in made["rungs"]:
        low, high = rung["run_interval"]
        assert low < rung["loss"] < high
        width = rung["interval"][1] - rung["interval"][0]
        assert high - low > 0.95 * width > 0  # both are of draws
        assert rung["budget"] == pytest.approx(rung["ratio"] * LARGEST, rel=0.01)
        assert 6 * rung["params"] * rung["tokens"] == pytest.approx(rung["budget"], rel=0.2)
        assert rung["params"] == pytest.approx(rung["optimal_params"], rel=0.5)
        assert rung["found"] == "new"
    near, far = made["rungs"]
    assert near["parts"]["law"] < far["parts"]["law"]
    assert far["loss"] < near["loss"]
    assert {"code", "source", "commit"} <= set(made["code"])
    # Other runs, and so other laws, do not change what was said.
    with RunDirectory(swept, "late") as directory:
        directory.write_once("config.json", {})
        facts = {"params": 50_000, "tokens": 500_000, "flops": 1e11, "loss": 1.0}
        directory.write_result({"status": "done", "reason": "", **facts})
    for asked in (Asked(), Asked((3.0,)), Asked(flops=10 * LARGEST), Asked((3.0,), law="auto")):
        assert verify.register(swept, asked) is None
    assert path.read_bytes() == written
    assert list(ladder.read_registrations(swept)) == ["registration.json"]


def test_what_was_not_registered_is_a_registration_of_its_own(swept):
    first = registered(swept, 3.0)
    second = registered(swept, 3.0, 6.0)  # of which one is new
    assert [rung["ratio"] for rung in second["rungs"]] == [6.0]
    chosen = registered(swept, 3.0, law="chinchilla")
    assert [law["law"] for law in chosen["laws"]] == ["chinchilla"]
    # Of a law that is named, its own rungs alone are trained.
    of = [point.run.id for point in verify.rung_points(swept, Asked(law="chinchilla"))]
    assert of == [rung["run"] for rung in chosen["rungs"]]
    assert len(verify.rung_points(swept, Asked())) > len(of)
    again = registered(swept, again=True)
    names = ["registration.json", *(f"registration-{i}.json" for i in (2, 3, 4))]
    assert ladder.read_registrations(swept) == dict(
        zip(names, [first, second, chosen, again], strict=True)
    )
    assert [rung["ratio"] for rung in again["rungs"]] == [3.0]
    assert again["table"] == first["table"]
    assert again["fit"] == first["fit"] != chosen["fit"]
    assert [(r["ratio"], r["registration"]) for r in ladder.read_ladder(swept)] == [
        *((3.0, names[0]), (3.0, names[2]), (3.0, names[3]), (6.0, names[1]))
    ]


def test_a_rung_is_compared_with_its_run(swept):
    near, far = registered(swept, 3.0, 30.0)["rungs"]
    assert all(rung["measured"] is None for rung in verify.write_ladder(swept))
    done(swept, near, near["loss"] * 0.99)
    done(swept, far, 2 * far["run_interval"][1])
    one, other = verify.write_ladder(swept)
    assert one["error"] == pytest.approx(1 / 0.99 - 1)
    assert one["compute"] == pytest.approx(0.99 ** (1 / near["slope"]))
    assert one["compute"] > 1 > other["compute"]
    low, high = near["run_interval"]
    assert one["covered"] == (low <= 0.99 * near["loss"] <= high)
    assert not other["covered"]
    assert files.read_json(swept / "verify" / "ladder.json")["rungs"] == [one, other]
    # Written by hand it is not believed.
    files.write_json(swept / "verify" / "ladder.json", {"rungs": []})
    assert ladder.read_ladder(swept) == [one, other]
    words = ladder_text.measured([one, other])
    assert "of 2 rungs measured lie inside" in words
    assert "(±" in words
    head, (row,) = ladder_text.table_rows([{**one, "run_interval": [None, 2.0]}])
    assert "registered in" not in head  # which is said where there are several
    assert row[ladder_text.HEADINGS.index("95 % of a run")].startswith("open to 2")
    assert "inf" not in " ".join(row)
    assert "had been trained before" not in words
    registered(swept, 3.0, again=True)
    words = ladder_text.measured(ladder.read_ladder(swept))
    assert "had been trained before" in words
    assert "of 2 rungs measured lie inside" in words  # it counts for nothing


@pytest.fixture
def curved(swept):
    """The same with training curves, which all have one shape."""
    for i, path in enumerate(sorted((swept / "runs").iterdir())):
        row, rng = read_row(path), np.random.default_rng(i)
        (path / "result.json").unlink()
        with RunDirectory(swept, path.name) as directory:
            for step in range(0, 1000, 10):
                shape = ((step + 1) / 1000) ** -0.2
                loss = 2.0 + (row["loss"] - 2.0) * shape + 0.02 * rng.standard_normal()
                directory.append(step=step, tokens=step, train_loss=loss)
            result = {k: row[k] for k in ("params", "tokens", "flops", "optimizer", "loss")}
            directory.write_result({"status": "done", "reason": "", "steps": 1000, **result})
    return swept


def test_the_curve_of_a_rung_is_forecast_and_watched(curved):
    made = registered(curved, 3.0, law="chinchilla")
    (rung,) = made["rungs"]
    assert made["collapse"]["runs"] == 12
    assert made["collapse"]["spread"] < 0.2
    share, loss = (np.array(rung["curve"][name]) for name in ("share", "loss"))
    assert made["collapse"]["floor"] == made["laws"][0]["params"]["E"]
    late = share > 0.1
    wanted = 2.0 + (rung["loss"] - 2.0) * share**-0.2
    assert loss[late] == pytest.approx(wanted[late], rel=0.05)
    assert ladder.read_forecasts(curved / "verify") == {rung["run"]: rung["curve"]}
    assert ladder.read_forecasts(curved) == {}
    (point,) = verify.rung_points(curved, Asked())
    for off in (0.0, 10.0):
        stop = verify.StopOffTrack(curved / "verify", [point], lambda: False)
        with RunDirectory(curved / "verify", rung["run"]) as directory:
            (directory.path / "metrics.jsonl").unlink(missing_ok=True)
            for step in range(0, rung["steps"] // 2, 3):
                value = float(np.interp((step + 1) / rung["steps"], share, loss)) + off
                directory.append(step=step, tokens=step, train_loss=value)
                stop._next = 0.0
                stop()
        assert stop() == bool(off)
    assert f"run {rung['run']} is off track at " in stop.why
    assert " sd above" in stop.why
    assert verify.StopOffTrack(curved / "verify", [point], lambda: True)()


def test_without_records_there_is_no_forecast(swept):
    made = registered(swept, 3.0)
    assert "curve" not in made["rungs"][0]
    assert "training curves" in made["collapse"]["why"]


def test_a_registration_that_was_edited_is_refused(swept):
    made = registered(swept, 3.0)
    path = swept / "verify" / "registration.json"
    made["rungs"][0]["loss"] *= 1.001
    files.write_json(path, made)
    for use in (ladder.read_ladder, build.write_report, lambda at: verify.register(at, Asked())):
        with pytest.raises(BadInput, match="not as it was registered"):
            use(swept)
    path.write_bytes(path.read_bytes()[:100])  # torn
    with pytest.raises(BadInput, match=r"registration\.json"):
        ladder.read_ladder(swept)
    made["rungs"][0]["slope"] = 1.0  # with a digest of its own, but no ladder
    files.write_json(path, files.digested(made))
    with pytest.raises(BadInput, match="not what isoflop verify writes"):
        ladder.read_ladder(swept)


def test_other_data_than_those_of_the_registration_are_refused(swept, corpus):
    text = swept / "own.txt"
    text.write_bytes(corpus.read_bytes())
    sweep = files.read_json(swept / "sweeps" / "a.json")
    sweep["points"][0]["config"]["data"]["path"] = str(text)
    files.write_json(swept / "sweeps" / "a.json", sweep)
    registered(swept, 2.0)
    assert [point.status for point in verify.rung_points(swept, Asked())] == ["new"]
    text.write_text(text.read_text() + "more text than there was " * 400)
    with pytest.raises(BadInput, match="the data changed since"):
        verify.rung_points(swept, Asked())


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--flops=-1"], "--flops"),
        (["--flops=1e9"], "expected more than the largest budget of the sweep"),
        (["--flops=1e30"], "times the sweep's largest"),
        (["--rungs=3,3"], "3 is given twice"),
        (["--rungs=0.5"], "above 1"),
        (["--rungs=nan"], "above 1"),
        (["--rungs=,"], "expected numbers joined by commas"),
        (["--rungs=three"], "expected numbers joined by commas"),
        (["--rungs=3", "--flops=1e10"], "give one of both"),
        (["--law=power"], "expected one of auto, chinchilla"),
        (["--law=isoflop"], "which read params and tokens"),
        (["--law=data_constrained"], "unique_tokens"),
        (["--workers=0"], "--workers"),
        (["--executor=local", "--executor_options=a=1"], "no option of local"),
    ],
)
def test_what_no_ladder_can_have_is_refused(flags, problem, swept):
    with pytest.raises(BadInput, match=problem):
        command.main([f"--runs={swept}", *flags])
    assert not (swept / "verify").exists()


def test_without_finished_runs_or_a_sweep_there_is_no_ladder(swept):
    sweeps = list((swept / "sweeps").iterdir())
    for path in sweeps:
        path.unlink()
    with pytest.raises(BadInput, match="no sweep was launched"):
        verify.register(swept, Asked())
    for path in (swept / "runs").glob("*/result.json"):
        path.unlink()
    with pytest.raises(BadInput, match="none of its 12 runs is finished"):
        verify.register(swept, Asked())
    with pytest.raises(BadInput, match="no such file or folder"):
        verify.register(swept / "nowhere", Asked())


@pytest.mark.slow
def test_the_command_trains_the_runs_once_and_shows_them(swept, capsys):
    assert command.main([f"--runs={swept}", f"--flops={2 * LARGEST}"]) == 0
    said = capsys.readouterr().out
    assert "registered before any of its rungs is trained" in said
    assert "1 of 1 rungs measured" in said or "0 of 1 rungs measured" in said
    (found,) = json.loads((swept / "verify" / "ladder.json").read_text())["rungs"]
    (row,) = read_table(swept / "verify")
    assert row["loss"] == found["measured"]
    assert (row["params"], row["tokens"]) == (found["params"], found["tokens"])
    low, high = found["run_interval"]
    assert found["covered"] == (low <= found["measured"] <= high)
    assert found["error"] == pytest.approx(found["predicted"] / found["measured"] - 1)
    page = (swept / "report.html").read_text()
    assert "Larger runs, predicted and measured" in page
    assert f"{found['measured']:.4g}" in page
    before = (swept / "verify" / "runs" / row["run"] / "result.json").stat().st_mtime_ns
    command.main([f"--runs={swept}"])
    assert (swept / "verify" / "runs" / row["run"] / "result.json").stat().st_mtime_ns == before
    # Another rung is added to what there is; and without the sweep's runs all still stands.
    assert command.main([f"--runs={swept}", "--rungs=2,3", "--executor=local"]) == 0
    assert [r["covered"] is None for r in ladder.read_ladder(swept)] == [False, False]
    shutil.rmtree(swept / "runs")
    capsys.readouterr()
    assert command.main([f"--runs={swept}"]) == 0
    said = capsys.readouterr().out
    assert "no report: " in said
    assert read_row(swept / "verify" / "runs" / row["run"])["loss"] == found["measured"]


def test_the_law_is_that_of_the_runs_that_are_comparable_with_the_first_point(swept):
    rows = read_table(swept)
    assert verify.fit_laws(swept, "chinchilla")[1] == ""
    for row in rows:  # as many runs of another optimizer, with half of the loss
        name = f"z{row['run']}"
        with RunDirectory(swept, name) as directory:
            directory.write_once("config.json", {})
            facts = {**row, "optimizer": "muon", "loss": row["loss"] / 2}
            directory.write_result({k: v for k, v in facts.items() if "." not in k})
    sweep = files.read_json(swept / "sweeps" / "a.json")
    sweep["points"] += [{**p, "run": f"z{p['run']}"} for p in sweep["points"]]
    files.write_json(swept / "sweeps" / "a.json", sweep)
    forecaster, group, _ = verify.fit_laws(swept, "chinchilla")
    assert {row["run"][0] for row in forecaster.rows} == {"r"}
    assert group == "adamw"
    sweep["points"].reverse()
    files.write_json(swept / "sweeps" / "a.json", sweep)
    forecaster, group, _ = verify.fit_laws(swept, "chinchilla")
    assert {row["run"][0] for row in forecaster.rows} == {"z"}
    assert group == "muon"


def test_the_rungs_of_a_tuned_sweep_have_the_setting_that_was_best(swept):
    path = swept / "sweeps" / "a.json"
    points = files.read_json(path)["points"]
    plain = registered(swept, 3.0)
    assert plain["notes"] == []
    tried = []
    for row in read_table(swept):  # every size and length at a worse rate, too
        name = f"z{row['run']}"
        with RunDirectory(swept, name) as directory:
            directory.write_once("config.json", {})
            facts = {**row, "optimizer": "adamw", "lr": 0.1, "loss": row["loss"] * 1.2}
            directory.write_result({k: v for k, v in facts.items() if "." not in k})
        (point,) = (p for p in points if p["run"] == row["run"])
        for run, lr in ((name, 0.1), (row["run"], 0.03)):
            config, problems = validation.override(point["config"], {"optim.lr": lr})
            assert not problems
            tried.append({"run": run, "config": config})
    files.write_json(path, {"points": tried})  # that of a worse rate first
    made = registered(swept, 3.0, again=True)
    assert {row["run"][0] for row in made["rows"]} == {"r"}
    assert made["rungs"][0]["loss"] == pytest.approx(plain["rungs"][0]["loss"])
    assert made["rungs"][0]["config"]["optim"]["lr"] == 0.03
    (note,) = made["notes"]
    assert note.startswith(
        "the runs of the sweep differ in optim.lr; the rungs have optim.lr = 0.03"
    )
    assert ladder.read_registrations(swept)["registration-2.json"] == made


def test_what_a_size_sets_is_no_setting_of_the_rungs(swept):
    points = files.read_json(swept / "sweeps" / "a.json")["points"]
    rows = read_table(swept)
    changed = {"size": "none", "model.width": 64, "horizon.amount": 7.0, "seed": 3}
    other, problems = validation.override(points[0]["config"], changed)
    assert not problems
    sized = [points[0], {**points[1], "config": other}, *points[2:]]
    assert verify.choose_config(sized, rows) == (points[0]["config"], [])
    other, _ = validation.override(points[0]["config"], {"batch.size": 3})
    config, notes = verify.choose_config([points[0], {**points[-1], "config": other}], rows)
    assert config == other  # the larger of both
    assert "batch.size = 3" in notes[0]
