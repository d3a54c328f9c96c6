"""Completion of the shell, by argcomplete: of commands, their flags, the keys of a config, files.

eval "$(isoflop --completion=bash)"                         in ~/.bashrc; zsh alike
isoflop --completion=fish > ~/.config/fish/completions/isoflop.fish
"""

import argparse
import importlib
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from research.config import cli
from research.config.meanings import MEANINGS
from research.errors import BadInput

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
PARSE = argparse.ArgumentParser.parse_known_args
ASKED = "_ARGCOMPLETE"  # in the environment, where the shell asks


def _library() -> Any:
    try:
        return importlib.import_module("argcomplete")
    except ImportError as error:
        raise BadInput("--completion: needs argcomplete: pip install argcomplete") from error


def script(shell: str) -> str:
    """What makes a shell ask for completions. Raises BadInput for another shell."""
    if shell not in SHELLS:
        raise BadInput(f"--completion={shell}: expected one of {', '.join(SHELLS)}")
    return _library().shellcode([cli.PROGRAM], True, shell)


def answer(commands: Sequence[str]) -> NoReturn:
    """Tell the shell what may stand where it asks, and exit."""
    try:
        argcomplete = _library()
    except BadInput:
        raise SystemExit(1) from None  # nothing is offered
    words = argcomplete.split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    if len(words) < 2:  # the command itself is being written
        parser = argparse.ArgumentParser(prog=cli.PROGRAM)
        parser.add_argument("command", choices=commands)
        argcomplete.autocomplete(parser)
    if words[1] in commands:
        os.environ[ASKED] = "2"  # words before those of the parser
        argparse.ArgumentParser.parse_known_args = _complete  # type: ignore[method-assign]
        importlib.import_module(f"experiments.{words[1]}").main([])
    raise SystemExit(1)


def _keys() -> set[str]:
    """Of every config, without the names by which meanings tell families and data sets apart."""
    parts = [key.split(".") for key in MEANINGS]
    plugged = ("model", "data")
    return {".".join(p[:1] + p[2:] if len(p) > 2 and p[0] in plugged else p) for p in parts}


def _complete(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
    argparse.ArgumentParser.parse_known_args = PARSE  # which argcomplete itself calls
    if any("--config" in action.option_strings for action in parser._actions):
        for key in _keys():
            parser.add_argument(f"--config.{key}")
    _library().autocomplete(parser, always_complete_options="long")
    raise SystemExit(1)
