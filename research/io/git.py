"""What git says of the checkout that the library is run from."""

import functools
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)


def describe(
    root: Path, library: Sequence[str], config_files: Mapping[str, str]
) -> tuple[str, str]:
    """The commit of the checkout at `root`, with "+" if files that git tracks or the `library` has
    differ from it, or "unknown" and why; and that difference as text."""
    try:
        commit = run(root, "rev-parse", "HEAD").strip()
        changed = run(root, "status", "--porcelain", "-uno").splitlines()
        noted = {os.path.relpath(path, root): x for path, x in config_files.items()}
        inside = [path for path in noted if not path.startswith("..")]
        others = run(root, "ls-files", "--others", "-z", "--", "research", "experiments", *inside)
        untracked = sorted(set(others.split("\0")) & {*library, *inside})
        if not changed and not untracked:
            return commit, ""
        from research.io import git_diff  # which a clean checkout does not need

        lines = [*changed, *(f"?? {path} {noted.get(path, '')}".rstrip() for path in untracked)]
        diff = git_diff.read(functools.partial(run, root), commit, lines)
        plus = "+" if changed or not set(library).isdisjoint(untracked) else ""
        return commit + plus, diff
    except OSError as error:
        reason = f"git: {error.strerror}"
    except subprocess.CalledProcessError as error:
        reason = f"git: {(error.stderr.strip() or str(error)).splitlines()[0]}"
    log.warning("the commit is unknown (%s); the code is recorded by its digest", reason)
    return f"unknown ({reason:.200})", ""


def run(root: Path, *args: str) -> str:
    """What a git command prints, as text whatever it is. Raises CalledProcessError, OSError."""
    settings = ("-c", "core.fsmonitor=false", "-c", "core.quotePath=false")
    command = ["git", "-C", str(root), *settings, *args]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    how = {"encoding": "utf-8", "errors": "replace", "env": environment}
    return subprocess.run(command, capture_output=True, check=True, **how).stdout
