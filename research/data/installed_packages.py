"""The Python source of the installed packages that Isoflop depends on: about 80 MB of text that
needs no download, and is the same wherever the same versions are installed.

The packages are ROOTS and what they require, at the versions that requirements.lock pins. Which of
them is held out is decided for a package as a whole, so that no file has its near copy (another
version of a function, a sibling module) on the other side.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from research.errors import BadInput
from research.io.extras import install_command

# What pyproject.toml requires, and its extras that `make setup` installs.
ROOTS = (
    *("jax", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy", "scipy", "pyarrow"),
    *("matplotlib", "rich", "scikit-learn", "mlxtend", "tokenizers", "tiktoken", "datasets"),
    *("altair", "vl-convert-python", "argcomplete"),
)
# Folders of tests, and of copies of other packages.
SKIPPED = {"test", "tests", "testing", "idle_test", "conftest", "third_party"}
SKIPPED |= {"vendor", "_vendor", "vendored", "_vendored", "vendored_packages"}
SKIPPED |= {"extern", "_extern", "externals", "_externals"}
BUILT = frozenset({"__config__.py", "_distributor_init_local.py"})  # hold the paths of a machine
LARGEST = 200_000  # bytes of a file: larger ones are tables and generated code
MOST = 1 / 3  # of the held-out text from one package, so that it is the text of several


class Package(NamedTuple):
    """A package with the documents that no package before it has."""

    name: str
    version: str
    documents: list[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.documents))


def stamp() -> tuple:
    """Changes with the packages that are installed."""
    return tuple((name, found.version) for name, found in sorted(_closure().items()))


def packages() -> list[Package]:
    """By name. Raises BadInput where one of ROOTS is not installed."""
    out, seen = [], set()
    for name, distribution in sorted(_closure().items()):
        documents = []
        for content in _sources(distribution):
            digest = hashlib.sha256(content).digest()
            if content and digest not in seen:
                seen.add(digest)
                documents.append(content)
        if documents:
            out.append(Package(name, distribution.version, documents))
    return out


def documents() -> list[bytes]:
    """All of them, each once. Raises BadInput where one of ROOTS is not installed."""
    return [document for package in packages() for document in package.documents]


def split(heldout: float) -> tuple[list[bytes], list[bytes]]:
    """(training, held-out) documents: about a share `heldout` of the text, see `held_out`. Raises
    BadInput where one of ROOTS is not installed."""
    every = packages()
    chosen = {package.name for package in held_out(every, heldout)}
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for package in every:
        parts[package.name in chosen].extend(package.documents)
    return parts


def describe() -> str:
    """The source in words."""
    found = _closure()
    named = ", ".join(f"{name} {found[name].version}" for name in ROOTS)
    return f"Python source, without tests, of {named}, and what they require"


def held_out(every: Sequence[Package], heldout: float) -> list[Package]:
    """The packages that are held out as a whole: none of more than MOST of the share, taken in an
    order by the hash of their names while they bring their text nearer to it."""
    wanted = heldout * sum(package.size for package in every)
    out, size = [], 0
    for package in sorted(every, key=lambda p: hashlib.sha256(p.name.encode()).digest()):
        if package.size <= MOST * wanted and abs(size + package.size - wanted) < wanted - size:
            out.append(package)
            size += package.size
    return sorted(out)


@functools.cache
def _closure() -> dict[str, importlib.metadata.Distribution]:
    """ROOTS and what they require here, by their normalized names."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, importlib.metadata.Distribution] = {}
    asked = [(name, frozenset({""})) for name in ROOTS]
    done = set()
    while asked:
        name, extras = asked.pop()
        if (name, extras) in done:
            continue
        done.add((name, extras))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name in ROOTS:
                raise BadInput(
                    f"data.path: packages: {name} is not installed; "
                    + install_command("data", "text", "report")
                ) from error
            continue  # for another platform, or left out by who installed
        for text in found[name].requires or ():
            wanted = Requirement(text)
            if not wanted.marker or any(wanted.marker.evaluate({"extra": e}) for e in extras):
                own = frozenset({"", *wanted.extras})
                asked.append((canonicalize_name(wanted.name), own))
    return found


def _sources(distribution: importlib.metadata.Distribution) -> Iterator[bytes]:
    """The Python source files of a package in the order of their names, as UTF-8."""
    for place in sorted(distribution.files or (), key=str):
        folders, name = place.parts[:-1], place.name
        if place.suffix != ".py" or name in BUILT or SKIPPED & {*folders, place.stem}:
            continue
        if ".." in folders or name.startswith("test_") or name.endswith("_test.py"):
            continue
        try:
            content = distribution.locate_file(place).read_bytes()  # type: ignore[attr-defined]
            content.decode()
        except (OSError, UnicodeDecodeError):  # deleted since, or in another encoding
            continue
        if len(content) <= LARGEST and b"\0" not in content:
            yield content
