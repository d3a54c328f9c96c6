"""Neural scaling experiments: plan a sweep, train it, fit the law, check the prediction.

isoflop COMMAND [--flags]          the same as python -m experiments.COMMAND
isoflop COMMAND --help
isoflop --completion=SHELL          for bash, zsh and fish: eval "$(isoflop --completion=bash)"
"""

import ast
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
if not __package__ and str(HERE.parent) not in sys.path:  # run as a file (see io.host.command)
    sys.path.insert(0, str(HERE.parent))

from research import __version__  # noqa: E402
from research.config import cli  # noqa: E402
from research.errors import BadInput  # noqa: E402

COMMANDS = (
    *("init", "train", "sweep", "fit", "report", "plot", "plan", "table", "verify"),
    *("transfer", "calibrate", "generate", "evaluate", "export", "bench", "doctor", "worker"),
)


def main(argv: Sequence[str]) -> int | None:
    """Run one command; its module is imported here and not before. Raises BadInput."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "--version"):
        print(f"isoflop {__version__}" if name == "--version" else overview())
        return 0
    if name.startswith("--completion="):
        from experiments import _completion

        print(_completion.script(name.partition("=")[2]))
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(COMMANDS)}"
        raise BadInput(f"{name}: no such command; {hint}")
    sys.argv[0] = f"{cli.PROGRAM} {name}"
    return importlib.import_module(f"experiments.{name}").main(argv[1:])


def overview() -> str:
    """The help of all commands: of each the first line of its docstring, which is read and not
    imported."""
    lines = []
    for name in COMMANDS:
        source = (HERE / f"{name}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:9} {about}")
    return "\n".join([(__doc__ or "").rstrip(), "", "commands:", *lines])


def script() -> None:
    """The console script `isoflop`."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks
        from experiments import _completion

        _completion.answer(COMMANDS)
    cli.run(main)


if __name__ == "__main__":
    script()
