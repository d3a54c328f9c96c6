"""Flags of a command that is one of several processes joined by jax.distributed."""

import argparse
from typing import Any

from research.errors import BadInput

AUTO = "auto"  # as cluster_place reads it
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
    if args.coordinator_address is None and args.process_id is None:
        process_count(args)
        return None
    from research.config import cluster_place  # which one process does not need

    given = args.coordinator_address, args.num_processes, args.process_id
    return cluster_place.options(process_count(args), *given)
