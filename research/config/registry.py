"""What can be plugged in, read from the source text: no module is imported to learn its options.

A plug point is a dict literal such as `TRACKERS = {"csv": Csv}`, or, where only the entry in use
should be imported, `MODELS = {"gru": "research.models.gru:GRU"}`. A bad config must be rejected in
a fraction of a second, before jax is imported, so the checks cannot import the model. They read
instead what its author wrote anyway: the names in the table, and the annotated fields or parameters
of the class or function behind each name. A new plug gets its checks (unknown key, wrong type,
wrong choice) without a line written for them.
"""

import ast
import functools
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Field:
    """A keyword of a plug: its type ("int", "float", "str", "bool", ...), `optional` if None is
    allowed, the `choices` of a Literal, whether it takes `many` values of its type, as a list, a
    `word` that may stand for a number, and whether a config may be without it (`absent`: none)."""

    type: str
    optional: bool = False
    choices: tuple = ()
    many: bool = False
    word: str | None = None
    absent: bool = False


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _assigned(file: Path, name: str) -> ast.expr | None:
    for node in _tree(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return node.value  # type: ignore[union-attr]
    return None


@functools.cache
def table(file: str, name: str) -> dict[str, tuple[Path, str]]:
    """The rows of the plug table `name` in `research/<file>`: key -> (source file, definition).

    A row is a `definition` of that file, `module.definition` of its package, or the string
    "research.module:definition". Raises TypeError for anything else.
    """
    path = ROOT / file
    node = _assigned(path, name)
    if not isinstance(node, ast.Dict):
        raise TypeError(f"{path}: {name} must be a dict literal")
    rows = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
            rows[ast.literal_eval(key)] = (path.parent / f"{value.value.id}.py", value.attr)  # type: ignore[arg-type]
        elif isinstance(value, ast.Name):
            rows[ast.literal_eval(key)] = (path, value.id)  # type: ignore[arg-type]
        elif isinstance(value, ast.Constant) and ":" in str(value.value):
            module, _, definition = str(value.value).partition(":")
            rows[ast.literal_eval(key)] = (_source(module), definition)  # type: ignore[arg-type]
        else:
            raise TypeError(
                f'{path}: {name}: a row must be `name`, `module.name` or "package.module:name"'
            )
    return rows


def _source(module: str) -> Path:
    """The file of a dotted module beside or in `research`, which is not imported to find it."""
    return ROOT.parent.joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def literal(file: Path, name: str, default: object = ()) -> object:
    """The value of a constant written as a literal in `file`, or `default`."""
    node = _assigned(file, name)
    return default if node is None else ast.literal_eval(node)


@functools.cache
def fields(file: Path, definition: str) -> dict[str, Field]:
    """The annotated fields of a class, or the keyword-only parameters of a function."""
    for node in _tree(file).body:
        if isinstance(node, ast.ClassDef) and node.name == definition:
            return {
                item.target.id: _field(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and not ast.unparse(item.annotation).startswith("ClassVar")
            }
        if isinstance(node, ast.FunctionDef) and node.name == definition:
            return {arg.arg: _field(arg.annotation) for arg in node.args.kwonlyargs}
    raise LookupError(f"{file}: no class or function {definition}")


def _field(annotation: ast.expr | None) -> Field:
    if annotation is None:
        return Field("any")
    if isinstance(annotation, ast.BinOp):  # `int | None`
        return replace(_field(annotation.left), optional=True)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "list":
        return replace(_field(annotation.slice), optional=False, many=True)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        choices = ast.literal_eval(annotation.slice)
        choices = choices if isinstance(choices, tuple) else (choices,)
        return Field(type(choices[0]).__name__, choices=choices)
    return Field(ast.unparse(annotation).split("[")[0])
