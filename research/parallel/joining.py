"""How a process becomes one of several, and how it ends when it is."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from research.errors import IO_ERROR, UNFINISHED, BadInput, Diverged, IsoflopError, Lost, Preempted
from research.io import terminal
from research.parallel import device_mesh

SILENCE = 30  # seconds without a heartbeat after which a process counts as dead


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
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raised = Lost(f"process {jax.process_index()} of {jax.process_count()}: {error}")
        # Registered last, so called first: jax would wait for the others, and they for this one.
        atexit.register(_exit_now, _exit_code(raised))
        if raised is error:
            raise
        raise raised from error
    else:
        jax.distributed.shutdown()


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
