"""What the pages and docstrings name exists: files, tests, definitions, links, make targets."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS
from isoflop.law import Law
from research.config import cli
from research.config.schema import SECTIONS
from research.errors import BadInput

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("isoflop", "research", "experiments", "configs", "tools", "tests")
OTHERS = [ROOT / name for name in ("Makefile", "pyproject.toml", ".github/workflows/ci.yml")]
# What a reader is told to write, and what stands for any name.
NEW = {"research/models/bigram.py", "configs/lm_bigram.py", "research/training/signum.py",
       "research/data/series.py", "configs/mlp_series.py"}  # fmt: skip
ANY = {"research.models.bigram", "research.models.file", "research.module",
       "research.training.signum", "research.data.series"}  # fmt: skip

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
    if module == "law":  # what isoflop.fit gives, and not the module of that name
        return hasattr(Law, name)
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
    """[(name, argv)] of the commands of this project in the code blocks of a page, also where one
    is given as python -m. Where a line begins with a prompt, the others are what was printed."""
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL)
    blocks += [
        match[0] for match in re.finditer(r"(?:^ {4}isoflop .*\n(?: {6,}.*\n)*)+", text, re.M)
    ]
    for block in blocks:
        lines = block.replace("\\\n", " ").splitlines()
        prompts = [line for line in lines if line.startswith("$ ")]
        for line in prompts or lines:
            if "isoflop" not in line and "experiments." not in line:
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            words = [word.removeprefix("experiments.") for word in words]
            start = next(
                (i for i, w in enumerate(words) if w == "isoflop" or w == "-m"), len(words)
            )
            if len(words) > start + 1:
                yield words[start + 1], words[start + 2 :]


class Parsed(Exception):
    """A command has read its flags, and goes no further."""


@pytest.fixture
def parse(monkeypatch):
    """A function: a command and its flags -> what its own parser says against them."""
    original, read = cli._Parser.parse_known_args, cli.parse_config

    def known(self, args=None, namespace=None):
        _, rest = original(self, args, namespace)
        raise Parsed([f"{flag}: no such flag" for flag in rest])

    def config(parser, argv):
        with monkeypatch.context() as plain:
            plain.setattr(cli._Parser, "parse_known_args", original)
            read(parser, argv)
        raise Parsed([])

    monkeypatch.setattr(cli._Parser, "parse_known_args", known)
    monkeypatch.setattr(cli, "parse_config", config)

    def of(name, argv):
        if name not in COMMANDS:
            return [name]
        if "…" in argv:  # what a command needs besides
            argv = [w for w in argv if w != "…"] + ["--config=configs/lm_gpt2.py", "--workdir=x"]
        argv = [standing_for(word) for word in argv]
        try:
            importlib.import_module(f"experiments.{name}").main(argv)
        except Parsed as parsed:
            return parsed.args[0]
        except BadInput as error:
            return list(error.problems)
        except SystemExit as stopped:
            return [f"exit code {stopped.code}"]
        raise AssertionError(f"{name} reads no flags")

    return of


def standing_for(word):
    """A flag with what a reader is to fill in filled in: a config that is not there, a number."""
    flag, _, value = word.partition("=")
    if flag == "--config" and not (ROOT / value).is_file() and not value.startswith("configs/"):
        return "--config=configs/lm_transformer.py"
    if value in NEW:
        return "--config=configs/lm_transformer.py"
    return f"{flag}=1" if value == "…" else word


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


REFUSED = ["optim.lr", "sizee"]  # by the command of README that shows it


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_are_read_by_their_own_parsers(page, parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, argv in commands(page.read_text()):
        bad = parse(name, argv)
        shown = any(word.startswith("--config.sizee") for word in argv)
        assert [line.split(":")[0] for line in bad] == (REFUSED if shown else []), (name, bad)


def test_the_examples_of_the_commands_are_read_by_their_own_parsers(parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = set()
    for command in COMMANDS:
        about = ast.get_docstring(ast.parse((ROOT / f"experiments/{command}.py").read_text())) or ""
        examples = re.findall(r"^ *(python -m experiments\..*)", about.replace("\\\n", ""), re.M)
        for line in examples:
            line = re.sub(r"\[(--[^]]*)\]", r"\1", re.split(r" {2,}", line)[0])
            ((name, argv),) = commands(f"```sh\n{line}\n```\n")
            if "--watch=DIR" not in argv:  # which looks there at once
                assert not parse(name, argv), line
            seen.add(name)
    assert {"train", "sweep", "fit", "plot", "verify"} <= seen


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("isoflop traim --config=configs/linear.py", "traim"),
        ("isoflop train --workdir=x --config=configs/linear.py --tagg=x", "tagg"),
        ("isoflop train --config=configs/nothing.py --workdir=x", "no such file"),
        (
            "$ isoflop sweep --config=configs/linear.py \\\n   --workdir=x --config.batch.seed=1",
            "seed",
        ),
        ("isoflop fit --out=x", "exit code 2"),
        ("isoflop fit --runs=x --out=y --seed=none", "exit code 2"),
        ("python -m experiments.table --runs=x --sortt=loss", "sortt"),
        ("$ isoflop table --runs=\nisoflop nothing", "runs: is empty"),
    ],
)
def test_a_planted_command_is_rejected(line, says, parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    ((name, argv),) = commands(f"```console\n{line}\n```\n")
    assert says in " ".join(parse(name, argv))


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
