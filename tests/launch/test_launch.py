"""Executors: workers are started, watched, started again and stopped; sweeps survive all of it."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import (
    clean_environment,
    launch_counts,
    runs_with_checkpoint,
    start,
    sweep_file,
    wait_for,
    wait_for_output,
)

from research import launch
from research.errors import BadInput
from research.launch import local, slots
from research.runs import lease, metrics_log
from research.runs.table import read_row, read_table

# Executors alone, with commands that train nothing.


def job(tmp_path, *argv, workers=1, progress=lambda: 0, stop=lambda: False):
    shown = []
    made = launch.Job(argv, workers, tmp_path / "logs", progress, shown.append, stop, lambda: 0)
    return dataclasses.replace(made, show=lambda: None)


def python(text):
    return sys.executable, "-c", text


DIES = "import os, sys; print('begun', flush=True); os.kill(os.getpid(), 9)"


def begun(tmp_path, slot=0):
    lines = (tmp_path / "logs" / f"worker-{slot}.log").read_text().splitlines()
    return lines.count("begun")  # Python 3.13 shows the source of -c in a traceback


def test_exit_codes_are_those_of_the_workers(tmp_path):
    assert local.run(job(tmp_path, *python("raise SystemExit(74)"), workers=2)) == [74, 74]
    assert launch.EXECUTORS["inline"](job(tmp_path)) == [0]


def test_a_worker_that_dies_without_progress_is_started_again_three_times(tmp_path):
    assert local.run(job(tmp_path, *python(DIES))) == [-9]
    assert begun(tmp_path) == 1 + 3


HANGS = "print('begun', flush=True); raise SystemExit(77)"


@pytest.mark.fault(
    "R21",
    "a worker ends itself because it hung",
    "the launcher starts it again, three times without progress",
    "workers that do nothing but end with exit code 77",
)
def test_a_worker_that_hung_is_started_again(tmp_path):
    assert local.run(job(tmp_path, *python(HANGS))) == [77]
    assert begun(tmp_path) == 1 + 3


@pytest.mark.fault(
    "R12",
    "a worker dies again and again",
    "started again while there is progress, three times without",
    "workers that kill themselves",
)
def test_progress_gives_a_worker_that_dies_new_chances(tmp_path):
    count = itertools.count()
    made = job(tmp_path, *python(DIES), progress=lambda: min(next(count), 5))
    assert local.run(made) == [-9]
    assert begun(tmp_path) == 1 + 5 + 3


def test_a_worker_that_ends_in_error_is_not_started_again(tmp_path):
    assert local.run(job(tmp_path, *python("print('begun'); raise ValueError"))) == [1]
    assert begun(tmp_path) == 1


WAITS = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    raise SystemExit(75)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(60)
"""


def test_workers_are_told_to_stop_and_not_started_again(tmp_path):
    def stop():
        logs = list((tmp_path / "logs").glob("*"))
        return len(logs) == 2 and all("begun" in log.read_text() for log in logs)

    assert local.run(job(tmp_path, *python(WAITS), workers=2, stop=stop)) == [75, 75]
    assert begun(tmp_path, 0) == begun(tmp_path, 1) == 1


def test_whatever_ends_the_launcher_ends_its_workers(tmp_path):
    pids = []

    def show():
        log = tmp_path / "logs" / "worker-0.log"
        if log.read_text():
            pids.append(int(log.read_text()))
            raise KeyboardInterrupt

    made = job(tmp_path, *python("import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
    with pytest.raises(KeyboardInterrupt):
        local.run(dataclasses.replace(made, show=show))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_each_worker_has_its_own_cores_and_as_many_devices(tmp_path):
    text = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['JAX_NUM_CPU_DEVICES'])"
    before = os.sched_getaffinity(0)
    local.run(job(tmp_path, *python(text), workers=len(before)))
    said = [p.read_text() for p in sorted((tmp_path / "logs").iterdir())]
    assert sorted(said) == [f"[{core}] 1\n" for core in sorted(before)]
    assert os.sched_getaffinity(0) == before


def test_cores_and_gpus_are_shared_out_evenly():
    shares = slots.divide_machine(None, range(4), [])
    assert [s.cores for s in shares] == [(0,), (1,), (2,), (3,)]
    assert [s.cores for s in slots.divide_machine(2, range(5), [])] == [(0, 1), (2, 3)]
    assert [s.cores for s in slots.divide_machine(3, range(2), [])] == [(0,), (1,), (0,)]
    shares = slots.divide_machine(None, range(16), ["0", "1"])
    assert [s.environment() for s in shares] == [{"CUDA_VISIBLE_DEVICES": g} for g in "01"]
    (slot,) = slots.divide_machine(1, range(16), ["0", "1"])
    assert slot.environment() == {"CUDA_VISIBLE_DEVICES": "0,1"}
    with pytest.raises(BadInput, match="--workers: 3, but there are 2 GPUs"):
        slots.divide_machine(3, range(16), ["0", "1"])


def test_more_processes_than_the_memory_holds_are_rejected(monkeypatch):
    monkeypatch.setattr(slots.host, "memory", lambda: int(24e9))
    with pytest.raises(BadInput, match=r"--num_processes: 999 would take .* 299.7 GB .* for 80"):
        slots.divide_machine(999, range(2), [], "num_processes")
    with pytest.raises(BadInput, match=r"--workers: 40 would take .* 36.0 GB for 120 processes"):
        slots.divide_machine(40, range(2), [], processes=3)
    assert len(slots.divide_machine(40, range(2), [], processes=2)) == 40, "the twin"


def test_fewer_workers_than_cores_are_started_where_the_memory_holds_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(slots.host, "memory", lambda: int(0.7e9))
    monkeypatch.setattr(slots, "available_cores", lambda: [*os.sched_getaffinity(0)] * 8)
    asked = dataclasses.replace(job(tmp_path, *python("")), workers=None)
    assert local.run(asked) == [0, 0]
    monkeypatch.setattr(slots.host, "memory", lambda: int(0.1e9))
    assert local.run(asked) == [0], "one at least"


def test_gpus_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for value, gpus in {"": [], "-1": [], "0": ["0"], "1,GPU-ab": ["1", "GPU-ab"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert slots.available_gpus() == gpus
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert slots.available_gpus() == []


def test_options_are_read_by_the_parameters_of_the_executor():
    text = "partition=gpu,timeout=90,memory=1.5"
    read = launch.parse_options("slurm", text, 4)
    assert read == {"partition": "gpu", "timeout": 90, "memory": 1.5}
    assert launch.parse_options("local", "", None) == {}
    with pytest.raises(BadInput) as error:
        launch.parse_options("slurm", "partitoin=gpu,timeout=1h,cpus=-1,gpus", 0)
    known = "partition, timeout, cpus, gpus, memory, account, nodes, array_limit"
    assert error.value.problems == (
        "--workers: 0; expected at least 1",
        f"--executor_options: partitoin: no option of slurm; expected one of {known}",
        "--executor_options: timeout: '1h'; expected a whole number ≥ 0",
        "--executor_options: cpus: '-1'; expected a whole number ≥ 0",
        "--executor_options: 'gpus'; expected KEY=VALUE",
    )
    with pytest.raises(BadInput, match="no option of inline; expected none"):
        launch.parse_options("inline", "cpus=1", None)


def test_options_of_sbatch_are_handed_on_unless_they_are_ours():
    texts = ["--qos=high --constraint=a100|h100", "--exclusive", "--gres=gpu:a100:2"]
    read = launch.parse_options("slurm", "cpus=2", None, texts)["sbatch"]
    assert read == {
        "qos": "high",
        "constraint": "a100|h100",
        "exclusive": True,
        "gres": "gpu:a100:2",
    }
    wrong = ["--partition=gpu", "-q high", "--output=x", "--comment='two\nlines'", "--qos='"]
    with pytest.raises(BadInput) as error:
        launch.parse_options("slurm", "", None, wrong)
    assert error.value.problems == (
        "--sbatch: --partition is set by the launcher; give partition=NAME",
        "--sbatch: '-q'; expected --NAME=VALUE or --NAME, written out",
        "--sbatch: 'high'; expected --NAME=VALUE or --NAME, written out",
        "--sbatch: --output is set by the launcher",
        "--sbatch: --comment='two\\nlines'; expected a value without spaces",
        "--sbatch=--qos=': No closing quotation",
    )
    with pytest.raises(BadInput, match="--sbatch: needs --executor=slurm, not local"):
        launch.parse_options("local", "", None, ["--qos=high"])


SBATCH = "#!/bin/sh\nfor last; do :; done\ncp $last {folder}/seen\nexit 1\n"


def test_sbatch_gets_the_options(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (tmp_path / name).write_text(SBATCH.format(folder=tmp_path))
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    more = {"sbatch": {"qos": "high", "exclusive": True}, "array_limit": 3, "timeout": 7}
    with pytest.raises(BadInput, match="the jobs were refused"):
        launch.EXECUTORS["slurm"](job(tmp_path, *python(""), workers=5), **more)
    lines = (tmp_path / "seen").read_text().splitlines()
    for line in ("--qos=high", "--exclusive", "--array=0-4%3", "--time=7"):
        assert f"#SBATCH {line}" in lines


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_reported_with_its_extra(executor, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        BadInput, match=rf"needs the package {package}.*pip install .*\[{executor}\]"
    ):
        launch.EXECUTORS[executor](job(tmp_path, *python("")))


def test_slurm_without_its_commands_is_rejected(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="no command sbatch"):
        launch.EXECUTORS["slurm"](job(tmp_path, *python("")))


def test_inline_is_one_worker(tmp_path):
    with pytest.raises(BadInput, match="--workers: 2, but inline is one"):
        launch.EXECUTORS["inline"](job(tmp_path, workers=2))


# Real sweeps.


@pytest.mark.slow
def test_two_launches_at_once_share_a_sweep_and_train_each_run_once(corpus, tmp_path):
    """Three workers in all: two of one launch, and the other launch itself."""
    config, workdir = sweep_file(tmp_path / "s.py", corpus, widths=(16,), seeds=6), tmp_path / "w"
    both = start(config, workdir, "--executor=local", "--workers=2"), start(config, workdir)
    for process in both:
        code, out = wait_for_output(process)
        assert code == 0, out
    assert launch_counts(workdir) == dict.fromkeys(launch_counts(workdir), 1)
    assert [r["status"] for r in read_table(workdir)] == ["done"] * 6
    pids = {lease.read_holder(p / "lease").content["pid"] for p in workdir.glob("runs/*")}
    assert len(pids) > 1, "one of them did it all: nothing was shared"
    watched = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", f"--watch={workdir}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "6 done" in watched.stdout
    assert "0 to go" in watched.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "number", "code"),
    [("inline", "INT", 130), ("local", "TERM", 75)],
)
def test_a_launch_that_is_stopped_saves_and_can_be_resumed(
    executor, number, code, corpus, tmp_path
):
    workdir = tmp_path / "w"
    config = sweep_file(tmp_path / "s.py", corpus, steps=1e6, widths=(16,), seeds=2)
    process = start(config, workdir, f"--executor={executor}")
    running = 2 if executor == "local" else 1
    wait_for(lambda: len(runs_with_checkpoint(workdir, 10)) == running, process)
    process.send_signal(getattr(signal, f"SIG{number}"))
    assert wait_for_output(process)[0] == code
    begun = list(workdir.glob("runs/*/metrics.jsonl"))
    assert len(begun) == running
    for path in begun:
        run = path.parent
        last = lease.read_holder(run / "lease")
        assert last.content["released"]
        assert last.deaths == 0
        step = metrics_log.read_tail(run)[-1]["step"]
        assert (run / "checkpoints" / str(step + 1)).is_dir(), "not saved where it was stopped"
        assert read_row(run)["status"] == "unfinished"


@pytest.mark.slow
def test_a_worker_of_two_processes_is_started_again_when_one_of_them_is_killed(corpus, tmp_path):
    """One that follows, of which no lease speaks."""
    workdir = tmp_path / "w"
    config = sweep_file(tmp_path / "s.py", corpus, steps=200.0, widths=(16,), seeds=2)
    process = start(config, workdir, "--num_processes=2")
    wait_for(lambda: runs_with_checkpoint(workdir, 20), process)
    followers = [p for p in Path("/proc").glob("[0-9]*/cmdline") if is_follower(p, workdir)]
    os.kill(int(followers[0].parent.name), signal.SIGKILL)
    code, out = wait_for_output(process)
    assert code == 0, out
    assert sorted(launch_counts(workdir).values()) == [1, 2]
    assert [r["status"] for r in read_table(workdir)] == ["done"] * 2


def is_follower(cmdline, workdir):
    try:
        words = cmdline.read_text().split("\0")
    except OSError:
        return False
    return "--process_id=1" in words and f"--workdir={workdir.resolve()}" in words


@pytest.mark.slow
def test_a_diverged_run_is_a_row_and_the_exit_code_says_so(corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, widths=(16,), seeds=2)
    more = " + [{'optim.lr': 1e30, 'optim.clip': None}]\n"
    config.write_text(config.read_text().rstrip("\n") + more)
    code, out = wait_for_output(start(config, tmp_path / "w", "--executor=local", "--workers=1"))
    assert code == 1, out
    rows = [r["status"] for r in read_table(tmp_path / "w")]
    assert sorted(rows) == ["diverged", "done", "done"]
    assert "diverged: loss" in out


def test_workers_that_find_bad_input_tell_it_through_the_launcher(corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, widths=(16,), seeds=1)
    flags = ("--executor=local", "--workers=1", "--config.mesh.data=3")
    code, out = wait_for_output(start(config, tmp_path / "w", *flags))
    assert code == 2, out
    assert "error: point {'model.width': '16', 'seed': '0'}: mesh: data 3" in out
    assert "Traceback" not in out


@pytest.mark.fault(
    "R12",
    "workers and launchers of a sweep are killed",
    "every run done once, bit for bit as in an undisturbed sweep",
    "SIGKILL at random, chains and vmapped runs, 12 in all",
)
@pytest.mark.slow
def test_a_sweep_whose_workers_and_launchers_are_killed_ends_as_an_undisturbed_one():
    argv = [sys.executable, "-m", "tools.kill_drill", "--repeats=2"]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "worker" in done.stdout, "the test tested nothing"
