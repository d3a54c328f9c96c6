"""Flags of a command that is one of several processes joined by jax.distributed."""

import argparse
from typing import Any

from research.errors import BadInput

AUTO = "auto"
HELP = {
    "num_processes": "how many processes are one run; without the flags below they start here",
    "coordinator_address": "HOST:PORT of process 0, for a process of several that another program "
    f"starts; {AUTO}: ask the cluster (Slurm, Open MPI, Kubernetes, TPU) for all three",
    "process_id": "which of them this is, from 0",
}


ACCEPT_HELP = "continue runs that other code or settings began, and record that"


def add_flags(parser: argparse.ArgumentParser, member: bool = True) -> None:
    """Add the flags, named as the arguments of jax.distributed.initialize; only --num_processes for
    a command that is not itself a `member`."""
    parser.add_argument("--num_processes", type=int, metavar="K", help=HELP["num_processes"])
    if member:
        for name, kind, value in (
            ("coordinator_address", str, "HOST:PORT"),
            ("process_id", int, "I"),
        ):
            parser.add_argument(f"--{name}", type=kind, metavar=value, help=HELP[name])


def process_count(args: argparse.Namespace) -> int:
    """The number of processes, 1 by default. Raises BadInput below 1."""
    if args.num_processes is not None and args.num_processes < 1:
        raise BadInput(f"--num_processes: {args.num_processes}; expected at least 1")
    return args.num_processes or 1


def distributed_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Keyword arguments of jax.distributed.initialize; None for a single process.

    Raises BadInput listing all errors.
    """
    k, i, address = process_count(args), args.process_id, args.coordinator_address
    if address is None:
        if i is not None:
            raise BadInput("--process_id: needs --coordinator_address=HOST:PORT of process 0")
        return None
    if address == AUTO:
        if i is not None or args.num_processes is not None:
            raise BadInput(
                f"--coordinator_address={AUTO}: the cluster says how many processes there are and "
                "which this is; expected neither --num_processes nor --process_id"
            )
        return {}
    problems = []
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        problems.append(f"--coordinator_address: {address!r}; expected HOST:PORT, or {AUTO}")
    if args.num_processes is None:
        problems.append("--coordinator_address: needs --num_processes, how many there are")
    if i is None or not 0 <= i < k:
        problems.append(f"--process_id: {i}; expected 0 to {k - 1}, another for each process")
    if problems:
        raise BadInput(*problems)
    bind = {"coordinator_bind_address": address} if host in ("127.0.0.1", "localhost") else {}
    options = {"coordinator_address": address, "num_processes": k, "process_id": i, **bind}
    # Everything is given; jax would otherwise take the GPU from a cluster it runs in by chance.
    return options | {"cluster_detection_method": "deactivate"}
