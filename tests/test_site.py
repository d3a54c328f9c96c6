"""The documentation site: its reference is whole, and it builds strictly and needs no network."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import isoflop
from experiments.__main__ import COMMANDS
from isoflop.law import Law
from isoflop.model import LanguageModel
from isoflop.table import Table
from research.config import meanings, registry, schema
from tools import docs

ROOT = Path(__file__).parents[1]
MKDOCS = os.environ.get("ISOFLOP_TEST_MKDOCS", str(ROOT / ".venv-docs" / "bin" / "mkdocs"))


@pytest.fixture(scope="module")
def config_page():
    return docs.config_page()


def every_key():
    """(section, plug, key) of all that a config can have."""
    for path in schema.SECTIONS:
        section, _, key = path.partition(".")
        yield (section, None, key) if key else ("", None, section)
    for section, (file, table) in schema.PLUGS.items():
        yield section, None, "name"
        for plug, row in registry.table(file, table).items():
            for key in registry.fields(*row):
                if section != "model" or key not in schema.FACTS:
                    yield section, plug, key


def test_every_key_of_the_schema_is_in_the_reference(config_page):
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*)$", config_page, re.MULTILINE))
    keys = list(every_key())
    assert len(keys) > 130
    for section, plug, key in keys:
        path = f"{section}.{key}" if section else key
        unit, meaning = meanings.of(section, plug, key)
        assert path in rows
        assert f"| {unit} | {meaning} |" in config_page, path
    assert "data.pathh" not in rows


def test_meanings_are_of_keys_that_there_are():
    used = set()
    for section, plug, key in every_key():
        special, path = f"{section}.{plug}.{key}", f"{section}.{key}" if section else key
        used.add(special if plug and special in meanings.MEANINGS else path)
    assert used == set(meanings.MEANINGS)
    with pytest.raises(KeyError):
        meanings.of("data", "text", "colour")
    assert meanings.of("data", "images", "path") != meanings.of("data", "text", "path")


def test_a_key_is_shown_with_its_type_its_shipped_values_and_whether_it_makes_another_run(
    config_page,
):
    def row(key):
        return next(x for x in config_page.splitlines() if x.startswith(f"| `{key}` |"))

    assert "a finite number above 0" in row("optim.lr")
    assert "`0.2`" in row("optim.lr")
    assert row("optim.lr").endswith("| yes |")
    assert row("save.every").endswith("| no |")
    assert row("data.path").endswith("| by its content |")
    assert "one of none, dots, projections, offload, full" in row("model.remat")


def test_every_public_name_is_in_the_reference_of_python():
    page = docs.python_page()
    for name in isoflop.__all__:
        assert name == "__version__" or f"`isoflop.{name}`" in page
    for cls in (Law, Table, LanguageModel):
        for name in (n for n in vars(cls) if not n.startswith("_")):
            assert f"`{cls.__name__}.{name}`" in page
    assert "`isoflop.nothing`" not in page


def test_every_command_is_in_the_reference_with_its_flags():
    page = docs.commands_page()
    for name in COMMANDS:
        assert f"## {name}\n\n```text\nusage: isoflop {name}" in page
    assert "--figure" in page
    assert "--figures" not in page


def test_links_lead_to_pages_of_the_site_or_nowhere():
    pages = docs.site_pages()
    assert "[gallery](gallery.md)" in pages["index.md"]
    assert "(figures/isoflop_valleys.png)" in pages["index.md"]
    for text in pages.values():
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            assert target in pages or target.startswith(("figures/", "https://")), target
    assert "(../configs/lm_transformer.py)" in (ROOT / "docs" / "running.md").read_text()
    assert "(../configs" not in pages["running.md"]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = set(docs.site_pages()) | set(docs.GENERATED)
    assert sorted(listed) == sorted(pages)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with the sources of the site and its configuration."""
    if not shutil.which(MKDOCS):
        pytest.skip("no mkdocs: `make docs` installs it, or ISOFLOP_TEST_MKDOCS names one")
    place = tmp_path_factory.mktemp("site")
    assert docs.main([f"--out={place / 'build' / 'docs'}"]) == 0
    shutil.copy(ROOT / "mkdocs.yml", place)
    return place


def build(place):
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    # With --quiet it counts no warnings, and is not strict.
    return subprocess.run([MKDOCS, "build"], cwd=place, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(sources):
    done = build(sources)
    assert done.returncode == 0, done.stderr
    site = sources / "build" / "site"
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]* src=[\"']?(https?:)?//"
        r"|<link[^>]* rel=[\"']?(?:stylesheet|preload|preconnect)[^>]*//"
    )
    for page in pages:
        assert not fetched.search(page.read_text()), page
    assert fetched.search('<script src="https://x.example/a.js"></script>')
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"url\([\"']?(https?:)?//", styles)


@pytest.mark.slow
@pytest.mark.parametrize("link", ["[x](nothing.md)", "[x](gallery.md#nothing)"])
def test_a_planted_broken_link_fails_the_build(link, sources, tmp_path):
    place = tmp_path / "site"
    shutil.copytree(sources, place, ignore=shutil.ignore_patterns("site"))
    page = place / "build" / "docs" / "data.md"
    page.write_text(f"{page.read_text()}\n{link}\n")
    done = build(place)
    assert done.returncode != 0
    assert "nothing" in done.stdout + done.stderr
