"""A run is continued by the code and the settings that made its steps, or somebody says otherwise,
which is recorded."""

import csv
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import train
from research.errors import BadInput, Damaged
from research.io import files, host, source
from research.parallel import distributed, jax_settings
from research.runs import made_by, metrics_log
from research.runs.directory import RunDirectory, read_launch
from research.runs.table import read_table, write_table
from research.sweep.limits import Limits
from research.sweep.plan import plan_sweep
from research.sweep.points import (
    describe_changes,
    launched_with,
    read_points,
    resolve_points,
    write_points,
)
from research.sweep.worker import check_points
from research.training import resume
from research.training.make_run import make_run
from research.training.vmapped_runs import train_vmapped

ROOT = Path(__file__).parents[2]
STEP, REPORT = "research/training/step.py", "research/report/html.py"
SAVING = {"save.every": 6, "save.keep": 3}  # of 12 steps


@pytest.fixture
def edit(monkeypatch):
    """A function: this process runs with another version of a file of the library."""

    def make(path, version="0" * source.DIGITS):
        whole = source.library()
        other = whole._replace(files={**whole.files, path: version})
        monkeypatch.setattr(source, "library", lambda: other)

    return make


class Unfinished:
    """A run that has saved six of its twelve steps."""

    def __init__(self, config, workdir):
        self.workdir, self.file = workdir, workdir / "config.json"
        workdir.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(config))
        self.path = RunDirectory(workdir, make_run(config).id).path
        if not self.path.exists():
            self.launch()
            self.cut()

    def launch(self, *flags):
        return train.main([f"--config={self.file}", f"--workdir={self.workdir}", *flags])

    def cut(self, step=6):
        """Nothing after a step was saved."""
        (self.path / "result.json").unlink(missing_ok=True)
        for folder in (self.path / "checkpoints").iterdir():
            if int(folder.name) > step:
                shutil.rmtree(folder)

    @property
    def result(self):
        return json.loads((self.path / "result.json").read_text())


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    return Unfinished(tiny(SAVING), tmp_path_factory.mktemp("original")).workdir


@pytest.fixture
def begun(original, tiny, tmp_path):
    return Unfinished(tiny(SAVING), shutil.copytree(original, tmp_path / "w"))


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_edit_of_what_training_loads_is_refused(begun, edit):
    records = metrics_log.read_records(begun.path)
    launch = read_launch(begun.path)
    edit(STEP)
    with pytest.raises(BadInput, match=f"code: {STEP} changed") as caught:
        begun.launch()
    assert caught.value.exit_code == 2
    assert "--accept_changes" in str(caught.value)
    assert metrics_log.read_records(begun.path) == records
    assert read_launch(begun.path) == launch
    assert not (begun.path / "result.json").exists()


def test_an_edit_elsewhere_is_told_and_allowed(begun, edit, caplog):
    edit(REPORT)
    assert begun.launch() == 0
    (told,) = messages(caplog)
    assert f"{REPORT} changed, which this run does not load" in told
    assert begun.result["code"] == read_launch(begun.path)["code"]
    assert "accepted" not in told


def test_the_same_code_is_not_spoken_of(begun, caplog):
    assert begun.launch() == 0
    assert not messages(caplog)
    assert not (begun.path / made_by.CONTINUED).exists()
    assert "continued" not in begun.result


def test_what_is_accepted_is_recorded(begun, edit, monkeypatch):
    first = read_launch(begun.path)
    library = source.library
    edit(STEP)
    assert begun.launch("--accept_changes") == 0
    (entry,) = made_by.launches(begun.path)
    assert entry["step"] == 6
    assert entry["accepted"] == [f"code: {STEP} changed"]
    assert entry["made_by"]["code"] != first["code"]
    assert begun.result["code"] == f"{first['code']}+{entry['made_by']['code']}"
    assert begun.result["continued"] == f"step 6: code: {STEP} changed"
    assert read_launch(begun.path) == first
    begun.cut()  # step 12 is gone, and with it all that the other code has made
    monkeypatch.setattr(source, "library", library)
    assert begun.launch() == 0  # so the first code continues unasked
    assert not made_by.launches(begun.path)
    assert begun.result["code"] == first["code"]


def test_the_code_that_was_accepted_continues_and_the_first_is_asked(
    tiny, tmp_path, edit, monkeypatch
):
    begun = Unfinished(tiny(SAVING | {"save.every": 3, "save.keep": 9}), tmp_path)
    library = source.library
    edit(STEP)
    assert begun.launch("--accept_changes") == 0
    begun.cut(9)
    assert begun.launch() == 0
    assert len(made_by.launches(begun.path)) == 1
    begun.cut(9)
    monkeypatch.setattr(source, "library", library)
    with pytest.raises(BadInput, match=f"code: {STEP} changed"):
        begun.launch()
    assert begun.launch("--accept_changes") == 0
    codes = begun.result["code"].split("+")
    assert [e["step"] for e in made_by.launches(begun.path)] == [6, 9]
    assert len(codes) == 2


def test_a_run_without_a_checkpoint_is_that_of_the_code_that_begins_it_anew(begun, edit):
    first = read_launch(begun.path)["code"]
    shutil.rmtree(begun.path / "checkpoints")
    (begun.path / "saved").unlink()
    files.write_json(begun.path / made_by.CONTINUED, {"launches": []})
    edit(STEP)
    assert begun.launch() == 0
    assert begun.result["code"] == read_launch(begun.path)["code"] != first


def test_numbers_as_jax_makes_them_are_the_runs_and_versions_are_told(begun, monkeypatch, caplog):
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        with pytest.raises(BadInput, match="jax_default_matmul_precision: none -> highest"):
            begun.launch()
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    versions = host._versions()
    monkeypatch.setattr(host, "_versions", lambda: versions | {"jax": "99.0"})
    assert begun.launch() == 0
    assert any(f"jax {versions['jax']} -> 99.0" in line for line in messages(caplog))
    (entry,) = made_by.launches(begun.path)
    assert not entry["accepted"]
    assert "jax" in begun.result["continued"]


def test_processes_of_one_run_have_one_code(monkeypatch):
    resume.check_one_code()
    monkeypatch.setattr(distributed, "broadcast", lambda decide: "0" * source.DIGITS)
    with pytest.raises(BadInput, match="process 0 code 000000000000"):
        resume.check_one_code()


def test_every_field_is_compared():
    now = jax_settings.describe()
    assert not any(made_by.differences(now, now, Path("none")))
    for name in made_by.BITS:
        found = made_by.differences({**now, name: "another"}, now, Path("none"))
        assert not found.refused
        assert len(found.told) == 1
        assert found.told[0].startswith(f"{name}: another -> ")
    for name, value in now["jax_config"].items():
        settings = {**now["jax_config"], name: f"not {value}"}
        found = made_by.differences({**now, "jax_config": settings}, now, Path("none"))
        refused = name in made_by.MEANING
        assert (len(found.refused), len(found.told)) == (int(refused), int(not refused)), name
    assert set(jax_settings.FIXED) < set(made_by.MEANING)
    assert set(made_by.MEANING) - set(jax_settings.VARIABLES) <= now["jax_config"].keys()


def test_code_whose_list_of_files_is_lost_is_refused(begun, edit):
    shutil.rmtree(begun.workdir / "code")
    edit(REPORT)
    assert begun.launch() == 0  # the digest of what training loads is the same
    begun.cut()
    edit(STEP)
    with pytest.raises(BadInput, match="the list of its files is not there"):
        begun.launch()


@pytest.mark.parametrize("digest", ["../../secret", 5, None, "0" * 12, ["a"]])
def test_a_list_of_files_is_looked_for_in_the_workdir_alone(tmp_path, digest, monkeypatch):
    read, opened = files.read_json, []
    monkeypatch.setattr(files, "read_json", lambda path, *a, **k: opened.append(path) or read(path))
    workdir = tmp_path / "a" / "b"
    (workdir / "code").mkdir(parents=True)
    (workdir / "code" / f"{'0' * 12}.json").write_text('{"files": {"x": "altered"}}')
    assert made_by._listed(workdir, digest) is None
    assert opened == ([workdir / "code" / f"{digest}.json"] if digest == "0" * 12 else [])


def test_a_damaged_record_of_launches_is_named(begun):
    for text in ("{}", '{"launches": [{"step": "x"}]}', '{"launches": 5}'):
        (begun.path / made_by.CONTINUED).write_text(text)
        with pytest.raises(Damaged, match=r"continued.json: not a list of launches; remove it"):
            begun.launch()


def test_a_run_that_did_not_record_its_code_is_told(begun, caplog):
    launch = json.loads((begun.path / "launch.json").read_text())
    old = {k: v for k, v in launch.items() if k not in ("code", "source", "jax_config")}
    (begun.path / "launch.json").write_text(json.dumps(old))
    assert begun.launch() == 0
    assert any("did not record it" in line for line in messages(caplog))


# Sweeps.


def test_a_sweep_is_refused_by_name_and_its_workers_know_what_was_accepted(
    begun, edit, tiny, tmp_path
):
    points = resolve_points([({}, tiny(SAVING))], begun.workdir)
    check_points(points, begun.workdir)
    edit(STEP)
    with pytest.raises(BadInput, match=f"code: {STEP} changed") as caught:
        check_points(points, begun.workdir)
    (problem,) = caught.value.problems  # what changed and what helps, whatever is grouped
    assert problem.startswith("point {}: ")
    assert "--accept_changes" in problem
    asked = launched_with(points, True, {})
    check_points(asked, begun.workdir)
    for given, accepted in ((points, False), (asked, True)):
        again, _ = read_points(write_points(given, tmp_path), tmp_path)
        assert [p.accept_changes for p in again] == [accepted]


def test_a_sweep_tells_that_its_finished_runs_are_of_other_code(begun, edit, tiny):
    configs = [({}, tiny(SAVING)), ({}, tiny({"seed": 1}))]
    begun.launch()
    points = resolve_points(configs, begun.workdir)
    assert not describe_changes(points, begun.workdir)
    edit(STEP)
    (line,) = describe_changes(points, begun.workdir)
    assert line == f"1 of 1 finished runs were made differently: code: {STEP} changed"
    assert line in plan_sweep(configs, begun.workdir, Limits()).text.splitlines()


def test_workers_record_the_config_file_of_their_launcher(tiny, tmp_path):
    points = resolve_points([({}, tiny())], tmp_path)
    source.set_config_files({"mine.py": "0" * 12})
    file = write_points(points, tmp_path)
    source.set_config_files({})
    read_points(file, tmp_path)
    assert source.config_files() == {"mine.py": "0" * 12}


@pytest.mark.slow
def test_vmapped_runs_are_compared_as_well(tiny, tmp_path, edit):
    runs = [make_run(tiny(SAVING | {"seed": seed})) for seed in (0, 1)]
    ids = [run.id for run in runs]

    def launch(accept):
        directories = [RunDirectory(tmp_path, run.id) for run in runs]
        for directory in directories:
            directory.accept_changes = accept
        with directories[0], directories[1]:
            return train_vmapped(list(zip(runs, directories, strict=True)), ids)

    launch(False)
    for name in ids:
        (tmp_path / "runs" / name / "result.json").unlink()
        shutil.rmtree(tmp_path / "runs" / name / "checkpoints" / "12")
    edit(STEP)
    with pytest.raises(BadInput, match=f"code: {STEP} changed"):
        launch(False)
    assert all("+" in result["code"] for result in launch(True).values())


# The table.


def test_the_table_has_what_made_a_run_as_columns(begun, edit):
    (row,) = read_table(begun.workdir)  # from launch.json: it is not done
    whole = {"code", "commit", "source", "jax", "precision", "prng", "platform", "device_kind"}
    assert whole <= row.keys()
    assert row["status"] == "unfinished"
    begun.launch()
    (row,) = read_table(begun.workdir)
    assert whole <= row.keys()
    assert row["code"] == read_launch(begun.path)["code"]
    assert row["jax"] == jax.__version__
    assert (row["precision"], row["prng"]) == ("default", "threefry2x32")
    write_table(begun.workdir)
    with open(begun.workdir / "table.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["code"] == row["code"]
    for name in ("launch.json", "result.json"):  # of a run that was made before
        stored = json.loads((begun.path / name).read_text())
        old = {k: v for k, v in stored.items() if k not in ("code", "source", "jax_config")}
        (begun.path / name).write_text(json.dumps(old))
    (row,) = read_table(begun.workdir)
    assert not row.keys() & {"code", "precision", "prng"}
    assert row["jax"] == jax.__version__


# The environment.

SETTINGS = "import jax; from research.parallel import distributed, jax_settings"
NUMBERS = "x = jax.random.normal(jax.random.key(0)); print(float(x), x.dtype)"


@functools.cache
def numbers(code, **environment):
    """What a process draws after `code`, and what it says."""
    done = subprocess.run(
        [sys.executable, "-c", f"{SETTINGS}\n{code}\n{NUMBERS}"], cwd=ROOT,
        env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", "1"),
        ("JAX_DEFAULT_PRNG_IMPL", "rbg"),
        ("JAX_THREEFRY_PARTITIONABLE", "0"),
        ("JAX_RANDOM_SEED_OFFSET", "7"),
    ],
)
def test_no_variable_decides_what_a_random_number_is(name, value):
    expected, quiet = numbers("jax_settings.fix()")
    assert "has no effect" not in quiet
    found, said = numbers("jax_settings.fix()", **{name: value})
    assert found == expected
    assert f"{name}=" in said
    assert "has no effect" in said
    if name != "JAX_THREEFRY_PARTITIONABLE":  # which changes arrays alone
        assert numbers("", **{name: value})[0] != expected  # the twin: it would have decided


# All of it, by the command.


@pytest.mark.slow
def test_an_edited_checkout_is_refused_by_the_command(tiny, tmp_path):
    checkout = tmp_path / "checkout"
    for name in source.PACKAGES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = tiny(SAVING)
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = RunDirectory(tmp_path / "w", make_run(config).id).path
    argv = [sys.executable, "-m", "experiments.train", f"--config={tmp_path / 'config.json'}"]
    argv.append(f"--workdir={tmp_path / 'w'}")

    def launch(*flags):
        (path / "result.json").unlink(missing_ok=True)
        shutil.rmtree(path / "checkpoints" / "12", ignore_errors=True)
        return subprocess.run([*argv, *flags], cwd=checkout, capture_output=True, text=True)

    assert (done := launch()).returncode == 0, done.stderr
    with open(checkout / REPORT, "a") as file:
        file.write("\n# edited\n")
    assert (done := launch()).returncode == 0, done.stderr
    assert f"{REPORT} changed, which this run does not load" in done.stderr
    with open(checkout / STEP, "a") as file:
        file.write("\n# edited\n")
    refused = launch()
    assert refused.returncode == 2
    assert f"(code: {STEP} changed)" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (done := launch("--accept_changes")).returncode == 0, done.stderr
    assert f"accepted: code: {STEP} changed" in done.stderr
    assert [e["step"] for e in made_by.launches(path)] == [6]
