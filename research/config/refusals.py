"""What a command says where it refuses: the lines of an error, and the flags that were meant."""

import difflib
import sys
from collections.abc import Sequence

from research.errors import BadInput, IsoflopError

MAX_MESSAGES = 100  # errors printed of one config


def printed(error: IsoflopError) -> int:
    """The exit code of an error, whose lines go to stderr."""
    lines = str(error).splitlines() or [type(error).__name__]
    if more := lines[MAX_MESSAGES:]:
        lines[MAX_MESSAGES:] = [f"and {len(more):,} more"]
    print(*(f"error: {x}" for x in lines), sep="\n", file=sys.stderr)
    return error.exit_code


def check_flags(given: Sequence[str], known: list[str]) -> None:
    """Raises BadInput for flags among the arguments that are none of the `known` ones; what holds a
    space before its "=" is a value to argparse."""
    out = []
    for text in given:
        flag = text.partition("=")[0]
        if not flag.startswith("--") or flag == "--" or flag in known or " " in flag:
            continue
        close = difflib.get_close_matches(flag[:100], known, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help"
        if not close and "--config" in known:
            hint += "; --config.KEY=VALUE is a key of the config"
        out.append(f"{text}: no such flag; {hint}")
    if out:
        raise BadInput(*out)
