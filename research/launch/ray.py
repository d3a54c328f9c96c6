"""Workers as actors of a Ray cluster: one that exists, or one on this machine."""

import importlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.launch.job import Job, Restarts, start

POLL = 1.0  # seconds between questions to the actors


class Attendant:
    """Runs the command as a child on some node of the cluster."""

    def __init__(self, command: Sequence[str], log: Path, changes: dict[str, str], cwd: str):
        self.child = start(command, log, changes, cwd)

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.child.poll()

    def stop(self) -> None:
        self.child.terminate()


def run(job: Job, *, address: str = "", cpus: int = 1, gpus: float = 0.0) -> list[int]:
    """Start the workers, start again those that die with their process or node, and return their
    exit codes. `cpus` and `gpus` are those of one worker; without `job.workers` there are as many
    as the cluster has room for. An empty `address` starts a cluster on this machine.

    Raises BadInput if Ray is not installed or nobody answers at `address`.
    """
    ray = _connected(address)
    try:
        room = ray.cluster_resources()
        workers = job.workers or _room(room.get("CPU", 1), cpus, room.get("GPU", 0), gpus)
        job.logs.mkdir(parents=True, exist_ok=True)
        changes = {} if gpus else {"JAX_NUM_CPU_DEVICES": str(max(1, cpus))}
        attendant = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Attendant)

        def begin(slot: int) -> Any:
            log = job.logs.resolve() / f"worker-{slot}.log"
            return attendant.remote(list(job.command), log, changes, os.getcwd())

        return _watched(ray, job, begin, workers)
    finally:
        ray.shutdown()


def _room(cpus: float, each: int, gpus: float, gpus_each: float) -> int:
    rooms = [int(cpus // each)] if each else []
    rooms += [int(gpus // gpus_each)] if gpus_each else []
    return max(1, min(rooms, default=1))


def _watched(ray: Any, job: Job, begin: Any, workers: int) -> list[int]:
    restarts, codes = Restarts(job), [0] * workers
    actors = {i: begin(i) for i in range(workers)}
    asked: dict[Any, int] = {}  # an actor that waits for room on the cluster answers later
    told = False
    while actors:
        if not told and job.stop():
            told = True
            for actor in actors.values():
                actor.stop.remote()
        for i in actors.keys() - asked.values():
            asked[actors[i].code.remote()] = i
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL)
        for reference in answered:
            i = asked.pop(reference)
            try:
                code = ray.get(reference)
            except ray.exceptions.RayActorError:  # its process or node is gone
                code = -9
            if code is None:
                continue
            codes[i] = code
            ray.kill(actors.pop(i))
            if restarts(i, code):
                actors[i] = begin(i)
        job.show()
        time.sleep(POLL / 4)
    return codes


def _connected(address: str) -> Any:
    if not address:  # on the loopback, where no other host reaches it
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise BadInput(
            "--executor=ray: needs the package ray; pip install 'isoflop[ray]'"
        ) from error
    # Workers find the code where the launcher found it.
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own, which ends the process
    settings = {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}, "log_to_driver": False}
    if not address:
        settings |= {"include_dashboard": False}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork")  # of jax: Ray's children run at once
            ray.init(address=address or "local", **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInput(f"--executor_options: address={address}: {error}") from error
    signal.signal(signal.SIGTERM, handler)
    return ray
