"""Records: nothing acknowledged is lost, nothing damaged is believed."""

import csv
import json
import os
import random
import shutil

import pyarrow.parquet
import pytest

from research.errors import BadInput, Held, StorageError, UnsafeFile
from research.io import files
from research.report import build
from research.runs import metrics_log
from research.runs.directory import RunDirectory, write_data_card
from research.runs.table import read_row, read_table, write_table
from research.tables import table


def directory(path, run="r0"):
    return RunDirectory(path, run)


@pytest.fixture
def written(tmp_path):
    with directory(tmp_path) as run:
        for step in range(5):
            run.append(step=step, train_loss=1.0 / (step + 1))
    return run.path


def steps(path):
    return [r["step"] for r in metrics_log.read_records(path)]


def test_a_run_whose_directory_or_checkpoints_are_links_is_a_row(written, tmp_path):
    """A pool of runs of several workdirs, or checkpoints in cold storage: read, never written."""
    row = read_row(written)
    pool = tmp_path / "pool" / "runs"
    pool.mkdir(parents=True)
    (pool / written.name).symlink_to(written)
    (written / "checkpoints").symlink_to(tmp_path)
    assert read_row(pool / written.name) == read_row(written) == row
    with pytest.raises(UnsafeFile), directory(tmp_path / "pool"):
        pass


def test_what_replaces_a_lease_that_is_held_is_reported(tmp_path):
    with directory(tmp_path) as made:
        shutil.rmtree(made.path / "lease")
        (made.path / "lease").touch()
        with pytest.raises(StorageError, match="is not a directory"):
            made.check_lease()
    assert made._lock is None, "what was open is closed"


def test_a_held_run_is_rejected_before_anything_is_traced(tmp_path):
    directory = RunDirectory(tmp_path, "r0")
    directory.check_not_held()  # of a run that is not there yet
    with RunDirectory(tmp_path, "r0"), pytest.raises(Held, match=f"process {os.getpid()} "):
        directory.check_not_held()
    directory.check_not_held()  # its holder let go
    (tmp_path / "file").touch()
    RunDirectory(tmp_path / "file", "r0").check_not_held()  # who enters says what is wrong


def test_records_come_back(written):
    assert steps(written) == [0, 1, 2, 3, 4]
    assert metrics_log.read_records(written)[1] == {"step": 1, "train_loss": 0.5}


@pytest.mark.fault(
    "R13",
    "the last record is torn",
    "it alone is left out, and the next is not glued to it",
    "cut at every byte of the last record",
)
def test_a_line_torn_at_any_byte_is_left_out_and_what_follows_is_kept(written):
    path = written / "metrics.jsonl"
    whole = path.read_bytes()
    last = len(whole) - whole.rstrip(b"\n").rfind(b"\n") - 1
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        survivors = steps(written)
        assert survivors == ([0, 1, 2, 3, 4] if cut == 1 else [0, 1, 2, 3]), cut
        with directory(written.parents[1]) as run:
            run.append(step=9)
        assert steps(written) == [*survivors, 9], cut


def test_a_flipped_byte_is_seen(written):
    path = written / "metrics.jsonl"
    whole = bytearray(path.read_bytes())
    line = whole.split(b"\n")[2]
    start = whole.index(line)
    for offset in range(0, len(line), 3):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 0x04
        path.write_bytes(damaged)
        assert 2 not in steps(written), offset
        assert {0, 4} <= set(steps(written)), offset


def test_what_a_later_launch_did_again_replaces_what_it_redid(written):
    with directory(written.parents[1]) as run:
        run.append(resume=2)
        run.append(step=2, train_loss=7.0)
    metrics = metrics_log.read_records(written)
    assert [r["step"] for r in metrics] == [0, 1, 2]
    assert metrics[2]["train_loss"] == 7.0


def test_one_process_holds_a_run_at_a_time(tmp_path):
    with directory(tmp_path):
        with pytest.raises(StorageError, match="another process"), directory(tmp_path):
            pass
        with directory(tmp_path, "other"):
            pass
    with directory(tmp_path):
        pass


def test_once_keeps_what_is_there(tmp_path):
    with directory(tmp_path) as run:
        assert run.write_once("config.json", {"a": 1}) == {"a": 1}
        assert run.write_once("config.json", {"a": 2}) == {"a": 1}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    files.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["f.json"]


def test_nan_is_rejected_rather_than_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "f.json", {"a": float("nan")})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\xff"])
def test_json_that_is_not_an_object_is_bad_input(tmp_path, content):
    path = tmp_path / "f.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=r"f\.json"):
        files.read_json(path)


@pytest.fixture
def sweep(tmp_path):
    for run, params in (("a", 10), ("b", 20), ("c", 30), ("d", 40), ("e", 50)):
        with directory(tmp_path, run) as made:
            made.write_once("config.json", {})
            made.write_once("launch.json", {"facts": {"params": params, "name": "=cmd"}})
            if run == "a":
                made.write_result({"status": "done", "reason": "", "params": params, "loss": 2.0})
            if run == "b":
                made.write_result({"status": "diverged", "reason": "loss nan", "params": params})
            if run in "cd":
                made.record_failure("first")
                made.record_failure("RuntimeError: second")
            if run == "d":
                made.write_result({"status": "done", "reason": "", "params": params, "loss": 1.0})
    (tmp_path / "runs" / "no run").mkdir()
    return tmp_path


def test_every_run_is_a_row_with_its_status(sweep):
    rows = {row["run"]: row for row in read_table(sweep)}
    status = {run: row["status"] for run, row in rows.items()}
    assert status == {"a": "done", "b": "diverged", "c": "failed", "d": "done", "e": "unfinished"}
    assert rows["c"]["reason"] == "RuntimeError: second"
    assert [row["params"] for row in read_table(sweep)] == [10, 20, 30, 40, 50]


def test_parquet_and_csv_hold_the_same_table(sweep):
    parquet, text = write_table(sweep)
    rows = pyarrow.parquet.read_table(parquet).to_pylist()
    with open(text, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 5
    assert list(rows[0]) == list(lines[0])
    assert [r["status"] for r in rows] == [r["status"] for r in lines]
    assert lines[0]["name"] == "'=cmd"


def test_no_sweep_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="expected the workdir of a sweep"):
        read_table(tmp_path)


def test_a_folder_beside_a_workdir_is_told_from_it(tmp_path):
    workdir = tmp_path / "mine" / "demo"
    with RunDirectory(workdir, "a") as run:
        run.write_once("config.json", {})
    (tmp_path / "mine" / "runs").mkdir()
    (tmp_path / "file").touch()
    meant = f"; did you mean --runs={workdir}, the workdir of runs?"
    for place in (workdir / "runs", workdir / "runs" / "a"):
        with pytest.raises(BadInput) as refused:
            read_table(place)
        assert str(refused.value).endswith(meant)
    for read in (table.read_runs, build.write_report):  # a folder "runs" of it holds no run
        with pytest.raises(BadInput) as refused:
            read(tmp_path / "mine")
        assert meant in str(refused.value)
    with RunDirectory(tmp_path / "mine" / "more", "b") as run:
        run.write_once("config.json", {})
    with pytest.raises(BadInput, match=r"mine/demo or --runs=.*mine/more, the workdir of runs"):
        table.read_runs(tmp_path / "mine")
    with pytest.raises(BadInput, match="file: is a file; expected the workdir of a sweep"):
        read_table(tmp_path / "file")
    (workdir / "runs" / "a" / "config.json").unlink()
    with pytest.raises(BadInput, match="expected the workdir of a sweep"):
        read_table(workdir / "runs")


def test_a_card_is_written_once(tmp_path):
    calls = []
    for _ in range(2):
        write_data_card(tmp_path, "0123456789abcdef", lambda: calls.append(1) or {"a": 1})
    assert len(calls) == 1
    assert json.loads((tmp_path / "data" / "0123456789ab.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("seed", range(20))
def test_seconds_are_read_from_the_end_as_from_the_whole(seed, tmp_path):
    """However long the lines are, and whichever of the last are torn, altered or of a resume."""
    rng, lines, line = random.Random(seed), [], metrics_log.encode_record
    for step in range(rng.choice([0, 1, 3, 40, 3000])):
        padding = {"name": "x" * rng.choice([0, 10, 3000])} if rng.random() < 0.05 else {}
        lines.append(line({"step": step, "loss": 1.0, "seconds": float(step), **padding}))
    for _ in range(rng.choice([0, 1, 400])):
        lines.append(line({"resume": len(lines)}))
    if lines and seed % 2:
        lines[-1] = lines[-1][: rng.randrange(len(lines[-1]))]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    expected = max((r.get("seconds", 0.0) for r in metrics_log.read_records(tmp_path)), default=0.0)
    assert metrics_log.read_seconds(tmp_path) == expected


def test_a_launch_reads_no_more_than_the_end(tmp_path, monkeypatch):
    lines = (metrics_log.encode_record({"step": k, "seconds": float(k)}) for k in range(20_000))
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    read, real = [], metrics_log._record
    monkeypatch.setattr(metrics_log, "_record", lambda raw: read.append(raw) or real(raw))
    assert metrics_log.read_seconds(tmp_path) == 19_999.0
    assert len(read) < 400
    assert len(metrics_log.read_records(tmp_path)) == 20_000
    assert len(read) > 20_000, "the twin: the whole"
