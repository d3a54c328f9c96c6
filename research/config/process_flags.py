"""Flags of a command that is one of several processes joined by jax.distributed."""

import argparse
import re
from typing import Any

from research.errors import BadInput, printable

AUTO = "auto"  # as cluster_place reads it
HELP = {
    "num_processes": "processes per run; without the flags below they start on this machine",
    "coordinator_address": "HOST:PORT of process 0, if you or another program start the "
    f"processes; {AUTO}: ask the cluster (Slurm, Open MPI, Kubernetes, TPU) for all three",
    "process_id": "index of this process, from 0",
}


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of what a command that trains records of its runs."""
    help_ = "continue runs begun with other code or settings, and record it"
    parser.add_argument("--accept_changes", action="store_true", help=help_)
    parser.add_argument("--tag", type=_word, metavar="WORD", help="the run's column `tag`")
    parser.add_argument("--note", type=printable, metavar="TEXT", help="its column `note`")


def _word(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]{0,39}", text):
        raise BadInput(f"--tag={text:.60}: expected a word of at most 40 letters, digits, _.+-")
    return text


def labels(args: argparse.Namespace) -> dict[str, str]:
    """The tag and the note that were given."""
    return {k: getattr(args, k) for k in ("tag", "note") if getattr(args, k) is not None}


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
