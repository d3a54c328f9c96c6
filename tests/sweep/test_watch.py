"""The view of a sweep says what its files say, and no more than the end of them is read."""

import contextlib
import io
import json
import os
import re

import pytest
from rich.console import Console

from research.errors import BadInput
from research.runs import lease, metrics_log
from research.runs.directory import RunDirectory
from research.sweep import watch
from research.sweep.sweep_file import SweepFile, SweepPoint

FACTS = {"params": 1000, "tokens": 4000, "flops": 8e6, "steps": 40, "seed": 0, "lr": 0.1}
FACTS["context"] = 32
RUNS = ("done", "running", "failed", "diverged", "stopped", "killed", "waiting")


def write_sweep(workdir, *runs):
    points = tuple(SweepPoint(run, {}, {}, FACTS) for run in runs)
    return SweepFile(points).write(workdir)


def lines(run, steps, seconds_per_step=0.5, first=0):
    run.append(resume=first)
    for step in range(first, steps):
        seconds = 10 + seconds_per_step * step
        run.append(step=step, tokens=100 * step, train_loss=5.0 - step / 100, seconds=seconds)


@pytest.fixture
def sweep(tmp_path):
    """One run of each status, held by this process where it runs."""
    write_sweep(tmp_path, *RUNS)
    held = RunDirectory(tmp_path, "running")
    for name in RUNS[:-1]:
        run = held if name == "running" else RunDirectory(tmp_path, name)
        run.__enter__()
        run.write_once("launch.json", {"facts": FACTS})
        lines(run, 20)
        if name == "done":
            run.write_result({"status": "done", "reason": "", "loss": 2.5})
        if name == "diverged":
            run.write_result({"status": "diverged", "reason": "loss inf"})
        if name == "failed":
            run.record_failure("RuntimeError: no")
        if name != "running":
            run.__exit__()
    path = tmp_path / "runs" / "killed" / "lease" / "1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"released": False, "born": "1"}))
    yield tmp_path
    held.__exit__()


def view(workdir):
    return watch.StatusDisplay(workdir, *workdir.glob("sweeps/*.json"))


def test_every_run_stands_where_its_files_say(sweep):
    rows = {row.run: row for row in view(sweep).monitor.rows()}
    status = {run: row.status for run, row in rows.items()}
    assert status == {run: run for run in RUNS} | {"killed": "stopped"}
    running = rows["running"]
    assert (running.step, running.loss) == (19, 4.81)
    assert running.rate == pytest.approx(100 / 0.5)
    assert running.seconds_left == pytest.approx(21 * 0.5)
    assert str(os.getpid()) in running.where
    assert rows["failed"].where == "RuntimeError: no"
    assert rows["killed"].where == "its process died, 1 times in a row"
    assert rows["done"].loss == 2.5


def test_sums_count_what_is_spent_and_what_is_to_come(sweep):
    found = watch.total(view(sweep).monitor.rows())
    assert found.counts == dict.fromkeys(
        ("running", "failed", "diverged", "waiting", "done"), 1
    ) | {"stopped": 2}
    part = 8e6 * 19 / 40
    assert found.spent == pytest.approx(8e6 + 5 * part)
    assert found.remaining == pytest.approx(4 * 8e6 - 3 * part)
    assert found.seconds_left == pytest.approx(found.remaining / (8e6 / 4000 * 200))


def test_a_rate_is_that_of_this_launch_and_not_of_its_compiling(tmp_path):
    with RunDirectory(tmp_path, "r") as run:
        lines(run, 10, seconds_per_step=100.0)
        run.append(resume=5)
        for step, seconds in [(5, 50.0), (6, 50.001), (7, 51.0), (8, 52.0)]:
            run.append(step=step, tokens=100 * step, train_loss=1.0, seconds=seconds)
    assert watch._rate(metrics_log.read_tail(run.path)) == pytest.approx(200 / 1.999)
    assert watch._rate([]) == 0


def test_only_the_end_of_the_metrics_is_read(tmp_path):
    with RunDirectory(tmp_path, "r") as run:
        lines(run, 2000)
    whole = metrics_log.read_records(run.path)
    tail = metrics_log.read_tail(run.path, 4000)
    assert tail == whole[-len(tail) :]
    assert 10 < len(tail) < 100
    assert metrics_log.read_tail(run.path, 10**9) == whole
    assert metrics_log.read_tail(tmp_path / "none") == []


def test_plain_lines_report_what_ended_and_the_progress_of_the_rest(sweep, capsys, monkeypatch):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(watch, "LINE_SECONDS", 0.0)
    shown = view(sweep)
    shown.show()
    out = capsys.readouterr().out
    assert "1 running, 1 failed, 1 diverged, 2 stopped, 1 waiting, 1 done; " in out
    assert "running step 19/40 loss 4.810 200 tokens/s" in out
    with RunDirectory(sweep, "stopped") as run:
        run.write_result({"status": "done", "reason": "", "loss": 1.5})
    shown.show()
    assert "run stopped: done loss 1.5000" in capsys.readouterr().out
    shown.show()
    assert capsys.readouterr().out == ""  # what did not change is not said again


def test_the_table_shows_those_at_work_first_and_counts_the_rest(sweep):
    console = Console(file=io.StringIO(), width=140, height=8)
    console.print(watch.status_table(view(sweep).monitor.rows(), 8, console.width))
    out = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in out[1:5]] == ["running", "failed", "diverged", "stopped"]
    assert out[-1].endswith("3 more runs")
    assert len(out) <= 8


FULL = {
    "run": "5de659b1ddfe",
    "facts": {**FACTS, "params": 143_304, "steps": 22_770, "tokens": 1_165_824, "flops": 1.2e12},
    "settings": {"model.heads": "4", "optim.schedule.name": "inverse_square_root"},
}


LONG_REASON = "RuntimeError: RESOURCE_EXHAUSTED: out of memory while trying to allocate"


def shown_at(width, why=LONG_REASON, **other):
    full = {**FULL, "facts": {**FULL["facts"], **other}}
    rows = [
        watch.RunStatus(status="running", step=12_000, loss=1.573, rate=45_210.0, **FULL),
        watch.RunStatus(status="failed", step=12_000, loss=1.573, where=why, **full),
    ]
    drawn = io.StringIO()
    console = Console(file=drawn, width=width, color_system=None)
    console.print(watch.status_table(rows, 40, width))
    head, *lines = drawn.getvalue().splitlines()
    return [*filter(None, map(str.strip, head.split("  ")))], lines


def test_a_table_fits_80_columns_with_every_column_whole_or_left_out():
    kept = {}
    for width in (60, 80, 100, 140, 200):
        kept[width], lines = shown_at(width)
        assert all(len(line) <= width for line in lines)
        for words in ("5de659b1ddfe", "143,304", "12,000/22,770", "1.5730", "running", "failed"):
            assert any(words in line for line in lines), (width, words)
        cut = [line for line in lines if "…" in line]  # why a run failed, alone
        assert all("failed" in line and line.rstrip().endswith("…") for line in cut)
    assert kept[60] == ["run", "params", "status", "step", "loss", "left"]
    assert kept[80] == [*kept[60], watch.WHY]
    assert set(kept[100]) == {*kept[80], "model.heads"}
    assert set(kept[200]) >= {*kept[100], "tokens/s", "optim.schedule.name"}
    # Without a reason to show there is room for more.
    assert set(shown_at(80, why="")[0]) == {*kept[60], "model.heads"}


def test_budgets_seeds_and_rates_are_shown_where_they_tell_runs_apart():
    assert not {"FLOPs", "seed", "lr"} & {*shown_at(200)[0]}
    for name, column in (("flops", "FLOPs"), ("seed", "seed"), ("lr", "lr")):
        assert column in shown_at(200, **{name: 3e11})[0]
    head, lines = shown_at(80, why="", flops=3e11)  # the same size at two budgets
    assert "FLOPs" in head
    assert "1.2e12" in lines[0]
    assert "3e11" in lines[1]


def test_the_end_is_guessed_also_while_the_first_dispatch_compiles():
    done = watch.RunStatus(status="done", rate=1000.0, **FULL)
    begun = watch.RunStatus(status="running", **FULL)
    assert watch.total([done, begun]).seconds_left == pytest.approx(1_165_824 / 1000)
    assert watch.total([begun]).seconds_left is None
    running = watch.RunStatus(status="running", rate=500.0, **FULL)
    assert watch.total([done, running]).seconds_left == pytest.approx(1_165_824 / 500)
    assert re.search(r"19 min left, until (\d{4}-\d\d-\d\d )?\d\d:\d\d$",
                     watch._format_totals(watch.total([done, begun])))  # fmt: skip
    assert watch._format_totals(watch.total([begun])).endswith("? left")


def test_a_sweep_that_is_being_planned_is_awaited(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "PLANNED", 0.02)
    with pytest.raises(BadInput, match="no sweep was launched there"):
        watch.follow(str(tmp_path))

    def planned(seconds):
        write_sweep(tmp_path, "r")
        with RunDirectory(tmp_path, "r") as run:
            run.write_result({"status": "done", "reason": "", "loss": 1.5})

    monkeypatch.setattr(watch.time, "sleep", planned)
    assert watch.follow(str(tmp_path)) == 0
    assert "waiting 0 s for one that is being planned" in capsys.readouterr().out


def test_watching_ends_when_nothing_is_left(tmp_path, capsys):
    write_sweep(tmp_path, "r")
    with RunDirectory(tmp_path, "r") as run:
        run.write_result({"status": "done", "reason": "", "loss": 1.5})
    assert watch.follow(str(tmp_path)) == 0
    assert "1 done; 8e6 FLOPs spent, 0 to go, 0 s left" in capsys.readouterr().out


@pytest.mark.parametrize("held", [False, True])
def test_a_sweep_that_nobody_trains_says_how_it_goes_on(held, tmp_path, capsys, monkeypatch):
    write_sweep(tmp_path, "r")
    run = RunDirectory(tmp_path, "r")
    if held:
        run.__enter__()

    def ended(seconds):
        with run if not held else contextlib.nullcontext(run) as at:
            at.write_result({"status": "done", "reason": "", "loss": 1.5})

    monkeypatch.setattr(watch.time, "sleep", ended)
    assert watch.follow(str(tmp_path)) == 0
    assert ("no run is being trained now" in capsys.readouterr().out) == (not held)
    if held:
        run.__exit__()


def test_a_holder_elsewhere_runs_while_it_beats(sweep, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lease, "clock", lambda: now[0])
    path = sweep / "runs" / "stopped" / "lease" / "1.json"
    content = json.loads(path.read_text()) | {"host": "elsewhere", "released": False}
    path.write_text(json.dumps(content))
    monitor = view(sweep).monitor

    def status():
        return next(row.status for row in monitor.rows() if row.run == "stopped")

    assert status() == "running"
    now[0] += lease.TIMEOUT + 1
    assert status() == "stopped"


def test_a_run_of_a_ladder_is_shown_beside_its_forecast(tmp_path, monkeypatch):
    folder, steps = tmp_path / "verify", 400
    curve = {"share": [0.01, 1.0], "loss": [5.0, 1.0], "sd": [0.1, 0.1]}
    monkeypatch.setattr(watch.ladder, "read_forecasts", lambda at: {"above": curve, "on": curve})
    facts = FACTS | {"steps": steps}
    runs = {"above": 1.0, "on": 0.0, "other": 1.0}
    SweepFile(tuple(SweepPoint(run, {}, {}, facts) for run in runs)).write(folder)
    held = {name: RunDirectory(folder, name) for name in runs}
    for name, more in runs.items():
        held[name].__enter__()
        for step in range(steps // 2):
            loss = 5.0 - step / 100 + more + 0.001 * (-1) ** step
            held[name].append(step=step, tokens=step, train_loss=loss, seconds=step)
    rows = {row.run: row for row in view(folder).monitor.rows()}
    assert rows["above"].track.startswith("off track at 50%: ")
    assert rows["above"].track.endswith(" sd above")
    assert rows["on"].track.startswith("on track at 50%: ")
    assert rows["other"].track == ""
    line = watch.format_line(list(rows.values()))
    assert f"tokens/s {rows['above'].track}" in line
    console = Console(file=io.StringIO(), width=220)
    console.print(watch.status_table(list(rows.values())))
    assert rows["above"].track in console.file.getvalue()
    for directory in held.values():
        directory.__exit__()


def test_settings_that_vary_are_columns(tmp_path):
    def shown(*norms):
        points = tuple(
            SweepPoint(f"r{i}", {}, {"model": {"norm": norm, "bias": True}}, FACTS)
            for i, norm in enumerate(norms)
        )
        path = SweepFile(points).write(tmp_path)
        console = Console(file=io.StringIO(), width=160)
        console.print(watch.status_table(watch.SweepMonitor(tmp_path, [path]).rows()))
        return console.file.getvalue()

    table = shown("rms", "[red]layer\x1b[31m")
    assert "model.norm" in table
    assert "[red]layer" in table
    assert "\x1b" not in table
    assert "model.bias" not in table
    assert "model.norm" not in shown("rms", "rms")
