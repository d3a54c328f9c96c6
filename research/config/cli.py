"""The command line of every entry point: flags, configs, overrides, and errors as exit codes.

    --config=FILE.py            a Python config: code, run on import, with get_config() and
                                perhaps sweep()
    --config=FILE.json          a resolved config, parsed and never executed
    --config.optim.lr=3e-4      override of one key; as many as wanted

All problems are reported together, before jax is imported.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from research.config import registry, schema
from research.errors import HUNG, IO_ERROR, PREEMPTED, BadInput, IsoflopError, Preempted, printable
from research.io import files, host

ModuleLike = Any
MOST_POINTS = 100_000  # of a sweep, which may be a generator without end
MOST_LINES = 100  # of what is wrong that are told
LARGEST = 1 << 20  # bytes of a .json config
ECHO = 2.0  # seconds in which a signal to stop may come again


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Call `main(argv)` and leave with its exit code; a typed error becomes message and code."""
    files.keep_private()
    logging.basicConfig(format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Redacting("%(message)s"))
    sys.excepthook = _told
    logging.getLogger("research").setLevel(logging.INFO)
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except IsoflopError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES:,} more"] if lines[MOST_LINES:] else []
        print(host.redacted("\n".join(f"error: {x}" for x in lines)), file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; launch the same command again to go on", file=sys.stderr)
        code = 130
    except MemoryError as error:
        print(f"error: out of memory: {error}", file=sys.stderr)
        code = IO_ERROR
    except BrokenPipeError:  # `| head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        words = f"error: {error.filename or 'I/O'}: {error.strerror or error}"
        print(host.redacted(words), file=sys.stderr)
        code = IO_ERROR
    sys.exit(code)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return host.redacted(super().format(record))


def _told(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A traceback is a message too, and the logs of workers keep it."""
    lines = traceback.format_exception(kind, error, trace)
    print(host.redacted("".join(lines)), end="", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Refuses a text that is empty: it is a variable of a shell that is not set, and what it should
    have asked for would be left out."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, rest = super().parse_known_args(args, namespace)
        empty = [a for a in self._actions if getattr(found, a.dest, None) == "" != a.default]
        if empty:
            raise BadInput(*(f"{a.option_strings[-1]}: is empty; expected a value" for a in empty))
        return found, rest


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser that prints a module docstring as it is written."""
    return _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


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
    config, module = load(args.config)
    pairs = [text.removeprefix("--config.").partition("=") for text in texts]
    names = {path: value for path, _, value in pairs if path.endswith(".name")}
    known, changes = schema.schema(schema.override(config, names)[0]), {}
    for text, (path, equals, value) in zip(texts, pairs, strict=True):
        if not equals:
            problems.append(f"{text}: no value; write --config.{path}=VALUE")
        elif path in known:
            try:
                changes[path] = read_value(value, known[path])
            except (ValueError, OverflowError):  # of the whole number that infinity is not
                problems.append(
                    f"{path}: {schema.shown(value)}; expected {schema.expected(known[path])}"
                )
        else:
            changes[path] = value  # `override` says what is wrong with it
    config, more = schema.override(config, changes)
    if problems := problems + more:
        raise BadInput(*problems, *schema.problems(config))
    return args, config, module


def checked(config: dict) -> dict:
    """The config with numbers in their types. Raises BadInput listing every problem."""
    if problems := schema.problems(config):
        raise BadInput(*problems)
    return schema.coerce(config)


def points(config: dict, module: ModuleLike | None, sweep: str) -> list[tuple[dict, dict]]:
    """(overrides, checked config) of every point that the config's `sweep` function yields.

    Raises BadInput naming the points and everything wrong with them.
    """
    function: Callable[..., Any] | None = getattr(module, sweep, None)
    if not callable(function):
        there = ", ".join(sweeps(module)) or "no sweep at all"
        raise BadInput(
            f"--sweep={sweep}: the config has no function {sweep}(), which must return a list of "
            f"overrides; it has {there}"
        )
    out, found = [], []
    made = _call(function, config)
    made = () if made is None else made
    if not isinstance(made, Iterable):
        raise BadInput(f"{sweep}() gives {made!r:.50}; expected a list of overrides")
    given = _call(lambda: list(itertools.islice(made, MOST_POINTS + 1)))
    if len(given) > MOST_POINTS:
        raise BadInput(f"{sweep}() yields more than {MOST_POINTS:,} points")
    for index, point in enumerate(given):
        if not isinstance(point, Mapping):
            found.append(f"{sweep}() point {index}: {point!r} is not a dict of overrides")
            continue
        if odd := [key for key in point if not isinstance(key, str)]:
            found.append(f"{sweep}() point {index}: {odd[0]!r:.50} is no key of a config")
            continue
        resolved, problems = schema.override(config, point)
        problems = problems or schema.problems(resolved)
        found += [f"{sweep}() point {index} {dict(point)}: {line}" for line in problems]
        out.append((dict(point), schema.coerce(resolved)))
    if found:
        raise BadInput(*found)
    if not out:
        raise BadInput(f"{sweep}() yields no points")
    return out


def sweeps(module: ModuleLike | None) -> list[str]:
    """The sweeps of a config: its public functions of one parameter, `config`."""
    public = {k: v for k, v in vars(module or object).items() if not k.startswith("_")}
    made = {k: v for k, v in public.items() if inspect.isfunction(v)}
    return [k for k, v in made.items() if [*inspect.signature(v).parameters] == ["config"]]


def load(path: str) -> tuple[dict, ModuleLike | None]:
    """A config as a plain nested dict. Raises BadInput."""
    suffix = Path(path).suffix
    if suffix == ".json":
        return files.read_json(path, LARGEST), None
    if suffix != ".py":
        raise BadInput(f"--config={path}: expected a .py file with get_config(), or a .json file")
    if not os.path.isfile(path):
        raise BadInput(f"--config={path}: no such file")
    spec = importlib.util.spec_from_file_location(f"isoflop_config_{Path(path).stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    _call(spec.loader.exec_module, module, what=path)
    if not hasattr(module, "get_config"):
        raise BadInput(f"--config={path}: the file has no function get_config()")
    config = _call(module.get_config, what=f"{path}: get_config()")
    config = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(config, dict):
        raise BadInput(f"{path}: get_config() must return a ConfigDict")
    return config, module


def _call(function: Callable, *args: object, what: str = "") -> Any:
    """The user's code is code: what it raises is told as its own line, not as our traceback."""
    try:
        return function(*args)
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else what
        if isinstance(error, SyntaxError):  # the frame is the importer's
            raise BadInput(f"{error.filename}:{error.lineno}: {error.msg}") from error
        raise BadInput(f"{where}: {type(error).__name__}: {error}") from error


def read_value(text: str, field: registry.Field) -> object:
    """A value from the command line, by the type of its field. Raises ValueError."""
    kind = field.type
    if text.lower() in ("none", "null") and (field.optional or kind != "str"):
        return None
    if field.many:
        one = dataclasses.replace(field, many=False)
        return [read_value(part, one) for part in text.split(",") if part]
    if kind in schema.RANGES:
        number = float(text)
        if schema.RANGES[kind][0] is float:
            return number
        if number != int(number):
            raise ValueError(text)
        return int(text) if text.lstrip("+-").isdigit() else int(number)
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return text


def for_terminal(text: str | bytes) -> str:
    """A text to be printed, as it is; to a terminal without what it would obey."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return printable(text, kept="\n\t") if sys.stdout.isatty() else text


class StopSignal:
    """Call it to learn whether one of `numbers` has come. Ctrl-C after one ends the process: at
    once, or `orderly` by an exception, so that what is open is closed. So does another signal that
    comes ECHO seconds after the first and later; earlier ones are the same: a scheduler sends them
    to every process, and those to their children.

    As a context it turns Preempted into KeyboardInterrupt where Ctrl-C was the cause.
    """

    def __init__(self, *numbers: signal.Signals, orderly: bool = False):
        self.number, self.orderly, self.came = 0, orderly, 0.0
        for number in numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        late = time.monotonic() - self.came > ECHO
        if self.number and (number == signal.SIGINT or late):
            if self.orderly:
                raise KeyboardInterrupt
            if number == signal.SIGINT:
                os._exit(128 + number)
            signal.signal(number, signal.SIG_DFL)  # so that a launcher sees by what it ended
            os.kill(os.getpid(), number)
        if not self.number:
            self.number, self.came = number, time.monotonic()
            if number == signal.SIGINT:  # by what a handler of signals may call at any moment
                os.write(2, b"\nto be saved after this step; Ctrl-C again ends at once\n")

    def __call__(self) -> bool:
        return self.number != 0

    def passed(self, code: int) -> int:
        """The exit code of processes that this one told to stop. Raises KeyboardInterrupt where
        they have for Ctrl-C."""
        if code in (PREEMPTED, HUNG) and self.number == signal.SIGINT:  # HUNG: before they could
            raise KeyboardInterrupt
        return code

    def __enter__(self) -> "StopSignal":
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is Preempted and self.number == signal.SIGINT:
            raise KeyboardInterrupt from None
