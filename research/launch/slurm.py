"""Workers as a job array of Slurm, through submitit.

submitit hands a Task to its job as a pickle, and takes the exit code back as one: the only pickles
in this project. They lie in a new folder for every launch, which only this user can write to, so
none is read that somebody else has laid there.
"""

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from research.config import process_flags
from research.errors import BadInput
from research.io.extras import install_command
from research.launch import process_group
from research.launch.job import Job, RestartPolicy, start_process

POLL = 2.0  # seconds between questions to the controller
# Options of sbatch that are ours, and what to give in their place ("": nothing).
OURS = {
    "partition": "partition=NAME",
    "account": "account=NAME",
    "time": "timeout=MINUTES",
    "mem": "memory=GB",
    "nodes": "nodes=N",
    "cpus-per-task": "cpus=N",
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "gpus=N"),
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "--num_processes=N"),
    "array": "--workers=N and array_limit=N",
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "signal", "input"), ""),
    **dict.fromkeys(("chdir", "wrap", "parsable", "wait", "test-only", "no-requeue"), ""),
}


class Task:
    """A process of a worker: the command, run on a node. When the time is nearly over or the job is
    preempted, the worker saves and the job is queued again.

    `gpus` are those of one process; if there are several on a node, each takes its own.
    """

    def __init__(
        self, command: Sequence[str], log: Path, changes: dict[str, str], cwd: str, gpus: int = 0
    ):
        self.arguments = (list(command), log, changes, cwd, gpus)
        self.child: subprocess.Popen | None = None

    def __call__(self) -> int:
        command, log, changes, cwd, gpus = self.arguments
        if gpus > 1:  # with one each, jax divides them
            local = int(os.environ.get("SLURM_LOCALID", "0"))
            own = range(local * gpus, (local + 1) * gpus)
            changes = {**changes, "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, own))}
        self.child = start_process(command, log, changes, cwd)
        # submitit lets SIGTERM pass; a worker saves on it, and its exit code says that it did.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU):
            signal.signal(number, lambda *_: self.child and self.child.terminate())
        return self.child.wait()

    def checkpoint(self) -> Any:
        """Called by submitit before the job ends too early."""
        if self.child:
            self.child.terminate()
            # This is a signal handler, in the middle of the wait above, which holds a lock.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        return importlib.import_module("submitit.helpers").DelayedSubmission(Task(*self.arguments))


def parse_sbatch(texts: Sequence[str]) -> dict[str, Any]:
    """{option: value, or True where it takes none} of texts such as "--qos=high --exclusive".
    Raises BadInput listing every problem."""
    problems, out = [], {}
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            problems.append(f"--sbatch={text}: {error}")
            continue
        for word in words:
            name, equals, value = word.removeprefix("--").partition("=")
            if not word.startswith("--") or not name.replace("-", "").isalnum():
                problems.append(f"--sbatch: {word!r}; expected --NAME=VALUE or --NAME, written out")
            elif name in OURS:
                instead = f"; give {OURS[name]}" if OURS[name] else ""
                problems.append(f"--sbatch: --{name} is set by the launcher{instead}")
            elif equals and not (value.isprintable() and value and not set(value) & set(" '\"#")):
                problems.append(f"--sbatch: --{name}={value!r}; expected a value without spaces")
            else:
                out[name] = value if equals else True
    if problems:
        raise BadInput(*problems)
    return out


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
    array_limit: int = 0,
    sbatch: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Submit the workers as one array, submit again those that die, and return their exit codes.

    `timeout` is in minutes, `memory` in GB on each node (0: what the partition gives); `cpus` and
    `gpus` are those of one process, and the processes of a worker are divided over `nodes`. Without
    `job.workers` there is one; at most `array_limit` run at a time (0: all), with the options
    `sbatch` beside ours. When stopped, jobs that wait are canceled and those that run get
    SIGTERM. Raises BadInput if submitit or Slurm is missing, or Slurm refuses.
    """
    if nodes < 1 or job.num_processes % nodes:
        raise BadInput(
            f"--executor_options: nodes: {nodes}; expected a divisor of --num_processes = "
            f"{job.num_processes}"
        )
    executor, per_node = _executor(job.logs), job.num_processes // nodes
    optional = {"slurm_partition": partition, "mem_gb": memory, "slurm_account": account}
    optional |= {"slurm_array_parallelism": array_limit, "slurm_additional_parameters": sbatch}
    executor.update_parameters(
        name="isoflop",
        timeout_min=timeout,
        cpus_per_task=cpus,
        **({"nodes": nodes, "tasks_per_node": per_node} if job.num_processes > 1 else {}),
        **({"gpus_per_node": gpus * per_node} if gpus else {}),
        **{k: v for k, v in optional.items() if v},
    )
    changes = {} if gpus else {"JAX_NUM_CPU_DEVICES": str(cpus)}
    several = job.num_processes > 1
    command = [*job.command, *([f"--coordinator_address={process_flags.AUTO}"] if several else [])]

    def submit(workers: Sequence[int]) -> dict[int, Any]:
        logs = {i: job.logs.resolve() / f"worker-{i}.log" for i in workers}
        gpus_each = gpus if several else 0
        tasks = [Task(command, logs[i], changes, os.getcwd(), gpus_each) for i in workers]
        try:
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except Exception as error:
            raise BadInput(f"--executor=slurm: the jobs were refused: {error}") from error
        return dict(zip(workers, jobs, strict=True))

    return _watch(job, submit, job.workers or 1)


def _watch(job: Job, submit: Any, workers: int) -> list[int]:
    policy, codes = RestartPolicy(job), [0] * workers
    jobs = submit(range(workers))
    stopping = False
    try:
        while jobs:
            if not stopping and job.stop():
                stopping = True
                for one in jobs.values():
                    _cancel("--state=PENDING", one.job_id)
                    _cancel("--signal=TERM", one.job_id)
            queued = _queued(jobs.values())
            ended = {i: one for i, one in jobs.items() if one.job_id not in queued}
            for i, one in ended.items():
                codes[i] = _exit_code(one)
                del jobs[i]
            if again := [i for i in ended if policy.allows(i, codes[i])]:
                jobs |= submit(again)
            job.show()
            time.sleep(POLL)
    finally:
        for one in jobs.values():
            _cancel(one.job_id)
    return codes


def _exit_code(one: Any) -> int:
    """That of a worker; one that left no result was killed, or its node was lost."""
    tasks = [one.task(i) for i in range(one.num_tasks)]
    results = [task.result() if task.paths.result_pickle.exists() else None for task in tasks]
    return process_group.exit_code_of_group(
        -signal.SIGKILL if code is None else code for code in results
    )


def _queued(jobs: Iterable[Any]) -> set[str]:
    """The ids of the jobs that wait or run; of all of them while the controller does not answer."""
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
            f"--executor=slurm: needs the package submitit; {install_command('slurm')}"
        ) from error
    if not shutil.which("sbatch"):
        raise BadInput("--executor=slurm: no command sbatch; expected a node of a Slurm cluster")
    logs.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="submitit-", dir=logs)  # of mode 0700
    # A job that its time limit stops queues again as often as it takes.
    return submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1_000_000)
