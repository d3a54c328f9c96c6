"""One run over several processes, through jax.distributed: they start, decide and end together.

All of them run the same program over the devices of all. `broadcast`, `any_process`,
`any_process_delayed` and `gather` are collectives: every process must call them, in the same order,
or the run hangs. Only process 0 writes; what it decides (which step to restore, a file name, the
next run to train) is broadcast. What any process may be the first to see (a signal to stop) takes
effect in all of them at the same step. A process that fails alone exits at once, without waiting
for the others; they notice within joining.SILENCE seconds and exit too.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from research import errors
from research.errors import BadInput, IsoflopError


def process_count() -> int:
    """How many processes this run has. Not a collective: no process waits for another."""
    return jax.process_count()


def is_primary() -> bool:
    """Whether this is process 0, which alone writes and decides. Not a collective."""
    return jax.process_index() == 0


@contextlib.contextmanager
def join_processes(place: Mapping[str, Any] | None) -> Iterator[None]:
    """Be one process of several inside the `with`; enter it before the first use of jax's devices.

    `place` holds the arguments of jax.distributed.initialize (empty: jax asks the cluster); None
    means a run of one process, for which this does nothing. Only process 0 prints. Raises BadInput
    if no cluster gives the missing arguments, Lost if another process cannot be reached or dies.
    """
    if place is None:
        yield
        return
    from research.parallel import joining  # which one process does not need

    with joining.joined(place):
        yield


def broadcast(decide: Callable[[], Any]) -> Any:
    """Collective: in every process the value that `decide()` returns in process 0, after a round
    trip through JSON, or the IsoflopError that it raises there. The others do not call `decide`."""
    if process_count() == 1:
        return decide()
    answer: dict[str, Any] = {}
    if is_primary():
        try:
            answer["value"] = decide()
        except IsoflopError as error:
            answer |= {"error": type(error).__name__, "lines": str(error).splitlines()}
            _broadcast_json(answer)
            raise
    answer = _broadcast_json(answer)
    if "error" in answer:
        kind, lines = getattr(errors, answer["error"]), answer["lines"]
        raise kind(*lines) if kind is BadInput else kind("\n".join(lines))
    return answer["value"]


def _broadcast_json(answer: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(answer).encode() if is_primary() else b""
    length = int(_broadcast_array(np.int32(len(text))))
    size = max(64, 1 << (length - 1).bit_length())  # so that few programs are compiled
    sent = np.zeros(size, np.uint8)
    sent[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(_broadcast_array(sent)[:length]))


def _broadcast_array(array: Any) -> Any:
    with jax.transfer_guard("allow"):  # what jax's own collective puts and gets
        return multihost_utils.broadcast_one_to_all(array)


def any_process(flag: bool) -> bool:
    """Collective: whether `flag` is true in at least one process."""
    if process_count() == 1:
        return flag
    from research.parallel import joining  # as above

    return bool(jax.device_get(joining.start_any(flag)))


def any_process_delayed(stop: Callable[[], bool]) -> Callable[[], bool]:
    """`stop` as a collective that answers one call late: true in every process at the call after
    the one at which it was true in any.

    The delay spares waiting for the devices, which run a dispatch behind the host.
    """
    if process_count() == 1:
        return stop
    from research.parallel import joining  # as above

    pending: list[jax.Array] = []

    def stop_in_any_process() -> bool:
        pending.append(joining.start_any(stop()))
        return len(pending) > 1 and bool(jax.device_get(pending.pop(0)))

    return stop_in_any_process


def gather(tree: Any) -> Any:
    """Collective: the global arrays of `tree`, whole, as numpy arrays on every process's host."""
    if process_count() > 1:
        with jax.transfer_guard("allow"):  # what jax's own collective puts and gets
            tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
