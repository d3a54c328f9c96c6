"""The sources of the documentation site: the pages of docs/, and the reference, which is generated.

    python -m tools.docs --out=build/docs
    python -m tools.docs --notebook          writes docs/notebook.ipynb anew from docs/notebook.md

`make docs` builds the site from them (mkdocs.yml). Links to what is no page are left as the names
that they show. The reference of the config is of the schema, `research/config/meanings.py` and the
shipped configs, that of Python of the docstrings of the package `isoflop`, that of the commands of
their --help.
"""

import argparse
import ast
import contextlib
import importlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.__main__ import COMMANDS
from research.config import meanings, registry, schema
from research.config.loading import load_config
from research.runs.schema import NOT_IN_ID, PATH_KEYS

ROOT = Path(__file__).parents[1]
# Pages from beside docs/, by the names that they have on the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "design.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
MOST_VALUES = 4  # of a key, that are shown
HEADINGS = ("key", "takes", "unit", "meaning", "in shipped configs", "part of the run's id")


def shipped_configs() -> dict[str, dict[str, Any]]:
    """Every config of configs/ by its file, flat."""
    out = {}
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.name != "__init__.py":
            config, _ = load_config(str(path))
            out[str(path.relative_to(ROOT))] = schema.flatten(config)
    return out


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(key: str, configs: dict[str, dict[str, Any]], plug: tuple[str, str] | None) -> str:
    """The values that a key has in the shipped configs that have the plug, the most usual first."""
    counts: dict[str, int] = {}
    for config in configs.values():
        if key in config and (plug is None or config.get(f"{plug[0]}.name") == plug[1]):
            word = _value(config[key])
            counts[word] = counts.get(word, 0) + 1
    words = sorted(counts, key=lambda word: -counts[word])
    more = ", …" if len(words) > MOST_VALUES else ""
    return ", ".join(f"`{word}`" for word in words[:MOST_VALUES]) + more


def _in_id(key: str) -> str:
    """Whether a run with another value is another run."""
    if any(key == name or key.startswith(f"{name}.") for name in NOT_IN_ID):
        return "no"
    section, _, rest = key.partition(".")
    return "by its content" if section == "data" and rest in PATH_KEYS else "yes"


def _rows(
    fields: dict[str, registry.Field],
    section: str,
    plug: str | None,
    configs: dict[str, dict[str, Any]],
) -> list[str]:
    out = []
    for name, field in fields.items():
        key = f"{section}.{name}" if section else name
        unit, meaning = meanings.of(section, plug, name)
        values = _values(key, configs, (section, plug) if plug else None)
        cells = (f"`{key}`", schema.expected(field), unit, meaning, values, _in_id(key))
        out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return out


def _table(rows: list[str]) -> list[str]:
    return [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS), *rows, ""]


def _plug_fields(section: str, row: tuple[Path, str]) -> dict[str, registry.Field]:
    fields = registry.fields(*row)
    return {k: v for k, v in fields.items() if section != "model" or k not in schema.FACTS}


def config_page() -> str:
    """Every key that a config can have, by section and by what a section names."""
    configs = shipped_configs()
    lines = [
        "# Config reference",
        "",
        "Every key, generated from the schema. All keys of a config must be present, for no key "
        "has a hidden default: start from a shipped config. `none` is written `None` in Python. A "
        "key that is no part of the run's id changes how a run is computed, recorded or called, "
        "and not what it is.",
        "",
    ]
    groups: dict[str, dict[str, registry.Field]] = {}
    for key, field in schema.SECTIONS.items():
        section = key.partition(".")[0] if "." in key else ""
        name = key.partition(".")[2] or key
        groups.setdefault(section, {})[name] = field
    for section in schema.PLUGS:
        groups.setdefault(section.partition(".")[0], {})
    for section, fields in groups.items():
        lines += [f"## {section or 'The experiment'}", ""]
        own = _rows(fields, section, None, configs)
        plugs = {path: where for path, where in schema.PLUGS.items()
                 if path.partition(".")[0] == section}  # fmt: skip
        for path, (file, table) in plugs.items():
            choice = registry.Field("str", choices=tuple(registry.table(file, table)))
            own += _rows({"name": choice}, path, None, configs)
        lines += _table(own)
        for path, (file, table) in plugs.items():
            for plug, row in registry.table(file, table).items():
                lines += [f"### {path} {plug}", ""]
                about = ast.get_docstring(_definition(*row)) or ""
                lines += [_sentence(about), ""] if about else []
                rows = _rows(_plug_fields(path, row), path, plug, configs)
                lines += _table(rows) if rows else ["No further keys.", ""]
    return "\n".join(lines)


def _definition(file: Path, name: str) -> Any:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return next(node for node in body if getattr(node, "name", None) == name)


def _sentence(text: str) -> str:
    """What a docstring says of the thing, without its errors: two paragraphs in a line."""
    parts = [" ".join(part.split()) for part in text.split("\n\n")[:2]]
    return " ".join(part for part in parts if not part.startswith("Raises"))


def _members(node: ast.ClassDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            yield f"{node.name}.{item.name}", item


def _signature(name: str, node: ast.FunctionDef) -> str:
    words = {ast.unparse(word) for word in node.decorator_list}
    if "property" in words:
        return name
    given = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    return f"{name}({given})"


def _entry(name: str, node: ast.FunctionDef, level: int) -> list[str]:
    about = ast.get_docstring(node)
    if not about:
        raise SystemExit(f"error: {name} has no docstring")
    return [
        f"{'#' * level} `{name}`",
        "",
        "```python",
        _signature(name, node),
        "```",
        "",
        about,
        "",
    ]


def python_page() -> str:
    """The public names of the package, from its docstrings."""
    folder = ROOT / "isoflop"
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    lines = [
        "# Python reference",
        "",
        "`import isoflop`; [notebook](notebook.md) has examples.",
        "",
    ]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines += _entry(f"isoflop.{node.name}", node, 2)
    for file in ("table", "law", "model"):
        for node in ast.parse((folder / f"{file}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                lines += [f"## `{node.name}`", "", ast.get_docstring(node) or "", ""]
                for name, member in _members(node):
                    lines += _entry(name, member, 3)
    lines += ["## `isoflop.BadInput`", "", "Raised for bad input; `problems` lists all of it.", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """The help of every command, as it prints it."""
    lines = [
        "# Commands",
        "",
        "`isoflop COMMAND` and `python -m experiments.COMMAND` are the same.",
        "",
    ]
    for name in COMMANDS:
        lines += [f"## {name}", "", "```text", _help(name).rstrip(), "```", ""]
    return "\n".join(lines)


def _help(name: str) -> str:
    printed, program = io.StringIO(), sys.argv[0]
    sys.argv[0] = f"isoflop {name}"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            importlib.import_module(f"experiments.{name}").main(["--help"])
    finally:
        sys.argv[0] = program
    return printed.getvalue()


def notebook(page: str) -> str:
    """A page as a notebook for Jupyter, without outputs: its Python blocks are cells of code."""
    cells: list[dict[str, Any]] = []
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```\n", page, flags=re.M | re.S)):
        if not part.strip():
            continue
        cell = {"id": f"cell-{i}", "metadata": {}, "source": part.strip().splitlines(keepends=True)}
        kind = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**(kind if i % 2 else {"cell_type": "markdown"}), **cell})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {"cells": cells, "metadata": {"kernelspec": kernel}}
    return json.dumps(document | {"nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def notebook_of_page() -> str:
    """docs/notebook.ipynb."""
    return notebook((ROOT / "docs" / "notebook.md").read_text(encoding="utf-8"))


GENERATED = {"config.md": config_page, "python.md": python_page, "commands.md": commands_page}


def site_pages() -> dict[str, str]:
    """The written pages by their names on the site, with links that hold there."""
    sources = {ROOT / name: on_site for name, on_site in PAGES.items()}
    sources |= {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    known = {path.resolve(): on_site for path, on_site in sources.items()}

    def relinked(page: Path) -> str:
        def link(match: re.Match[str]) -> str:
            image, words, target = match.groups()
            path, _, anchor = target.partition("#")
            if "://" in target or not path:
                return match[0]
            place = (page.parent / path).resolve()
            if image or place.is_relative_to(ROOT / "docs" / "figures"):
                return f"{image}[{words}](figures/{place.name})"
            if place not in known:
                return words  # a file of the repository
            return f"[{words}]({known[place]}{'#' + anchor if anchor else ''})"

        return LINK.sub(link, page.read_text(encoding="utf-8"))

    return {on_site: relinked(path) for path, on_site in sources.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="a folder, which is replaced")
    what.add_argument("--notebook", action="store_true", help="write docs/notebook.ipynb")
    args = parser.parse_args(argv)
    if args.notebook:
        (ROOT / "docs" / "notebook.ipynb").write_text(notebook_of_page(), encoding="utf-8")
        return 0
    out = args.out
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(ROOT / "docs" / "figures", out / "figures")
    pages = site_pages() | {name: make() for name, make in GENERATED.items()}
    for name, text in pages.items():
        (out / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
