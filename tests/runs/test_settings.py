"""Every key of a config is a column of the table, and those that vary are found."""

import json

import pyarrow.parquet
import pytest

from research.config.loading import validated
from research.config.schema import schema
from research.errors import BadInput, Damaged
from research.io import files
from research.runs import settings
from research.runs.directory import RunDirectory
from research.runs.table import others_note, read_table, split_by_sweep, write_table
from research.sweep.points import resolve_points, write_points
from research.sweep.sweep_file import SweepFile, SweepPoint


def write_run(workdir, name, config, **result):
    with RunDirectory(workdir, name) as directory:
        directory.write_once("config.json", config)
        directory.write_result({"status": "done", "reason": "", "loss": 1.0, **result})


def test_every_key_of_a_config_is_a_column(tiny, tmp_path):
    config = validated(tiny())
    write_run(tmp_path, "a", config)
    (row,) = read_table(tmp_path)
    keys = {key for key in schema(config) if "." in key}
    assert len(keys) > 30
    assert keys <= row.keys()
    assert row["model.qk_norm"] is False
    assert row["optim.ema"] == "none"
    assert row["log.trackers"] == "[]"
    assert row["status"] == "done"


def test_a_config_is_read_again_when_it_changes_and_says_nothing_of_facts(tmp_path, monkeypatch):
    monkeypatch.setattr("research.runs.table.WORTH_CACHING", 1)
    write_run(tmp_path, "a", {"loss": 7.0, "x": {"y": 1}}, seed=3)
    (row,) = read_table(tmp_path)
    assert (row["loss"], row["seed"], row["x.y"]) == (1.0, 3, 1)
    assert (tmp_path / ".table.cache").exists()
    files.write_json(tmp_path / "runs" / "a" / "config.json", {"x": {"y": 2}})
    assert read_table(tmp_path)[0]["x.y"] == 2


def test_a_number_that_no_float_holds_is_damage(tmp_path):
    with pytest.raises(Damaged, match=r"x\.y is 1000"):
        settings.settings_columns({"x": {"y": 10**400}})
    assert settings.settings_columns({"x": {"y": 10**300}}) == {"x.y": 10**300}
    write_run(tmp_path, "a", {"x": {"y": 10**400}})
    assert read_table(tmp_path)[0]["status"] == "failed"


def test_columns_of_words_and_numbers_are_written_as_text(tmp_path):
    for name, ema, wide in (("a", None, 1), ("b", 0.9, 2.5)):
        write_run(tmp_path, name, {"optim": {"ema": ema, "wide": wide}})
    path, _ = write_table(tmp_path)
    found = pyarrow.parquet.read_table(path).to_pydict()
    assert sorted(found["optim.ema"]) == ["0.9", "none"]
    assert sorted(found["optim.wide"]) == [1.0, 2.5]


def rows(*pairs):
    return [{"params": n, **row} for n, row in pairs]


def test_settings_that_vary_are_found_and_no_others():
    table = rows(
        (10, {"model.norm": "rms", "model.width": 4, "model.bias": True, "save.every": 1}),
        (20, {"model.norm": "layer", "model.width": 8, "model.bias": True, "save.every": 2}),
        (30, {"model.norm": "rms", "model.width": 9, "model.bias": True, "save.every": 3}),
        (40, {"model.norm": "rms", "model.width": 9, "model.bias": True, "save.every": 4}),
    )
    assert settings.varying_settings(table, ("params",), 9) == ["model.norm"]
    table[3]["model.width"] = 4  # which does not grow with the parameters
    assert settings.varying_settings(table, ("params",), 9) == ["model.norm", "model.width"]
    assert settings.varying_settings(table, ("params",), 1) == ["model.norm"]
    grouped = [{**row, "group": row["model.norm"]} for row in table]
    assert settings.varying_settings(grouped, ("params", "group"), 9) == ["model.width"]
    assert settings.varying_settings([], ("params",), 9) == []


def test_long_settings_are_shown_by_their_end():
    assert settings.shown_setting("/a/long/way/to/some/corpus/part.txt").endswith("us/part.txt")
    assert len(settings.shown_setting("x" * 99)) == settings.LONGEST
    assert settings.shown_setting(None) == "–"


# Of the sweep as it is now.


def launched(workdir, *runs):
    facts = {"params": 1, "tokens": 1, "flops": 1, "steps": 1, "seed": 0, "lr": 1, "context": 1}
    return SweepFile(tuple(SweepPoint(run, {}, {}, facts) for run in runs)).write(workdir)


def test_runs_of_the_sweep_as_it_was_launched_last_are_told_from_others(tmp_path):
    for name in "abc":
        write_run(tmp_path, name, {})
    table = read_table(tmp_path)
    assert split_by_sweep(tmp_path, table) == (table, [])
    for runs in ("ab", "bc", "ab"):  # the last is a file that is there already
        launched(tmp_path, *runs)
        own, others = split_by_sweep(tmp_path, table)
        assert sorted(row["run"] for row in own) == list(runs)
        assert {row["run"] for row in others} == set("abc") - set(runs)
    assert "1 run of the workdir is left out (c)" in others_note(others)
    assert "c" in others_note(others)


def test_what_is_no_sweep_is_reported(tmp_path):
    path = launched(tmp_path, "a")
    path.write_text(json.dumps({"points": [1]}))
    with pytest.raises(BadInput, match="not a sweep of this version"):
        split_by_sweep(tmp_path, [])


def test_data_that_changed_make_other_runs_of_a_sweep(tiny, tmp_path, corpus):
    data = tmp_path / "corpus.txt"
    data.write_bytes(corpus.read_bytes())
    configs = [({}, validated(tiny({"data.path": str(data)})))]
    (before,) = resolve_points(configs, tmp_path)
    write_run(tmp_path, before.run.id, before.run.config)
    write_points([before], tmp_path)
    assert split_by_sweep(tmp_path, read_table(tmp_path))[1] == []
    data.write_bytes(corpus.read_bytes() + b"and more")
    (after,) = resolve_points(configs, tmp_path)
    write_points([after], tmp_path)
    own, others = split_by_sweep(tmp_path, read_table(tmp_path))
    assert own == []
    assert [row["run"] for row in others] == [before.run.id]


def test_two_optimizers_are_told_apart_by_their_names_and_not_by_a_number():
    adamw = {"optim.optimizer.b2": 0.98, "optim.optimizer.name": "adamw", "params": 10}
    muon = {"optim.optimizer.b2": 0.95, "optim.optimizer.name": "muon", "params": 10}
    muon |= {"optim.optimizer.scale": 0.3}
    assert settings.varying_settings([adamw, muon], (), 9) == ["optim.optimizer.name"]
    another = {**adamw, "optim.optimizer.b2": 0.9}
    both = ["optim.optimizer.name", "optim.optimizer.b2"]
    assert settings.varying_settings([adamw, muon, another], (), 9) == both
