"""Sweeps on a real Ray and on a real Slurm of one node."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import (
    kill_lease_holder,
    launch_counts,
    runs_with_checkpoint,
    start,
    sweep_file,
    wait_for,
    wait_for_output,
)

from research.io import files
from research.runs import lease, metrics_log
from research.runs.table import read_table

pytestmark = pytest.mark.slow


def all_done(workdir, killed, runs=4, processes=None):
    """Every run is done, and begun once; the one whose worker was killed, twice."""
    assert [r["status"] for r in read_table(workdir)] == ["done"] * runs
    for path in workdir.glob("runs/*/launch.json"):
        assert files.read_json(path).get("processes") == processes
    begun = launch_counts(workdir)
    assert begun.pop(killed) == 2
    assert set(begun.values()) == {1}


def stopped(workdir):
    """Every run that was begun is saved where it was stopped, and let go."""
    begun = [path.parent for path in workdir.glob("runs/*/metrics.jsonl")]
    assert begun
    for run in begun:
        assert lease.read_holder(run / "lease").content["released"]
        step = metrics_log.read_tail(run)[-1]["step"]
        assert (run / "checkpoints" / str(step + 1)).is_dir()


@pytest.fixture
def ray(monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written below the home
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def test_ray_trains_a_sweep_although_a_worker_is_killed(ray, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=300.0, widths=(16,), seeds=4)
    process = start(config, tmp_path / "w", "--executor=ray", "--workers=2")
    try:
        killed = kill_lease_holder(tmp_path / "w", process)
    finally:
        code, out = wait_for_output(process)
    assert code == 0, out
    all_done(tmp_path / "w", killed)


@pytest.mark.fault(
    "R28",
    "the launcher of Ray's workers is killed",
    "they save and end; the next launch continues from there",
    "SIGKILL of the launcher once a checkpoint is there",
)
def test_ray_workers_save_when_their_launcher_is_killed(ray, corpus, tmp_path, seen):
    config = sweep_file(tmp_path / "s.py", corpus, steps=20_000.0, widths=(16,), seeds=1)
    process = start(config, tmp_path / "w", "--executor=ray", "--workers=1")
    wait_for(lambda: runs_with_checkpoint(tmp_path / "w", 10), process)
    (run,) = (tmp_path / "w" / "runs").iterdir()
    holder = lease.read_holder(run / "lease")
    process.kill()
    wait_for_output(process)
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{holder.content['pid']}"):
        assert time.monotonic() < end
        time.sleep(0.1)
    stopped(tmp_path / "w")
    seen(1, "saved where it was stopped, and let go")


def test_ray_trains_runs_of_two_processes_although_one_is_killed(ray, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=200.0, widths=(16,), seeds=2)
    process = start(config, tmp_path / "w", "--executor=ray", "--num_processes=2")
    try:
        killed = kill_lease_holder(tmp_path / "w", process)
    finally:
        code, out = wait_for_output(process)
    assert code == 0, out
    all_done(tmp_path / "w", killed, runs=2, processes=2)


def test_a_ray_without_room_for_all_processes_is_bad_input(ray, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, widths=(16,), seeds=1)
    code, out = wait_for_output(
        start(config, tmp_path / "w", "--executor=ray", "--num_processes=99")
    )
    assert code == 2, out
    assert "--num_processes: 99, but the cluster has room for" in out


def test_ray_is_stopped_by_ctrl_c_and_everything_is_saved(ray, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=1e6, widths=(16,), seeds=2)
    process = start(config, tmp_path / "w", "--executor=ray", "--workers=2")
    wait_for(lambda: len(runs_with_checkpoint(tmp_path / "w", 10)) == 2, process)
    process.send_signal(signal.SIGINT)
    assert wait_for_output(process)[0] == 130
    stopped(tmp_path / "w")


NODES = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from research.launch import EXECUTORS, Job

root = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
command = [sys.executable, "-c", sys.argv[2], str(root)]

def show():
    if second.all_processes and len(list(root.glob("begun-*"))) == 2 and not (root / "go").exists():
        cluster.remove_node(second)
        (root / "go").touch()

job = Job(command, 2, root / "logs", lambda: 0, show, lambda: False, lambda: 0)
print(EXECUTORS["ray"](job, address=cluster.address))
"""
WAITS = """
import os, sys, time
from pathlib import Path
root = Path(sys.argv[1])
(root / f"begun-{os.getpid()}").touch()
while not (root / "go").exists():
    time.sleep(0.1)
"""


def test_ray_starts_a_worker_again_elsewhere_when_its_node_is_lost(ray, tmp_path):
    argv = [sys.executable, "-c", NODES, str(tmp_path), WAITS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["[0, 0]"], done.stdout + done.stderr
    assert len(list(tmp_path.glob("begun-*"))) == 3


SLURM = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of this machine alone, on the loopback, that ends with the tests."""
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    if missing := [n for n in ("slurmctld", "slurmd", "munged") if not shutil.which(n)]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.getuid() or not Path("/etc/munge/munge.key").exists():
        pytest.skip("a Slurm is started by root, with the key of munge")
    folder, host = tmp_path_factory.mktemp("slurm"), os.uname().nodename
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(SLURM.format(host=host, folder=folder))
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    commands = [
        ["runuser", "-u", "munge", "--", "munged", "--foreground"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    if Path("/run/munge/munge.socket.2").exists():  # one that runs already
        del commands[0]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for command in commands:
            log = stack.enter_context(open(folder / f"{command[0]}.out", "w"))
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
            time.sleep(1)

        def idle():
            found = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            return found.stdout.strip() == "idle"

        wait_for(idle, None, seconds=60)
        yield


OPTIONS = "--executor_options=partition=debug,timeout=20,memory=0.5"


def test_slurm_trains_a_sweep_although_a_worker_is_killed(slurm, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=300.0, widths=(16,), seeds=4)
    process = start(config, tmp_path / "w", "--executor=slurm", "--workers=2", OPTIONS)
    try:
        killed = kill_lease_holder(tmp_path / "w", process)
    finally:
        code, out = wait_for_output(process)
    assert code == 0, out
    all_done(tmp_path / "w", killed)


def test_slurm_is_stopped_by_ctrl_c_and_everything_is_saved(slurm, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=1e6, widths=(16,), seeds=2)
    process = start(config, tmp_path / "w", "--executor=slurm", "--workers=2", OPTIONS)
    wait_for(lambda: len(runs_with_checkpoint(tmp_path / "w", 10)) == 2, process)
    process.send_signal(signal.SIGINT)
    assert wait_for_output(process)[0] == 130
    stopped(tmp_path / "w")


def test_slurm_trains_runs_of_two_processes_although_one_is_killed(slurm, corpus, tmp_path):
    """Two tasks of one step find each other by what Slurm tells them."""
    config = sweep_file(tmp_path / "s.py", corpus, steps=200.0, widths=(16,), seeds=2)
    process = start(config, tmp_path / "w", "--executor=slurm", "--num_processes=2", OPTIONS)
    try:
        killed = kill_lease_holder(tmp_path / "w", process)
    finally:
        code, out = wait_for_output(process)
    assert code == 0, out
    all_done(tmp_path / "w", killed, runs=2, processes=2)


def test_slurm_jobs_of_two_processes_are_stopped_and_saved(slurm, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=1e6, widths=(16,), seeds=1)
    process = start(config, tmp_path / "w", "--executor=slurm", "--num_processes=2", OPTIONS)
    wait_for(lambda: len(runs_with_checkpoint(tmp_path / "w", 10)) == 1, process)
    process.send_signal(signal.SIGINT)
    assert wait_for_output(process)[0] == 130
    stopped(tmp_path / "w")


def test_slurm_jobs_have_what_sbatch_was_asked_for(slurm, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, steps=1e6, widths=(16,), seeds=1)
    asked = "--sbatch=--comment=scaling --nice=50"
    process = start(config, tmp_path / "w", "--executor=slurm", "--workers=1", OPTIONS, asked)
    wait_for(lambda: runs_with_checkpoint(tmp_path / "w", 10), process)
    (job,) = jobs()
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    process.send_signal(signal.SIGINT)
    assert wait_for_output(process)[0] == 130
    for fact in ("Comment=scaling", "Nice=50"):
        assert fact in told.split()
    stopped(tmp_path / "w")


@pytest.mark.parametrize("executor", ["local", "ray", "slurm"])
def test_a_limit_of_time_is_kept_by_every_executor(request, executor, corpus, tmp_path):
    if executor != "local":
        request.getfixturevalue(executor)
    config = sweep_file(tmp_path / "s.py", corpus, steps=1e6, widths=(16,), seeds=2)
    options = [OPTIONS] if executor == "slurm" else []
    flags = [f"--executor={executor}", "--workers=2", "--max_minutes=1", *options]
    process = start(config, tmp_path / "w", *flags)
    code, out = wait_for_output(process)
    assert code == 75, out
    stopped(tmp_path / "w")


def jobs():
    return subprocess.run(
        ["squeue", "-h", "-o", "%i"], capture_output=True, text=True
    ).stdout.split()


def test_slurm_jobs_queue_again_when_their_time_ends(slurm, corpus, tmp_path):
    """submitit's signal, as Slurm sends it before the limit: the worker saves, the job resumes."""
    config = sweep_file(tmp_path / "s.py", corpus, steps=400.0, widths=(16,), seeds=1)
    process = start(config, tmp_path / "w", "--executor=slurm", "--workers=1", OPTIONS)
    wait_for(lambda: runs_with_checkpoint(tmp_path / "w", 20), process)
    (job,) = jobs()
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    code, out = wait_for_output(process)
    assert code == 0, out
    assert list(launch_counts(tmp_path / "w").values()) == [2]


def test_a_partition_that_is_not_there_is_bad_input(slurm, corpus, tmp_path):
    config = sweep_file(tmp_path / "s.py", corpus, widths=(16,), seeds=1)
    options = "--executor_options=partition=none"
    code, out = wait_for_output(start(config, tmp_path / "w", "--executor=slurm", options))
    assert code == 2, out
    assert "the jobs were refused" in out
    assert "invalid partition" in out
