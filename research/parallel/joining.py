"""How a process becomes one of several, and how it ends when it is."""

import atexit
import contextlib
import functools
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import (
    IO_ERROR,
    UNFINISHED,
    BadInput,
    Diverged,
    IsoflopError,
    Lost,
    Preempted,
    first_line,
)
from research.io import terminal
from research.parallel import device_mesh, sharding

# How errors of XLA, gloo and the coordination service begin that come of another process; jaxlib
# raises them as JaxRuntimeError, or as ValueError where an array is read. Those of this process are
# RESOURCE_EXHAUSTED, INVALID_ARGUMENT and what tensorstore says of files.
COLLECTIVE_FAILURE = re.compile(
    "(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|FAILED_PRECONDITION): "
)
PATIENCE = 30.0  # seconds in which processes that all failed alike wait for each other
SILENCE = 30  # seconds without a heartbeat after which a process counts as dead

_barriers = itertools.count()


@contextlib.contextmanager
def joined(place: Mapping[str, Any]) -> Iterator[None]:
    """As distributed.join_processes, of several processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(**place, heartbeat_timeout_seconds=SILENCE)
    except ValueError as error:
        raise BadInput(f"--coordinator_address: no cluster tells it here: {error}") from error
    except RuntimeError as error:
        raise Lost(f"the processes of this run do not find each other: {error}") from error
    device_mesh.check_devices()
    _redirect_stdout(jax.process_index() == 0)
    try:
        yield
    except (Preempted, Diverged):  # which all of them raise
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        raised = error
        if reason := collective_failure(error):
            raised = Lost(f"process {jax.process_index()} of {jax.process_count()}: {reason}")
        # Registered last, so called first: jax would wait for the others, and they for this one.
        atexit.register(_exit_now, _exit_code(raised))
        if raised is error:
            raise
        raise raised from error
    else:
        jax.distributed.shutdown()


@functools.cache
def _max_over_devices() -> tuple[NamedSharding, Callable]:
    mesh = Mesh(np.array(jax.devices()), ("all",))
    split, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["all"], []))
    return split, jax.jit(lambda x: x.max(), out_shardings=replicated)


def start_any(flag: bool) -> jax.Array:
    """The maximum of `flag` over all processes, dispatched but not waited for."""
    split, maximum = _max_over_devices()
    flags = np.full(jax.device_count(), flag, np.int32)
    with jax.transfer_guard("allow"):  # make_array_from_callback counts as implicit
        return maximum(jax.make_array_from_callback(flags.shape, split, lambda at: flags[at]))


@functools.lru_cache(maxsize=4)
def own_rows(mesh: Mesh, batch: int) -> np.ndarray | None:
    """The indices, ascending, of the batch rows that this process has to load: those that its
    devices hold, or all (None) where another process holds only some of these."""
    rows: dict[int, set[int]] = {}
    for device, (at,) in NamedSharding(mesh, sharding.BATCH).devices_indices_map((batch,)).items():
        rows.setdefault(device.process_index, set()).update(range(batch)[at])
    own, parts = rows[jax.process_index()], set(map(frozenset, rows.values()))
    uniform = len(parts) * len(own) == sum(map(len, parts)) == batch
    return np.array(sorted(own)) if uniform and len(parts) > 1 else None


def barrier(error: Exception) -> None:
    """Collective: return once all processes are here, as they are when the same `error` hit all of
    them. Raises Lost after PATIENCE seconds: the others are waiting for this one elsewhere."""
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp  # late, for it takes half a second

    try:
        key = f"isoflop-{next(_barriers)}"
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=int(1000 * PATIENCE))
    except Exception as timeout:
        mine = f"process {jax.process_index()} of {jax.process_count()}"
        raise Lost(f"{mine} failed alone: {type(error).__name__}: {error}") from timeout


def collective_failure(error: BaseException | None) -> str:
    """What a collective said when another process was gone: of `error`, or of an error that it was
    made of, such as a checkpoint that could not be written. Empty for errors of this process."""
    while error is not None and not isinstance(error, Lost):
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError):
            found = COLLECTIVE_FAILURE.match(text := first_line(error))
            if found and "tensorstore" not in text and "os_error_code" not in text:
                return text
        error = error.__cause__ or error.__context__
    return ""


def _redirect_stdout(prints: bool) -> None:
    """Silence file descriptor 1, on which gloo writes a line per device; sys.stdout still reaches
    the terminal in the process that `prints`."""
    sys.stdout.flush()
    shown, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    sys.stdout = terminal.opened(shown if prints else devnull, sys.stdout)
    if not prints:
        logging.getLogger("research").setLevel(logging.ERROR)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, IsoflopError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return IO_ERROR if isinstance(error, OSError) else UNFINISHED


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
