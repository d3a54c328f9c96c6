"""How packages that are optional are installed."""

import importlib.metadata
import shlex
from pathlib import Path


def install_command(*extras: str) -> str:
    """The command that adds `extras` to this copy, which is in no index of packages: by its
    checkout, or by what they require where it was installed from one."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        place = "." if root == Path.cwd() else str(root)
        return f"pip install -e '{place}[{','.join(extras)}]'"
    try:
        lines = [line.partition(";") for line in importlib.metadata.requires("isoflop") or ()]
    except importlib.metadata.PackageNotFoundError:
        return f"pip install '.[{','.join(extras)}]' in a checkout"
    asked = [f"extra == {quote}{name}{quote}" for name in extras for quote in "'\""]
    wanted = [name.strip() for name, _, marker in lines if any(e in marker for e in asked)]
    return f"pip install {' '.join(map(shlex.quote, wanted))}"
