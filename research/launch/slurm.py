"""Workers as a job array of Slurm, through submitit.

submitit hands a Task to its job as a pickle, and takes the exit code back as one: the only pickles
in this project. They lie in a new folder for every launch, which only this user can write to, so
none is read that somebody else has laid there.
"""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from research.config import process_flags
from research.errors import BadInput
from research.launch import process_group
from research.launch.job import Job, Restarts, start

POLL = 2.0  # seconds between questions to the controller


class Task:
    """The command, run on a node, of several processes once for each. When the time is nearly over
    or the job is preempted, the worker saves and the job queues again.

    `gpus` are those of one process; if there are several on a node, each takes its own.
    """

    def __init__(
        self, command: Sequence[str], log: Path, changes: dict[str, str], cwd: str, gpus: int = 0
    ):
        self.start = (list(command), log, changes, cwd, gpus)
        self.child: subprocess.Popen | None = None

    def __call__(self) -> int:
        command, log, changes, cwd, gpus = self.start
        if gpus > 1:  # of one each jax sees to it
            local = int(os.environ.get("SLURM_LOCALID", "0"))
            mine = range(local * gpus, (local + 1) * gpus)
            changes = {**changes, "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine))}
        self.child = start(command, log, changes, cwd)
        # submitit lets SIGTERM pass; a worker saves on it, and its exit code says that it did.
        signal.signal(signal.SIGTERM, lambda *_: self.child and self.child.terminate())
        return self.child.wait()

    def checkpoint(self) -> Any:
        """Called by submitit before the job ends too early."""
        if self.child:
            self.child.terminate()
            # This is a signal handler, in the middle of the wait above, which holds a lock.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        return importlib.import_module("submitit.helpers").DelayedSubmission(Task(*self.start))


def run(
    job: Job,
    *,
    partition: str = "",
    timeout: int = 60,
    cpus: int = 1,
    gpus: int = 0,
    memory: float = 0.0,
    account: str = "",
    nodes: int = 1,
) -> list[int]:
    """Submit the workers as one array, submit again those that die, and return their exit codes.

    `timeout` is in minutes, `memory` in GB on each node (0: what the partition gives); `cpus` and
    `gpus` are those of one process, and the processes of a worker are divided over `nodes`. Without
    `job.workers` there is one. When stopped, jobs that wait are cancelled and those that run get
    SIGTERM. Raises BadInput if submitit or Slurm is missing, or Slurm refuses.
    """
    if nodes < 1 or job.processes % nodes:
        raise BadInput(
            f"--executor_options: nodes: {nodes}; expected a divisor of --num_processes = "
            f"{job.processes}"
        )
    executor, on_each = _executor(job.logs), job.processes // nodes
    wanted = {"slurm_partition": partition, "mem_gb": memory, "slurm_account": account}
    executor.update_parameters(
        name="isoflop",
        timeout_min=timeout,
        cpus_per_task=cpus,
        **({"nodes": nodes, "tasks_per_node": on_each} if job.processes > 1 else {}),
        **({"gpus_per_node": gpus * on_each} if gpus else {}),
        **{k: v for k, v in wanted.items() if v},
    )
    changes = {} if gpus else {"JAX_NUM_CPU_DEVICES": str(cpus)}
    several = job.processes > 1
    command = [*job.command, *([f"--coordinator_address={process_flags.AUTO}"] if several else [])]

    def submit(slots: Sequence[int]) -> dict[int, Any]:
        logs = {i: job.logs.resolve() / f"worker-{i}.log" for i in slots}
        own = gpus if several else 0
        tasks = [Task(command, logs[i], changes, os.getcwd(), own) for i in slots]
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except Exception as error:
            raise BadInput(f"--executor=slurm: the jobs were refused: {error}") from error
        return dict(zip(slots, jobs, strict=True))

    return _watched(job, submit, job.workers or 1)


def _watched(job: Job, submit: Any, workers: int) -> list[int]:
    restarts, codes = Restarts(job), [0] * workers
    jobs = submit(range(workers))
    told = False
    try:
        while jobs:
            if not told and job.stop():
                told = True
                for one in jobs.values():
                    _cancel("--state=PENDING", one.job_id)
                    _cancel("--signal=TERM", one.job_id)
            listed = _listed(jobs.values())
            ended = {i: one for i, one in jobs.items() if one.job_id not in listed}
            for i, one in ended.items():
                codes[i] = _code(one)
                del jobs[i]
            if again := [i for i in ended if restarts(i, codes[i])]:
                jobs |= submit(again)
            job.show()
            time.sleep(POLL)
    finally:
        for one in jobs.values():
            _cancel(one.job_id)
    return codes


def _code(one: Any) -> int:
    """What the worker ended with; one that left no result was killed, or its node was lost."""
    tasks = [one.task(i) for i in range(one.num_tasks)]
    left = [task.result() if task.paths.result_pickle.exists() else None for task in tasks]
    return process_group.verdict(-signal.SIGKILL if code is None else code for code in left)


def _listed(jobs: Iterable[Any]) -> set[str]:
    """The jobs that wait or run. One that was submitted counts until the controller says no."""
    arrays = ",".join(sorted({one.job_id.partition("_")[0] for one in jobs}))
    command = ["squeue", "--noheader", "--array", "--format=%i %t", f"--jobs={arrays}"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return {one.job_id for one in jobs}  # the controller is busy or away
    rows = [line.split() for line in answer.stdout.splitlines()]
    return {name for name, state in rows if state != "CD"}


def _cancel(*arguments: str) -> None:
    subprocess.run(["scancel", *arguments], stderr=subprocess.DEVNULL)


def _executor(logs: Path) -> Any:
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise BadInput(
            "--executor=slurm: needs the package submitit; pip install 'isoflop[slurm]'"
        ) from error
    if not shutil.which("sbatch"):
        raise BadInput("--executor=slurm: no command sbatch; expected a node of a Slurm cluster")
    logs.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="submitit-", dir=logs)  # of mode 0700
    # A job that its time limit stops queues again as often as it takes.
    return submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1_000_000)
