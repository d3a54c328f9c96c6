"""Workers as actors of a Ray cluster: one that exists, or one on this machine.

Ray sends what an actor is made from as a pickle, over the network of its cluster, which is trusted;
nothing of it is in a file here.
"""

import contextlib
import importlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.io.extras import install_command
from research.launch import process_group
from research.launch.job import Job, RestartPolicy, start_process

POLL = 1.0  # seconds between questions to the actors
# Ray would kill what an actor started when the launcher is gone: a worker sees that itself (by its
# parent), saves and ends.
OUTLIVE = {"RAY_kill_child_processes_on_worker_exit": "false"}


class ProcessActor:
    """Runs the command as a child on some node of the cluster."""

    def __init__(self, log: Path, changes: dict[str, str], cwd: str):
        self.start_options, self.child = (log, changes, cwd), None

    def address(self) -> str:
        """Where this one can be found by the others of its worker."""
        host = importlib.import_module("ray").util.get_node_ip_address()
        return f"{host}:{process_group.free_port(host)}"

    def begin(self, command: Sequence[str], address: str, count: int, index: int) -> None:
        argv = [*command, *process_group.member_flags(address, count, index)]
        self.child = start_process(argv, *self.start_options)

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.child.poll() if self.child else None

    def stop(self) -> None:
        if self.child:
            self.child.terminate()

    def kill(self) -> None:
        if self.child:
            self.child.kill()
            self.child.wait()


class ActorGroup:
    """The actors of one worker, one for each of its processes, that begin when all have room."""

    def __init__(self, ray: Any, actor_class: Any, needs: dict[str, float], job: Job, worker: int):
        self.ray, count = ray, job.num_processes
        self.codes: dict[int, int] = {}
        self.pending: dict[Any, int] = {}  # an actor that waits for room answers later
        self.deadline: float | None = None
        self.placement = ray.util.placement_group([needs] * count) if count > 1 else None
        log = job.logs.resolve() / f"worker-{worker}.log"
        changes = (
            {} if needs.get("GPU") else {"JAX_NUM_CPU_DEVICES": str(max(1, int(needs["CPU"])))}
        )
        self.actors = [
            actor_class.options(**self._scheduling(i)).remote(log, changes, os.getcwd())
            for i in range(count)
        ]
        address = self.actors[0].address.remote() if count > 1 else ""
        for i, actor in enumerate(self.actors):
            actor.begin.remote(list(job.command), address, count, i)

    def _scheduling(self, index: int) -> dict[str, Any]:
        if self.placement is None:
            return {}
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        place = strategies.PlacementGroupSchedulingStrategy(
            self.placement, placement_group_bundle_index=index
        )
        return {"scheduling_strategy": place}

    def poll(self) -> list[Any]:
        """References to the exit codes that were asked for and have not come yet."""
        for i in set(range(len(self.actors))) - self.codes.keys() - set(self.pending.values()):
            self.pending[self.actors[i].code.remote()] = i
        return list(self.pending)

    def receive(self, reference: Any) -> None:
        """Take the answer of `reference`, which is there."""
        index = self.pending.pop(reference)
        try:
            code = self.ray.get(reference)
        except self.ray.exceptions.RayActorError:  # its process or node is gone
            code = -9
        if code is not None:
            self.codes[index] = code
            if code not in process_group.COLLECTIVE_CODES and self.deadline is None:
                self.deadline = time.monotonic() + process_group.GRACE

    def finish(self) -> int | None:
        """The exit code of the group, whose actors are gone then; None while a process runs. When
        one ends with a code that is not of all, the others are ended."""
        complete = len(self.codes) == len(self.actors)
        if not complete and (self.deadline is None or time.monotonic() < self.deadline):
            return None
        for i in set(range(len(self.actors))) - self.codes.keys():
            with contextlib.suppress(Exception):  # it is gone, or its node is
                self.ray.get(self.actors[i].kill.remote(), timeout=POLL)
        for actor in self.actors:
            self.ray.kill(actor)
        if self.placement is not None:
            self.ray.util.remove_placement_group(self.placement)
        return process_group.exit_code_of_group(self.codes.values())

    def stop(self) -> None:
        for actor in self.actors:
            actor.stop.remote()


def run(job: Job, *, address: str = "", cpus: int = 1, gpus: float = 0.0) -> list[int]:
    """Start the workers, start again those that die with their process or node, and return their
    exit codes. `cpus` and `gpus` are those of one process; without `job.workers` there are as many
    workers as the cluster has room for. An empty `address` starts a cluster on this machine.

    Raises BadInput if Ray is not installed, nobody answers at `address`, or the cluster has no room
    for all processes of a worker.
    """
    ray = _connect(address)
    try:
        have = ray.cluster_resources()
        room = _max_processes(have.get("CPU", 1), cpus, have.get("GPU", 0), gpus)
        if job.num_processes > max(1, room):
            raise BadInput(
                f"--num_processes: {job.num_processes}, but the cluster has room for {room} of "
                f"{cpus} cpus and {gpus:g} gpus"
            )
        workers = job.workers or max(1, room // job.num_processes)
        job.logs.mkdir(parents=True, exist_ok=True)
        actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(ProcessActor)
        needs = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
        return _watch(ray, job, lambda i: ActorGroup(ray, actor_class, needs, job, i), workers)
    finally:
        ray.shutdown()


def _max_processes(cpus: float, cpus_each: int, gpus: float, gpus_each: float) -> int:
    """How many processes the cluster has room for, at least 1."""
    counts = [int(cpus // cpus_each)] if cpus_each else []
    counts += [int(gpus // gpus_each)] if gpus_each else []
    return max(1, min(counts, default=1))


def _watch(ray: Any, job: Job, start: Callable[[int], ActorGroup], workers: int) -> list[int]:
    policy, codes = RestartPolicy(job), [0] * workers
    running = {index: start(index) for index in range(workers)}
    stopping = False
    while running:
        if not stopping and job.stop():
            stopping = True
            for worker in running.values():
                worker.stop()
        pending = {reference: worker for worker in running.values() for reference in worker.poll()}
        if pending:
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL)
            for reference in ready:
                pending[reference].receive(reference)
        for index, worker in list(running.items()):
            if (code := worker.finish()) is None:
                continue
            codes[index] = code
            del running[index]
            if policy.allows(index, code):
                running[index] = start(index)
        job.show()
        time.sleep(POLL / 4)
    return codes


def _connect(address: str) -> Any:
    os.environ.update(OUTLIVE)  # of a cluster that starts here
    if not address:  # on the loopback, where no other host reaches it
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise BadInput(
            f"--executor=ray: needs the package ray; {install_command('ray')}"
        ) from error
    # Workers find the code where the launcher found it.
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own, which ends the process
    variables = {"PYTHONPATH": paths, **OUTLIVE}
    settings = {"runtime_env": {"env_vars": variables}, "log_to_driver": False}
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
