"""Reads what a run and its ancestors were trained on (see training.ancestry)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.io import files

LARGEST = 8 << 20  # bytes of one file
NAME, MOST_SETS = re.compile("[0-9a-f]{12}"), 64


def read(run: Path) -> Mapping[str, bytes]:
    """{name: contents} of what the run in a directory and its ancestors were trained on; none where
    it is not known."""
    if not (path := run / "launch.json").exists():
        return {}
    launch: dict[str, Any] = files.read_json(path, follow=False)
    names, out = launch.get("trained_on", []), {}
    if not isinstance(names, list) or len(names) > MOST_SETS:
        raise BadInput(f"{run / 'launch.json'}: trained_on is {names!r:.50}, expected names")
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadInput(f"{run / 'launch.json'}: trained_on holds {name!r:.50}, expected a name")
        path = run.parent.parent / "data" / f"{name}.contents"
        if not path.exists():
            return {}  # of a run that was moved without its workdir
        raw = files.read(path, LARGEST, follow=False)
        if len(raw) % 8 or len(raw) < 8 or not int.from_bytes(raw[:8], "little"):
            raise BadInput(f"{path}: not the contents of a training set; remove it")
        out[name] = raw
    return out
