"""A report that would come out as it is there already is not made again.

What a report was made from, and what was written, is remembered in the user's own cache and not in
the workdir, which may come from a stranger: $CACHE/reports/<digest of where and how>.json
"""

import itertools
import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from research.errors import BadInput, StorageError
from research.io import files, source
from research.runs.ladder import FOLDER
from research.runs.table import newest_sweep

READ = ("sweeps", "data", FOLDER)  # folders of a workdir whose files are small: by content
PACKAGES = ("numpy", "scipy", "matplotlib", "altair", "vl-convert-python")
LARGEST = 16 << 20


def written_report(workdir: str | Path, out: str | Path | None = None, **how: Any) -> str:
    """`build.write_report` where anything has changed since, and what there is to say of it. What
    is not asked for is not part of `how`: a sweep and `isoflop report` make the same report."""
    place, how = Path(out or workdir), {k: v for k, v in how.items() if v not in (None, False)}
    made_from = _made_from(Path(workdir))
    asked = files.digest_of({"workdir": str(Path(workdir).resolve()), "out": str(place.resolve()),
                             "how": how})  # fmt: skip
    if (words := _recall(asked, made_from)) is not None:
        return words
    from research.report import build, text

    logging.getLogger(__name__).info("fitting the laws and drawing the report")
    result = build.write_report(workdir, out=out, **how)
    words = text.text_summary(result)
    written = {str(path): files.digest_file(path) for path in result["files"].values()}
    _remember(asked, {"made_from": made_from, "files": written, "words": words})
    return words


def _recall(asked: str, made_from: str) -> str | None:
    try:
        known = files.read_json(_memory(asked), LARGEST)
        same = known["made_from"] == made_from and all(
            files.digest_file(path) == digest for path, digest in known["files"].items()
        )
        return str(known["words"]) if same else None
    except (OSError, BadInput, StorageError, KeyError, AttributeError):
        return None  # nothing is remembered, or what was written is gone


def _remember(asked: str, known: dict[str, Any]) -> None:
    try:
        files.write_json(_memory(asked), known)
    except StorageError:
        return  # the next report is made again


def _memory(asked: str) -> Path:
    return files.cache("reports") / f"{asked[:32]}.json"


def _made_from(workdir: Path) -> str:
    """A digest of all that decides a report: the library, what draws, which sweep was launched
    last, and the records, of a ladder's runs too. Records of runs count by size and times: that of
    the inode nobody can set back."""
    newest = newest_sweep(workdir)
    records: dict[str, Any] = {"newest sweep": newest and newest.name}
    places = (workdir / "runs", workdir / FOLDER / "runs")
    for folder, names, found in itertools.chain(*map(os.walk, places)):
        names[:] = [name for name in names if name != "checkpoints"]
        for name in found:
            status = os.lstat(os.path.join(folder, name))
            records[os.path.relpath(os.path.join(folder, name), workdir)] = [
                *(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            ]
    small = [path for folder in READ for path in sorted((workdir / folder).glob("*.json"))]
    for path in [*small, *workdir.glob("transfer.json")]:
        records[str(path.relative_to(workdir))] = files.digest_file(path)
    versions = {name: _version(name) for name in PACKAGES}
    code = files.digest_of(source.library().files)  # without asking git
    return files.digest_of({"records": records, "versions": versions, "code": code,
                            "python": sys.version})  # fmt: skip


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
