"""What the pages and docstrings name exists: files, tests, definitions, links, make targets."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS
from research.config.loading import load_config
from research.config.schema import SECTIONS, schema

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("isoflop", "research", "experiments", "configs", "tools", "tests")
OTHERS = [ROOT / name for name in ("Makefile", "pyproject.toml", ".github/workflows/ci.yml")]
# What a reader is told to write, and what stands for any name.
NEW = {"research/models/bigram.py", "configs/lm_bigram.py"}
ANY = {"research.models.bigram", "research.models.file", "research.module"}

FILE = re.compile(
    rf"(?<![\w./-])(?:\.\./)?((?:{'|'.join(FOLDERS)})/[\w/]*\w(?:\.(?:py|sh|json))?)(?![\w…*<])"
)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
DOTTED = re.compile(r"\bresearch(?:\.\w+)+")
TEST = re.compile(r"`(test_\w+\.py)`((?: [\w-]+)*)")
MEMBER = re.compile(r"`(\w+)\.([A-Za-z]\w*)[`(]")  # of a module, as `custom_vjp.dense`
TARGET = re.compile(r"`make ([a-z-]+)")


def texts(path):
    """What of a file is read by people: a page whole, of Python all but the code of tests."""
    text = path.read_text()
    if path.suffix != ".py" or path.relative_to(ROOT).parts[0] != "tests":
        return [text]
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [ast.get_docstring(node) or "" for node in nodes]


def is_file(name):
    return (ROOT / name).exists() or (ROOT / f"{name}.py").exists() or name in NEW


def is_name(dotted):
    """Whether it is a module of research, or what one defines."""
    if dotted in ANY:
        return True
    parts = dotted.split(".")
    for n in range(len(parts), 1, -1):
        module = ROOT.joinpath(*parts[:n])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            return n == len(parts) or parts[n] in defined(file)
    return False


def is_member(module, name):
    """Whether `module.name` is what it looks like: true where no file has that name, and of keys of
    a config and names of files."""
    if module == "isoflop":  # the package, and not the method of that name
        return name in defined(ROOT / "isoflop" / "__init__.py")
    files = list((ROOT / "research").rglob(f"{module}.py"))
    key = any(path.startswith(f"{module}.") for path in SECTIONS)
    suffix = name in ("py", "json", "jsonl", "parquet", "csv", "html", "svg", "png")
    return not files or key or suffix or any(name in defined(file) for file in files)


def defined(file):
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names


def commands(text):
    """[(name, argv)] of the commands of this project in the code blocks of a page."""
    for block in re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "isof" in line else []
            words = words[words.index("isoflop") :] if "isoflop" in words else []
            if len(words) > 1:
                yield words[1], words[2:]


def unknown_words(name, argv, capsys):
    """Flags of a command that it does not have, and keys that its config does not have."""
    if name not in COMMANDS:
        return [name]
    with pytest.raises(SystemExit):
        importlib.import_module(f"experiments.{name}").main(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    own = [word for word in argv if not word.startswith("--config.")]
    flags = [word.partition("=")[0] for word in own if word.startswith("--")]
    out = [flag for flag in flags if flag not in known]
    file = next((word[9:] for word in own if word.startswith("--config=")), "")
    if file.startswith("configs/") and file not in NEW:
        pairs = [word[9:].partition("=") for word in argv if word.startswith("--config.")]
        keys = schema(load_config(ROOT / file)[0])
        out += [key for key, _, _ in pairs if key not in keys]
    return out


def missing(text):
    """What a text names and the project does not have."""
    yield from (name for name in FILE.findall(text) if not is_file(name))
    yield from (name for name in DOTTED.findall(text) if not is_name(name))


def missing_of_page(page, text):
    """As `missing`; links, tests and make targets too."""
    yield from missing(text)
    yield from (link for link in LINK.findall(text) if not (page.parent / link).exists())
    yield from (".".join(pair) for pair in MEMBER.findall(text) if not is_member(*pair))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    yield from (f"make {name}" for name in TARGET.findall(text) if name not in targets)
    for name, words in TEST.findall(text):
        files = list((ROOT / "tests").rglob(name))
        test = f"def test_{words.strip().replace(' ', '_')}("
        if not any(not words or test in file.read_text() for file in files):
            yield f"{name}{words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_names_exists(page):
    assert not list(missing_of_page(page, page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_can_be_given(page, capsys):
    for name, argv in commands(page.read_text()):
        bad = unknown_words(name, argv, capsys)
        assert set(bad) <= {"sizee"}, (name, bad)  # which README gives to be refused


@pytest.mark.parametrize(
    "line",
    [
        *("isoflop traim --config=configs/linear.py", "isoflop train --confg=configs/linear.py"),
        *("$ isoflop sweep --config=configs/linear.py \\\n   --config.batch.seed=1",),
    ],
)
def test_a_planted_command_is_rejected(line, capsys):
    ((name, argv),) = commands(f"```console\n{line}\n```\n")
    assert unknown_words(name, argv, capsys)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_docstrings_name_exists(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path != Path(__file__):
            assert not [name for text in texts(path) for name in missing(text)], path


def test_what_the_build_names_exists():
    for path in OTHERS:
        assert not [name for name in FILE.findall(path.read_text()) if not is_file(name)], path


@pytest.mark.parametrize(
    "text",
    [
        *("see research/optim.py", "[`x`](../research/bench.py)", "by `configs/lm_rnn.py`"),
        *("`tests/test_hostile.py`", "python -m tools.bench.nothing, tools/nothing.py"),
        *("research.export.read(DIR)", "research.inference.export.nothing", "[a](docs/none.md)"),
        *("`test_nothing.py`", "`test_imports.py` nothing of the kind", "`make nothing`"),
        *("`custom_vjp.nothing`", "`watchdog.nothing(kind)`"),
    ],
)
def test_a_planted_name_is_missed(text):
    assert list(missing_of_page(ROOT / "README.md", text))


def test_what_exists_is_not_missed():
    text = (
        "`research/params.py`, research/models/, research.models.Model, `make test`, "
        "[x](docs/security.md#what), `watchdog.doing(kind)`, `loop.steps_per_dispatch`, "
        "`manifest.json`, `test_docs.py` what exists is not missed"
    )
    assert not list(missing_of_page(ROOT / "README.md", text))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500
