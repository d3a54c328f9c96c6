"""The table of many runs: read once, kept, not trusted when stale; the command that shows it."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest

from research.errors import BadInput
from research.io import files
from research.report import run_table
from research.runs.table import WORTH_CACHING, read_row, read_table
from tests.runs.test_records import directory

COUNT = WORTH_CACHING


@pytest.fixture
def many(tmp_path):
    for i in range(COUNT):
        with directory(tmp_path, f"r{i:03}") as made:
            facts = {"params": 10 * i, "tokens": 100, "seed": 0, "name": "n"}
            files.write_json(made.path / "config.json", {})
            files.write_json(made.path / "launch.json", {"facts": facts})
            if i % 2:
                made.write_result(
                    {"status": "done", "reason": "", **facts, "loss": 5.0 - i / COUNT}
                )
    return tmp_path


@pytest.fixture
def read(monkeypatch):
    """The names of the runs whose rows are read anew."""
    names, original = [], read_row

    def row(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr("research.runs.table.read_row", row)
    return names


def test_a_second_look_reads_only_what_changed(many, read):
    first = read_table(many)
    assert len(read) == COUNT
    read.clear()
    assert read_table(many) == first
    assert read == []
    with directory(many, "r000") as made:
        made.write_result({"status": "done", "reason": "", "params": 0, "tokens": 100, "loss": 1.0})
    with directory(many, "r002") as made:
        made.record_failure("ValueError: no")
    with directory(many, "new") as made:
        made.write_once("config.json", {})
    again = {row["run"]: row for row in read_table(many)}
    assert sorted(read) == ["new", "r000", "r002"]
    assert [again[run]["status"] for run in ("r000", "r002", "new")] == [
        *("done", "failed", "unfinished")
    ]
    with directory(many, "r002") as made:
        made.record_failure("ValueError: again")
    reasons = {row["run"]: row["reason"] for row in read_table(many)}
    assert reasons["r002"] == "ValueError: again"


def test_a_result_of_the_same_length_is_seen_too(many, read):
    read_table(many)
    path = many / "runs" / "r001" / "result.json"
    text = path.read_text()
    files.write_atomic(path, text.replace('"seed": 0', '"seed": 7'))
    assert len(path.read_text()) == len(text)
    assert [row["seed"] for row in read_table(many) if row["run"] == "r001"] == [7]


def test_a_removed_run_leaves_the_table(many):
    read_table(many)
    shutil.rmtree(many / "runs" / "r003")
    assert len(read_table(many)) == COUNT - 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw.replace(b"done", b"gone", 1),
        lambda raw: b"isoflop rows 0 " + raw,
        lambda raw: b"\xff\n[]",
    ],
)
def test_a_damaged_cache_is_read_around_and_made_again(many, read, damage):
    first = read_table(many)
    path = many / ".table.cache"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    read.clear()
    assert read_table(many) == first
    assert len(read) == COUNT
    assert path.read_bytes() == whole


def test_few_runs_leave_no_cache_and_a_folder_that_cannot_be_written_is_read(many, monkeypatch):
    def refuse(path, content):
        raise files.StorageError("no")

    monkeypatch.setattr(files, "write_atomic", refuse)
    assert len(read_table(many)) == COUNT
    shutil.rmtree(many / "runs" / "r003")
    monkeypatch.undo()
    assert len(read_table(many)) == COUNT - 1
    assert not (many / ".table.cache").exists()


# What is shown.

ROWS = [
    {"run": "a", "params": 100, "loss": 2.5, "groups": {"head": 1}, "status": "done"},
    {"run": "b", "params": 2000, "loss": 1.5, "groups": {"head": 2}, "status": "done"},
    {"run": "=c", "params": 3000, "status": "failed", "reason": "it\nbroke"},
]


def test_rows_are_sorted_and_those_without_a_value_come_last():
    def runs(by):
        return [row["run"] for row in run_table.sort_rows(ROWS, by)]

    assert runs("loss") == ["b", "a", "=c"]
    assert runs("-loss") == ["a", "b", "=c"]
    assert runs("-params") == ["=c", "b", "a"]
    assert runs("status") == ["a", "b", "=c"]
    with pytest.raises(BadInput, match="--sort: no column 'los'; did you mean 'loss'"):
        run_table.sort_rows(ROWS, "los")


def test_columns_that_are_not_there_are_met_by_those_that_may_be_meant_and_the_list_is_said_once():
    rows = [{"run": "a", "model.width": 16, "loss/val": 2.0}]
    with pytest.raises(BadInput) as e:
        run_table.select_columns(rows, "width,val,zebra,run")
    assert list(e.value.problems) == [
        "--columns: no column 'width'; did you mean 'model.width'?",
        "--columns: no column 'val'; did you mean 'loss/val'?",
        "--columns: no column 'zebra'; there are loss/val, model.width, run",
    ]


def test_columns_are_chosen_by_name():
    assert run_table.select_columns(ROWS, None) == ["run", "status", "params", "loss", "reason"]
    assert run_table.select_columns(ROWS, "loss, run") == ["loss", "run"]
    assert set(run_table.select_columns(ROWS, "all")) == set(ROWS[0]) | {"reason"}
    with pytest.raises(BadInput) as error:
        run_table.select_columns(ROWS, "runn,loss,parms")
    assert len(error.value.problems) == 2


def test_every_format_holds_the_same_values():
    names = ["run", "params", "loss", "groups", "reason"]
    lines = run_table.as_text(ROWS, names).splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "100"], ["b", "2,000"]]
    assert lines[-1] == "3 runs"
    assert len(lines) == 5  # the line end in the reason ends no line
    rows = list(csv.DictReader(io.StringIO(run_table.as_csv(ROWS, names))))
    assert [row["loss"] for row in rows] == ["2.5", "1.5", ""]
    assert rows[2]["run"] == "'=c"
    assert rows[0]["groups"] == '{"head": 1}'
    rows = json.loads(run_table.as_json(ROWS, names))
    assert rows[1] == {k: ROWS[1][k] for k in names if k in ROWS[1]}


def table(*flags):
    line = [sys.executable, "-m", "experiments.table", *flags]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_filters_sorts_and_prints(many):
    flags = ("--where=params>100, loss<4.9", "--sort=-loss", "--columns=run,loss", "--format=csv")
    done = table(f"--runs={many}", *flags)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == sum(i % 2 and i > 10 and 5 - i / COUNT < 4.9 for i in range(COUNT))
    assert table(f"--runs={many}", "--where=status==unfinished").stdout.count("unfinished") == 32
    assert "0 runs" in table(f"--runs={many}", "--where=params>1e9").stdout


def test_what_was_not_plain_about_a_file_is_said_beside_its_table(tmp_path, capsys):
    from experiments import table as command

    (tmp_path / "t.csv").write_text("params,loss,loss\n1e6,3.0,2.9\n2e6,2.8,2.7\n")
    assert command.main([f"--runs={tmp_path / 't.csv'}", "--columns=all"]) == 0
    out, err = capsys.readouterr()
    assert "2 columns are named 'loss': they are loss.1 and loss.2 here" in err
    assert "loss.2" in out
    with pytest.raises(BadInput, match="isoflop fit reads a table in a file"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--runs={}/none"], "no such file or folder"),
        (["--runs={}"], "expected the workdir of a sweep"),
        (["--runs={}/empty"], "the table has no rows"),
    ],
)
def test_a_workdir_without_runs_is_reported(flags, words, tmp_path):
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    done = table(*(flag.format(tmp_path) for flag in flags))
    assert done.returncode == 2
    assert words in done.stderr


def test_the_filter_is_parsed_and_not_run(many):
    done = table(f"--runs={many}", "--where=__import__('os').getcwd()")
    assert done.returncode == 2
    assert "expected comparisons" in done.stderr
