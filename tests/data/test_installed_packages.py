"""The source of installed packages as a corpus: whole packages are held out."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from research import data
from research.data import installed_packages, text
from research.data.installed_packages import Package
from research.errors import BadInput

OPTIONS = {"context": 16, "heldout": 0.2, "tokenizer": "bytes", "field": "text", "vocab": None}


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A function that installs packages, {name: {path: content}}, and makes them the roots."""

    def install(packages, requires=None):
        site = tmp_path / "site"
        for name, files in packages.items():
            listed = [f"{path},," for path in files] + [f"{name}-1.0.dist-info/METADATA,,"]
            info = site / f"{name}-1.0.dist-info"
            info.mkdir(parents=True, exist_ok=True)
            asked = "".join(f"Requires-Dist: {r}\n" for r in (requires or {}).get(name, ()))
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{asked}")
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{asked}"
            )
            (info / "RECORD").write_text("\n".join(listed) + "\n")
            for path, content in files.items():
                place = site / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.syspath_prepend(site)
        monkeypatch.setattr(installed_packages, "ROOTS", ("root",))
        installed_packages._closure.cache_clear()

    yield install
    installed_packages._closure.cache_clear()


def documents():
    return {p.name: p.documents for p in installed_packages.packages()}


def test_the_roots_are_what_the_project_requires():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["data"], *extras["text"], *extras["report"]]
    names = {name.partition(">")[0].partition("[")[0] for name in listed}
    assert set(installed_packages.ROOTS) == names


def test_what_the_roots_require_here_is_read_and_no_other_package(installed):
    requires = {"root": ["below[more]>=1", "elsewhere; sys_platform == 'plan9'"]}
    requires["below"] = ["extra; extra == 'more'", "unasked; extra == 'other'", "absent"]
    names = ("root", "below", "elsewhere", "extra", "unasked", "stranger")
    installed({name: {f"{name}/a.py": f"name = {name!r}\n"} for name in names}, requires)
    assert set(documents()) == {"root", "below", "extra"}


def test_tests_copies_tables_and_other_encodings_are_left_out(installed):
    files = {
        "root/a.py": "a = 1\n",
        "root/copy.py": "a = 1\n",
        "root/tests/test_a.py": "assert True\n",
        "root/test_b.py": "assert 1\n",
        "root/_vendor/other.py": "other = 1\n",
        "root/latin.py": b"name = '\xe9'\n",
        "root/table.py": "x" * (installed_packages.LARGEST + 1),
        "root/data.txt": "not source",
        "root/zero.py": b"a\0b",
        "root/empty.py": "",
        "root/b.py": "b = 'é'\n",
        "../outside.py": "outside = 1\n",
    }
    installed({"root": files})
    assert documents() == {"root": [b"a = 1\n", "b = 'é'\n".encode()]}


def test_a_missing_root_is_named_with_what_would_help(installed, monkeypatch):
    installed({"other": {"other/a.py": "a = 1\n"}})
    with pytest.raises(BadInput, match=r"data.path: packages: root is not installed; pip install"):
        data.load("text", path="packages", **OPTIONS)


def test_packages_are_held_out_whole_near_the_share_and_none_is_most_of_it():
    sizes = [7, 300, 11, 40, 5, 60, 23, 90, 31, 2, 17, 54]
    every = [Package(f"p{i}", "1", [b"x" * size]) for i, size in enumerate(sizes)]
    for share in (0.1, 0.2, 0.3):
        chosen = installed_packages.held_out(every, share)
        wanted = share * sum(sizes)
        assert abs(sum(p.size for p in chosen) - wanted) < 0.35 * wanted
        assert max(p.size for p in chosen) <= wanted / 3
        # A larger version of one package moves no other by itself: the order is that of names.
        assert chosen == installed_packages.held_out(every[::-1], share)
    assert installed_packages.held_out(every, 0.0) == []


def test_no_file_of_a_held_out_package_is_trained_on(installed):
    names = ["root", *(f"p{i}" for i in range(30))]
    shared = "the same licence in all of them\n"
    files = {n: {f"{n}/{k}.py": f"{n} {k}\n" * 9 for k in range(3)} for n in names}
    for name in names:
        files[name][f"{name}/licence.py"] = shared
    installed(files, {"root": names[1:]})
    train, heldout = installed_packages.split(0.2)
    of = [{document.split()[0] for document in part} - {b"the"} for part in (train, heldout)]
    assert not of[0] & of[1]
    assert len(of[1]) >= 3
    assert (train + heldout).count(shared.encode()) == 1
    by_hash = text.split([*train, *heldout], 0.2)
    assert {d.split()[0] for d in by_hash[0]} & {d.split()[0] for d in by_hash[1]}


def test_a_data_set_of_packages_knows_them(installed):
    names = ["root", *(f"p{i}" for i in range(30))]
    files = {n: {f"{n}/{k}.py": f"{n} {k}\n" * 9 for k in range(3)} for n in names}
    installed(files, {"root": names[1:]})
    dataset = data.load("text", path="packages", **OPTIONS)
    assert dataset.card()["source"].startswith("Python source, without tests, of root 1.0, and")
    assert dataset.card()["heldout_tokens"] > 100
    assert dataset.card()["overlap"] == 0


@pytest.mark.slow
def test_the_packages_here_are_a_corpus_that_lasts():
    train, heldout = installed_packages.split(0.1)
    sizes = [sum(map(len, part)) for part in (train, heldout)]
    assert sum(sizes) > 60e6
    assert 0.05 < sizes[1] / sum(sizes) < 0.15
    assert importlib.metadata.version("jax") in installed_packages.describe()
