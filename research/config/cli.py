"""The command line of every entry point: flags, configs, overrides, and errors as exit codes.

    --config=FILE.py            a Python config: code, run on import, with get_config() and
                                perhaps sweep()
    --config=FILE.json          a resolved config, parsed and never executed
    --config.optim.lr=3e-4      override of one key; as many as wanted

All that can be known without jax or the data is reported together, before jax is imported.
"""

import argparse
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from research.config import schema, validation
from research.config.loading import ModuleLike, load_config, parse_value
from research.errors import IO_ERROR, BadInput, IsoflopError
from research.io import files, terminal

PROGRAM = "isoflop"  # the console script
REMOTE = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main(argv)` and exit with its code; a typed error becomes a message and its code."""
    gc.set_threshold(50_000, 20, 50)  # traces and fits hold few cycles: a sixth of a plan's time
    files.keep_private()
    terminal.prepare()
    logging.basicConfig(format="%(message)s")
    if os.path.expanduser("~") == "~":  # neither HOME nor a user's name: libraries ask for one
        from research.io.home import substitute_home

        os.environ["HOME"] = str(substitute_home())
    logging.getLogger("research").setLevel(logging.INFO)
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except IsoflopError as error:
        from research.config import refusals

        code = refusals.printed(error)
    except KeyboardInterrupt:
        print("interrupted; launch the same command again to resume", file=sys.stderr)
        code = 130
    except MemoryError as error:
        print(f"error: out of memory: {error}", file=sys.stderr)
        code = IO_ERROR
    except BrokenPipeError:  # `| head`: the reader has seen enough
        code = 141
    except OSError as error:
        print(f"error: {error.filename or 'I/O'}: {error.strerror or error}", file=sys.stderr)
        code = IO_ERROR
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """Rejects an empty value: it comes from a shell variable that is not set, and the flag would
    silently have no effect. Names the flag that was meant by one that there is not."""

    def error(self, message: str) -> NoReturn:
        from research.config import refusals

        refusals.check_flags(self._given, list(self._option_string_actions))
        super().error(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._given = list(sys.argv[1:] if args is None else args)
        parsed, rest = super().parse_known_args(args, namespace)
        if empty := [a for a in self._actions if getattr(parsed, a.dest, None) == "" != a.default]:
            raise BadInput(*(f"{a.option_strings[-1]}: is empty; expected a value" for a in empty))
        for name in ("workdir", "runs", "out"):
            if REMOTE.match(place := str(getattr(parsed, name, ""))):
                raise BadInput(f"--{name}={place}: object storage cannot rename, link or append; "
                               "expected a folder (docs/reliability.md)")  # fmt: skip
        return parsed, rest


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser that prints a module docstring verbatim; under the console script its
    examples call the script."""
    if description and sys.argv[0].startswith(f"{PROGRAM} "):
        description = description.replace("python -m experiments.", f"{PROGRAM} ")
    verbatim = argparse.RawDescriptionHelpFormatter
    return _Parser(description=description, formatter_class=verbatim, allow_abbrev=False)


def config_parser(description: str | None, required: bool = True) -> argparse.ArgumentParser:
    out = parser(description)
    out.add_argument("--config", required=required, metavar="FILE", help="a .py or .json config")
    out.epilog = "--config.KEY=VALUE overrides one key of the config, e.g. --config.size=3e5"
    return out


def parse_config(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, dict, ModuleLike | None]:
    """Flags, the config with its overrides (not yet checked as a whole), and its module if .py.
    Where the parser lets --config be left out, the config is empty then.

    Raises BadInput with every unknown flag, unknown key and unreadable value.
    """
    texts = [a for a in argv if a.startswith("--config.")]
    args, rest = parser.parse_known_args([a for a in argv if a not in texts])
    problems = [f"{flag}: no such flag (see --help)" for flag in rest]
    if args.config is None:
        if problems := problems + [f"{text}: needs --config=FILE" for text in texts]:
            raise BadInput(*problems)
        return args, {}, None
    config, module = load_config(args.config)
    pairs = [text.removeprefix("--config.").partition("=") for text in texts]
    names = {path: value for path, _, value in pairs if path.endswith(".name")}
    known, changes = schema.schema(validation.override(config, names)[0]), {}
    for text, (path, equals, value) in zip(texts, pairs, strict=True):
        if not equals:
            problems.append(f"{text}: no value; write --config.{path}=VALUE")
        elif of := known.get(path) or (schema.Field("Section") if value.startswith("{") else None):
            try:
                changes[path] = parse_value(value, of)
            except (ValueError, OverflowError):  # of the whole number that infinity is not
                wrong = validation.format_value(value)
                problems.append(f"{path}: {wrong}; expected {schema.expected(of)}")
        else:
            changes[path] = value  # `override` says what is wrong with it
    config, more = validation.override(config, changes)
    if problems := problems + more:
        from research.config import places

        raise BadInput(*problems, *places.located(validation.problems(config), args.config, config))
    return args, config, module
