"""Which of the processes of a run this one is, from its flags or from the cluster."""

from typing import Any

from research.errors import BadInput

AUTO = "auto"


def options(k: int, address: str | None, given: int | None, i: int | None) -> dict[str, Any] | None:
    """As process_flags.distributed_options: of `k` processes, `given` or not, the one numbered
    `i`."""
    if address is None:
        if i is not None:
            raise BadInput("--process_id: needs --coordinator_address=HOST:PORT of process 0")
        return None
    if address == AUTO:
        if i is not None or given is not None:
            raise BadInput(
                f"--coordinator_address={AUTO}: the cluster says how many processes there are and "
                "which this is; expected neither --num_processes nor --process_id"
            )
        return {}
    problems = []
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        problems.append(f"--coordinator_address: {address!r}; expected HOST:PORT, or {AUTO}")
    if given is None:
        problems.append("--coordinator_address: needs --num_processes, how many there are")
    if i is None or not 0 <= i < k:
        problems.append(f"--process_id: {i}; expected 0 to {k - 1}, another for each process")
    if problems:
        raise BadInput(*problems)
    bind = {"coordinator_bind_address": address} if host in ("127.0.0.1", "localhost") else {}
    options = {"coordinator_address": address, "num_processes": k, "process_id": i, **bind}
    # Everything is given; jax would otherwise take the GPU from a cluster it runs in by chance.
    return options | {"cluster_detection_method": "deactivate"}
