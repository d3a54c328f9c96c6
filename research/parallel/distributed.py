"""One run over several processes, through jax.distributed: they join, agree, and end together.

All of them run the same program over the devices of all. Process 0 alone writes, and what it
decides (a step to restore, the name of a file, the run to train next) the others are told. What any
of them may see first (a signal to stop) all answer at the same step. A process that fails alone
ends at once, without waiting for the others; those notice within SILENCE seconds and end too.
"""

import atexit
import contextlib
import functools
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research import errors
from research.errors import IO_ERROR, UNFINISHED, BadInput, Diverged, IsoflopError, Lost, Preempted

SILENCE = 30  # seconds without a heartbeat after which a process counts as dead
PATIENCE = 30.0  # seconds in which processes that all failed alike meet

_meetings = itertools.count()


def count() -> int:
    return jax.process_count()


def first() -> bool:
    """Whether this process is the one that writes and decides."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(place: Mapping[str, Any] | None) -> Iterator[None]:
    """Be one process of several inside; call it before the first use of jax's devices.

    `place` is what jax.distributed.initialize is told (nothing: what the cluster says); None is a
    run of one process, for which nothing happens. All but process 0 print nothing. Raises Lost when
    another process is gone.
    """
    if place is None:
        yield
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(**place, heartbeat_timeout_seconds=SILENCE)
    except ValueError as error:
        raise BadInput(f"--coordinator_address: no cluster tells it here: {error}") from error
    except RuntimeError as error:
        raise Lost(f"the processes of this run do not find each other: {error}") from error
    _quiet(first())
    try:
        yield
    except (Preempted, Diverged):  # which all of them raise
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        told = error
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            told = Lost(f"process {jax.process_index()} of {count()}: {error}")
        # Registered last, called first: jax would wait for the others, and they for this one.
        atexit.register(_leave, _code(told))
        if told is error:
            raise
        raise told from error
    else:
        jax.distributed.shutdown()


def agree(decide: Callable[[], Any]) -> Any:
    """What `decide()` gives in process 0, as JSON takes it, or the typed error that it raises
    there; the others do not call it. All of them must ask."""
    if count() == 1:
        return decide()
    told: dict[str, Any] = {}
    if first():
        try:
            told["value"] = decide()
        except IsoflopError as error:
            told |= {"error": type(error).__name__, "lines": str(error).splitlines()}
            _broadcast(told)
            raise
    told = _broadcast(told)
    if "error" in told:
        kind = getattr(errors, told["error"])
        raise kind(*told["lines"]) if kind is BadInput else kind("\n".join(told["lines"]))
    return told["value"]


def _broadcast(told: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(told).encode() if first() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    room = max(64, 1 << (length - 1).bit_length())  # so that few programs are compiled
    sent = np.zeros(room, np.uint8)
    sent[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(sent)[:length]))


def either(flag: bool) -> bool:
    """Whether it is true in any of the processes; all of them must ask."""
    return flag if count() == 1 else _seen(_sent(flag))


def late(stop: Callable[[], bool]) -> Callable[[], bool]:
    """`stop`, asked by all processes at once: true in all of them a call after it was true in one.

    So no process waits for the devices, which are a dispatch behind the host.
    """
    if count() == 1:
        return stop
    sent: list[jax.Array] = []

    def asked() -> bool:
        sent.append(_sent(stop()))
        return len(sent) > 1 and _seen(sent.pop(0))

    return asked


def meet(error: Exception) -> None:
    """Return if all processes come here, as they do when all met the same `error`. Raises Lost if
    not: what the others are doing needs this one."""
    if count() == 1:
        return
    import orbax.checkpoint as ocp  # late, for it takes half a second

    try:
        key = f"isoflop-{next(_meetings)}"
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=int(1000 * PATIENCE))
    except Exception as late:
        mine = f"process {jax.process_index()} of {count()}"
        raise Lost(f"{mine} failed alone: {type(error).__name__}: {error}") from late


def fetch(tree: Any) -> Any:
    """The arrays of `tree` whole, on the host of every process; all of them must ask."""
    if count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


@functools.cache
def _largest() -> tuple[NamedSharding, Callable]:
    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("all")), jax.jit(
        lambda x: x.max(), out_shardings=whole
    )


def _sent(flag: bool) -> jax.Array:
    split, largest = _largest()
    flags = np.full(jax.device_count(), flag, np.int32)
    with jax.transfer_guard("allow"):  # make_array_from_callback counts as implicit
        return largest(jax.make_array_from_callback(flags.shape, split, lambda at: flags[at]))


def _seen(largest: jax.Array) -> bool:
    return bool(jax.device_get(largest))


def _quiet(speaks: bool) -> None:
    """gloo writes to the process's own standard output, once for each device; Python's goes on, of
    the process that `speaks`."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    sys.stdout = os.fdopen(kept if speaks else nothing, "w", buffering=1)
    if not speaks:
        logging.getLogger("research").setLevel(logging.ERROR)


def _code(error: BaseException) -> int:
    if isinstance(error, IsoflopError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return IO_ERROR if isinstance(error, OSError) else UNFINISHED


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
