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
from research.launch import process_group
from research.launch.job import Job, Restarts, start

POLL = 1.0  # seconds between questions to the actors


class Attendant:
    """Runs the command as a child on some node of the cluster."""

    def __init__(self, log: Path, changes: dict[str, str], cwd: str):
        self.place, self.child = (log, changes, cwd), None

    def address(self) -> str:
        """Where this one can be found by the others of its worker."""
        host = importlib.import_module("ray").util.get_node_ip_address()
        return f"{host}:{process_group.free_port(host)}"

    def begin(self, command: Sequence[str], address: str, count: int, index: int) -> None:
        self.child = start([*command, *process_group.flags(address, count, index)], *self.place)

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


class Crew:
    """The actors of one worker, one for each of its processes, that begin when all have room."""

    def __init__(self, ray: Any, attendant: Any, needs: dict[str, float], job: Job, slot: int):
        self.ray, count = ray, job.processes
        self.codes: dict[int, int] = {}
        self.asked: dict[Any, int] = {}  # an actor that waits for room answers later
        self.until: float | None = None
        self.group = ray.util.placement_group([needs] * count) if count > 1 else None
        log = job.logs.resolve() / f"worker-{slot}.log"
        changes = (
            {} if needs.get("GPU") else {"JAX_NUM_CPU_DEVICES": str(max(1, int(needs["CPU"])))}
        )
        self.actors = [
            attendant.options(**self._where(i)).remote(log, changes, os.getcwd())
            for i in range(count)
        ]
        address = self.actors[0].address.remote() if count > 1 else ""
        for i, actor in enumerate(self.actors):
            actor.begin.remote(list(job.command), address, count, i)

    def _where(self, index: int) -> dict[str, Any]:
        if self.group is None:
            return {}
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        place = strategies.PlacementGroupSchedulingStrategy(
            self.group, placement_group_bundle_index=index
        )
        return {"scheduling_strategy": place}

    def questions(self) -> list[Any]:
        """What is asked of the actors and not answered yet."""
        for i in set(range(len(self.actors))) - self.codes.keys() - set(self.asked.values()):
            self.asked[self.actors[i].code.remote()] = i
        return list(self.asked)

    def answered(self, reference: Any) -> None:
        index = self.asked.pop(reference)
        try:
            code = self.ray.get(reference)
        except self.ray.exceptions.RayActorError:  # its process or node is gone
            code = -9
        if code is not None:
            self.codes[index] = code
            if code not in process_group.TOGETHER and self.until is None:
                self.until = time.monotonic() + process_group.GRACE

    def ended(self) -> int | None:
        """The exit code of them all, and then they are gone; None while they run. When one ends,
        and not as all of them do, the others are ended."""
        all_told = len(self.codes) == len(self.actors)
        if not all_told and (self.until is None or time.monotonic() < self.until):
            return None
        for i in set(range(len(self.actors))) - self.codes.keys():
            with contextlib.suppress(Exception):  # it is gone, or its node is
                self.ray.get(self.actors[i].kill.remote(), timeout=POLL)
        for actor in self.actors:
            self.ray.kill(actor)
        if self.group is not None:
            self.ray.util.remove_placement_group(self.group)
        return process_group.verdict(self.codes.values())

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
    ray = _connected(address)
    try:
        have = ray.cluster_resources()
        room = _room(have.get("CPU", 1), cpus, have.get("GPU", 0), gpus)
        if job.processes > max(1, room):
            raise BadInput(
                f"--num_processes: {job.processes}, but the cluster has room for {room} of "
                f"{cpus} cpus and {gpus:g} gpus"
            )
        workers = job.workers or max(1, room // job.processes)
        job.logs.mkdir(parents=True, exist_ok=True)
        attendant = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Attendant)
        needs = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
        return _watched(ray, job, lambda slot: Crew(ray, attendant, needs, job, slot), workers)
    finally:
        ray.shutdown()


def _room(cpus: float, each: int, gpus: float, gpus_each: float) -> int:
    rooms = [int(cpus // each)] if each else []
    rooms += [int(gpus // gpus_each)] if gpus_each else []
    return max(1, min(rooms, default=1))


def _watched(ray: Any, job: Job, begin: Callable[[int], Crew], workers: int) -> list[int]:
    restarts, codes = Restarts(job), [0] * workers
    crews = {i: begin(i) for i in range(workers)}
    told = False
    while crews:
        if not told and job.stop():
            told = True
            for crew in crews.values():
                crew.stop()
        asked = {question: crew for crew in crews.values() for question in crew.questions()}
        if asked:
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL)
            for reference in answered:
                asked[reference].answered(reference)
        for i, crew in list(crews.items()):
            if (code := crew.ended()) is None:
                continue
            codes[i] = code
            del crews[i]
            if restarts(i, code):
                crews[i] = begin(i)
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
