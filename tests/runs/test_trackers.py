"""Sinks: what was logged is read back with each package's own reader or from its file format.

Each tracker is launched twice: in a process that is killed, and here again from an earlier step.
"""

import contextlib
import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from research.config import schema
from research.errors import BadInput
from research.runs import trackers

ROOT = Path(__file__).parents[2]
CONFIG = {
    "name": "n",
    "optim": {"lr": 0.5, "betas": [0.9, 0.95]},
    "log": {"every": 1},
    "size": None,
}
RESULT = {"status": "done", "reason": "", "loss": 2.5, "versions": {"jax": "0.1"}, "devices": 8}
CHOSEN = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING")
CHOSEN += ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY")

# Steps 0 to 5; whom the process asked for; then what a power cut does.
KILLED = """
import json, os, sys, time
from pathlib import Path
asked = []
def watch(event, args):
    if event == "socket.getaddrinfo": asked.append(str(args[0]))
    if event == "socket.connect" and isinstance(args[1], tuple): asked.append(str(args[1][0]))
sys.addaudithook(watch)
from research.runs import trackers
workdir = Path(sys.argv[2])
config, directory = json.loads(sys.argv[3]), workdir / "runs" / "r0"
trackers.SECONDS = 0.2
out = trackers.open_trackers([sys.argv[1]], "r0", "a run", config, directory, workdir)
for step in range(6):
    if step == 5 and sys.argv[1] == "mlflow": time.sleep(1)  # it sends what it holds
    out.log(step, {"train_loss": 8.0 - step})
until = time.monotonic() + 60 * (sys.argv[1] == "wandb")  # its own process writes when it likes
while time.monotonic() < until:
    written = b"".join(p.read_bytes() for p in workdir.glob("wandb/*/run-r0.wandb"))
    if written.count(b"train_loss") > 3: break  # in a summary and in a row
    time.sleep(0.1)
try: __import__("socket").getaddrinfo("planted.invalid", 80)
except OSError: pass
print(json.dumps([sorted(map(str, out.trackers)), asked]), flush=True)
os._exit(9)
"""


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name in CHOSEN:
            patch.setenv(name, "")  # so that it is taken back, too
            patch.delenv(name)
        yield


def opened(tracker, workdir):
    return trackers.open_trackers(
        [tracker], "r0", "a run", CONFIG, workdir / "runs" / "r0", workdir
    )


def launch_twice(tracker, workdir):
    """Killed after step 5, launched again from step 4, done after step 7; returns whom the first
    launch asked for over the network, and what it left in HOME."""
    home = workdir / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "CI"))}
    first = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, tracker, str(workdir), json.dumps(CONFIG)],
        cwd=home,
        env={**env, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert first.returncode == 9, first.stderr
    alive, asked = json.loads(first.stdout)
    assert alive == [tracker], first.stderr
    out = opened(tracker, workdir)
    assert list(out.trackers) == [tracker]
    for step in range(4, 8):
        out.log(step, {"train_loss": 8.0 - step})
    out.log(8, {"loss": 2.5})
    out.close(RESULT)
    out.close(None)  # finds nothing to do
    return asked, sorted(str(p) for p in home.rglob("*") if p.is_file())


def stays_at_home(asked, left):
    return left == [] and set(asked) <= {"planted.invalid", "127.0.0.1", "localhost"}


# TensorBoard


@pytest.fixture(scope="module")
def board(tmp_path_factory, environment):
    pytest.importorskip("tensorboardX", reason="the track extra is not installed")
    workdir = tmp_path_factory.mktemp("board")
    return workdir / "runs" / "r0" / "tensorboard", launch_twice("tensorboard", workdir)


def events(folder):
    """The events of a folder in TensorBoard's order: u64 length, u32 crc, event, u32 crc."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            yield Event.FromString(raw[at + 12 : at + 12 + length])
            at += 12 + length + 4
        assert at == len(raw)


def shown(stream, purge=True):
    """The points that TensorBoard shows: a START hides what came before it, from its step on."""
    points = []
    for event in stream:
        if purge and event.session_log.status == event.session_log.START:
            points = [p for p in points if p[1] < event.step]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                points.append((value.tag, event.step, value.simple_value))
    return points


def test_tensorboard_shows_each_step_once(board):
    folder, _ = board
    expected = [("train_loss", s, 8.0 - s) for s in range(8)] + [("loss", 8, 2.5)]
    assert shown(events(folder)) == expected
    assert len(shown(events(folder), purge=False)) == len(expected) + 2  # steps 4 and 5 twice
    assert len(list(folder.iterdir())) == 2


def test_tensorboard_has_the_config_as_hparams(board):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    summaries = [v for e in events(board[0]) for v in e.summary.value if v.tag.startswith("_hp")]
    told = {v.tag: HParamsPluginData.FromString(v.metadata.plugin_data.content) for v in summaries}
    start = told["_hparams_/session_start_info"].session_start_info.hparams
    assert start["optim.lr"].number_value == 0.5
    assert start["optim.betas"].string_value == "[0.9, 0.95]"
    assert "optim" not in start
    ends = [v.tag for v in summaries].count("_hparams_/session_end_info")
    assert ends == 1  # of two launches, one came to its end


def test_two_launches_within_a_second_write_two_files(tmp_path):
    pytest.importorskip("tensorboardX", reason="the track extra is not installed")
    for step in range(3):
        out = opened("tensorboard", tmp_path)
        out.log(step, {"loss": 1.0})
        out.close()
    assert len(list((tmp_path / "runs" / "r0" / "tensorboard").iterdir())) == 3


# Weights & Biases


@pytest.fixture(scope="module")
def biases(tmp_path_factory, environment):
    pytest.importorskip("wandb", reason="the track extra is not installed")
    workdir = tmp_path_factory.mktemp("biases")
    told = launch_twice("wandb", workdir)
    until = time.monotonic() + 60  # finish() may return before W&B's process has written
    while kinds(launches(workdir)[-1])[-1:] != ["exit"] and time.monotonic() < until:
        time.sleep(0.05)
    return workdir, told


def launches(workdir):
    return sorted(workdir.glob("wandb/offline-run-*-r0-*/run-r0.wandb"))


def kinds(path):
    return [record.WhichOneof("record_type") for record in transactions(path)]


def transactions(path):
    """The records of a .wandb file: after 7 bytes, LevelDB's log format, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        room = 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", raw, at) if room >= 7 else (0, 0, 0)
        if not kind:
            at += room
            continue
        if at + 7 + length > len(raw):
            return  # torn by the kill
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield Record.FromString(part)
            part = b""


def rows(path, keys=("_step", "train_loss", "loss")):
    out = []
    for record in transactions(path):
        items = {"".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if items:
            out.append({k: json.loads(items[k]) for k in keys if k in items})
    return out


def test_wandb_offline_files_hold_both_launches_of_one_run(biases):
    workdir, _ = biases
    first, second = launches(workdir)
    every = [{"_step": s, "train_loss": 8.0 - s} for s in range(8)]
    assert rows(second) == [*every[4:], {"_step": 8, "loss": 2.5}]
    killed = rows(first)  # the row of a step is open until the next one begins
    assert killed == every[: len(killed)]
    assert killed
    assert killed != every[1 : 1 + len(killed)]
    for path in (first, second):
        run = next(r.run for r in transactions(path) if r.HasField("run"))
        assert (run.run_id, run.display_name, run.project) == ("r0", "a run", "isoflop")
        assert run.resume
        told = {u.key: json.loads(u.value_json) for u in run.config.update}
        assert told["optim.lr"] == 0.5
        assert told["optim.betas"] == [0.9, 0.95]
        assert "optim" not in told


def test_wandb_ends_with_the_result_and_collects_nothing_else(biases):
    workdir, _ = biases
    first, second = launches(workdir)
    summary = {
        u.key: json.loads(u.value_json) for r in transactions(second) for u in r.summary.update
    }
    assert summary["versions.jax"] == "0.1"
    assert summary["loss"] == 2.5
    ends = [kinds(first), kinds(second)]
    assert ends[1][-1] == "exit"
    assert "exit" not in ends[0]
    left = {p.name for p in second.parent.rglob("*") if p.is_file()}
    assert {name for name in left if not name.startswith("debug")} == {"run-r0.wandb"}
    for kind in ("files", "stats", "environment", "output", "output_raw"):
        assert kind not in ends[0] + ends[1]


# MLflow


@pytest.fixture(scope="module")
def flow(tmp_path_factory, environment):
    pytest.importorskip("mlflow", reason="the track extra is not installed")
    workdir = tmp_path_factory.mktemp("flow")
    return workdir, launch_twice("mlflow", workdir)


def client(workdir):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workdir}/mlflow.db")


def history(workdir, run, key):
    return [(m.step, m.value) for m in client(workdir).get_metric_history(run.info.run_id, key)]


def only_run(workdir):
    found = client(workdir)
    experiment = found.get_experiment_by_name("isoflop")
    assert experiment.artifact_location == (workdir / "mlflow-artifacts").as_uri()
    (run,) = found.search_runs([experiment.experiment_id])
    return run


@pytest.mark.slow
@pytest.mark.slow
def test_mlflow_has_one_run_with_each_step_once(flow):
    workdir, _ = flow
    run = only_run(workdir)
    assert run.info.run_name == "a run"
    assert run.data.tags["isoflop.run"] == "r0"
    assert sorted(history(workdir, run, "train_loss")) == [(s, 8.0 - s) for s in range(8)]
    assert history(workdir, run, "loss") == [(8, 2.5)]
    assert run.data.params["optim.lr"] == "0.5"
    assert run.data.params["log.every"] == "1"
    assert "optim" not in run.data.params


@pytest.mark.slow
@pytest.mark.slow
def test_mlflow_ends_with_the_result(flow):
    run = only_run(flow[0])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["result.devices"] == 8
    assert run.data.tags["result.versions.jax"] == "0.1"
    assert "result.status" not in run.data.metrics


@pytest.mark.slow
def test_mlflow_continues_with_another_cadence_and_repeats_nothing(flow):
    """Last of the tests of this store: it adds to it."""
    workdir, _ = flow
    out = trackers.open_trackers(
        ["mlflow"], "r0", "a run", {**CONFIG, "log": {"every": 2}}, workdir, workdir
    )
    tracker = out.trackers["mlflow"]
    assert only_run(workdir).info.status == "RUNNING"
    out.log(7, {"train_loss": 1.0})
    tracker._send()
    before = history(workdir, only_run(workdir), "train_loss")
    tracker.last = {}  # a tracker that forgot what is there already
    out.log(7, {"train_loss": 1.0})
    out.close(None)
    assert len(before) == 8
    assert len(history(workdir, only_run(workdir), "train_loss")) == 9
    assert only_run(workdir).info.status == "KILLED"
    assert only_run(workdir).data.params["log.every"] == "1"


@pytest.mark.slow
def test_the_database_of_mlflow_stays_in_a_workdir_whose_name_a_uri_would_split(
    tmp_path, environment, monkeypatch, flow
):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    workdir = tmp_path / "below" / "sweep?lr=1#2%41"
    workdir.mkdir(parents=True)
    (workdir / "mlflow.db").write_bytes((flow[0] / "mlflow.db").read_bytes())
    for launch in range(2):
        out = trackers.open_trackers(["mlflow"], f"new{launch}", "new", CONFIG, workdir, workdir)
        out.close(RESULT)
    assert [path.name for path in workdir.parent.iterdir()] == [workdir.name]
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db")) as database:
        found = sorted(name for (name,) in database.execute("select name from runs"))
    assert found == ["a run", "new", "new"]


@pytest.mark.slow
def test_mlflow_writes_where_it_is_told(tmp_path, environment, monkeypatch, flow):
    """A copy of the store, since a new one takes seconds to make."""
    (tmp_path / "told.db").write_bytes((flow[0] / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/told.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "isoflop")
    out = trackers.open_trackers(["mlflow"], "r1", "another", CONFIG, tmp_path, tmp_path)
    out.close(RESULT)
    assert not (tmp_path / "mlflow.db").exists()
    from mlflow import MlflowClient

    found = MlflowClient(f"sqlite:///{tmp_path}/told.db")
    assert {r.info.run_name for r in found.search_runs(["1"])} == {"a run", "another"}
    assert only_run(flow[0]).info.run_name == "a run"


# All of them


@pytest.mark.parametrize(
    "fixture", ["board", "biases", pytest.param("flow", marks=pytest.mark.slow)]
)
def test_nothing_is_written_to_home_and_nobody_is_called(fixture, request):
    asked, left = request.getfixturevalue(fixture)[1]
    assert stays_at_home(asked, left)
    assert "planted.invalid" in asked  # the watch sees
    assert not stays_at_home([*asked, "api.example.org"], left)
    assert not stays_at_home(asked, [".config/x"])


class Kept:
    def __init__(self):
        self.seen = []

    def log(self, step, metrics):
        self.seen.append(step)

    def close(self, result):
        self.seen.append(result)


class Fails(Kept):
    def log(self, step, metrics):
        super().log(step, metrics)
        if step == 1:
            raise ConnectionError("gone")


@pytest.mark.parametrize(("kind", "seen"), [(Fails, [0, 1]), (Kept, [0, 1, 2, RESULT])])
def test_a_tracker_that_fails_is_dropped_with_one_warning(kind, seen, caplog):
    first, other = kind(), Kept()
    out = trackers.Trackers({"first": first, "other": other})
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            out.log(step, {"loss": 1.0})
        out.close(RESULT)
    assert first.seen == seen
    assert other.seen == [0, 1, 2, RESULT]
    assert [r.getMessage().startswith("first ") for r in caplog.records] == [True] * (kind is Fails)


def test_a_tracker_that_cannot_be_opened_is_dropped(tmp_path, caplog):
    pytest.importorskip("tensorboardX", reason="the track extra is not installed")
    folder = tmp_path / "runs" / "r0"
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("in the way")
    out = opened("tensorboard", tmp_path)
    out.log(0, {"loss": 1.0})
    assert not out.trackers
    assert "tensorboard" in caplog.text
    (folder / "tensorboard").unlink()
    out = opened("tensorboard", tmp_path)
    assert list(out.trackers) == ["tensorboard"]
    out.close()


def test_a_package_that_is_missing_is_reported_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "isoflop_no_such_package")
    monkeypatch.setitem(trackers.PACKAGES, "mlflow", "json")
    with pytest.raises(BadInput, match=r"wandb needs .*pip install -e '.*\[track\]'"):
        opened("wandb", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    trackers.check_trackers(["mlflow"])
    with pytest.raises(BadInput) as error:
        trackers.check_trackers(["mlflow", "wandb", "wnadb"])
    assert len(error.value.problems) == 2


def test_check_imports_no_package():
    code = (
        "import sys; from research.runs import trackers\n"
        "try: trackers.check_trackers(list(trackers.TRACKERS))\nexcept trackers.BadInput: pass\n"
        "heavy = {*trackers.PACKAGES.values(), 'jax'}\n"
        "assert not heavy & set(sys.modules)\n"
        "import json; sys.modules['wandb'] = json; assert heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_schema_offers_these_trackers():
    assert (
        set(schema.SECTIONS["log.trackers"].choices)
        == set(trackers.TRACKERS)
        == set(trackers.PACKAGES)
    )
