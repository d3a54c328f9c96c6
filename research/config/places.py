"""Where a Python config says what is wrong with it: the line of every key that it sets itself."""

import ast
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from research.config.schema import flatten
from research.errors import BadInput
from research.io import source

MISSING = ": missing;"


def located(
    problems: Sequence[str], path: str | None, config: Mapping[str, object]
) -> Sequence[str]:
    """Problems "key: what is wrong", with the line of the config `path` that gives the key the
    value that it has in `config`; of a missing key, the line that chose what it belongs to."""
    if not problems or not str(path).endswith(".py"):
        return problems
    try:
        with open(str(path), encoding="utf-8") as file:
            lines = {key: (value, line) for key, value, line in _assigned(ast.parse(file.read()))}
    except (OSError, ValueError, SyntaxError):
        return problems
    values, out = flatten(config), []
    for problem in problems:
        key = problem.partition(":")[0]
        if MISSING in problem:
            key = f"{key.rpartition('.')[0]}.name"
        value, line = lines.get(key, (None, 0))
        out.append(f"{problem} ({path}:{line})" if line and value == values.get(key) else problem)
    return out


def raised(error: Exception) -> BadInput:
    """An exception of the user's code, by the file and line of theirs that it came from."""
    if isinstance(error, SyntaxError):  # the frame is the importer's
        return BadInput(f"{error.filename}:{error.lineno}: {error.msg}")
    stack = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_code.co_filename, line) for frame, line in stack]
    own = [place for place in frames if source.is_users(place[0])]
    name, line = (own or frames)[-1]
    return BadInput(f"{name}:{line}: {_words_of(error)}")


def _words_of(error: Exception) -> str:
    """An exception in a line. The text of a KeyError is quoted, and by ConfigDict once more: here
    it is as it was written."""
    inner: Any = error
    while isinstance(inner, Exception) and len(inner.args) == 1:
        if not isinstance(inner, KeyError | AttributeError):
            break
        inner = inner.args[0]
    return f"{type(error).__name__}: {' '.join(str(inner).split())}"


def _assigned(tree: ast.AST) -> Iterator[tuple[str, object, int]]:
    """(dotted key, value, line) of what is assigned to a config's keys, or given to ConfigDict or
    returned as a dict; in the order of the file, and only values that are written out."""
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = [*zip(target.elts, node.value.elts)]
                for to, value in pairs:
                    if key := _key(to):
                        yield from _written(key, value)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            yield from _written("", node.value)
        elif isinstance(node, ast.Call) and _name(node.func) == "ConfigDict" and node.args:
            yield from _written("", node.args[0])


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _key(node: ast.expr) -> str:
    """`config.optim.lr` or `config["optim"]["lr"]` as "optim.lr"; "" for anything else."""
    parts = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            parts.append(str(node.slice.value))
        else:
            return ""
        node = node.value
    return ".".join(reversed(parts))


def _written(key: str, node: ast.expr) -> Iterator[tuple[str, object, int]]:
    if isinstance(node, ast.Dict) and node.keys:
        for name, value in zip(node.keys, node.values, strict=True):
            if isinstance(name, ast.Constant):
                yield from _written(f"{key}.{name.value}".lstrip("."), value)
        return
    try:
        yield key, ast.literal_eval(node), node.lineno
    except (ValueError, TypeError, SyntaxError):  # worked out by the file
        yield key, None, 0
