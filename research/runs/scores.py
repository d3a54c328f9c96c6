"""Scores of a trained run on tasks, which are measured after it is done.

scores.json  {task: {"accuracy", "standard_error", "chance", "bits_per_byte", "of", "recipe"}}

`of` is the digest of the parameters, `recipe` all else that decides the score; what a task does not
measure, or nothing is known of, is left out.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import Damaged
from research.io import files
from research.runs.directory import RunDirectory, read_run_file
from research.runs.schema import is_number

log = logging.getLogger(__name__)

FILE = "scores.json"
NAME = re.compile(r"\w[\w.:/-]{0,99}")  # of a task
PREFIX = "score/"  # of the column of an accuracy
COLUMNS = {  # of the table, each for every task: COLUMN/TASK
    "score": "accuracy",
    "score_error": "standard_error",
    "score_chance": "chance",
    "score_bits": "bits_per_byte",
}
RECIPE = "score_recipe"  # a column of text, by which scores are told apart that do not compare


def read(run: Path) -> dict[str, dict[str, Any]]:
    """The scores of a run by task. Damaged ones are none, with a warning: to be measured again."""
    path = run / FILE
    try:
        if not path.exists():
            return {}
        stored = read_run_file(path)
        if _are_scores(stored):
            return stored
        log.warning("%s: not the scores of a run; evaluate it again", path)
    except Damaged as error:
        log.warning("%s", error)
    return {}


def _are_scores(stored: Mapping[str, Any]) -> bool:
    return all(
        NAME.fullmatch(task)
        and isinstance(entry, dict)
        and isinstance(entry.get("recipe"), dict)
        and all(is_number(entry[key]) for key in COLUMNS.values() if key in entry)
        for task, entry in stored.items()
    )


def columns(run: Path) -> dict[str, Any]:
    """The scores of a run as columns of its row."""
    out: dict[str, Any] = {}
    for name, entry in read(run).items():
        task = name.replace(".", "_")  # a dot is of the keys of a config
        out |= {f"{kind}/{task}": entry[key] for kind, key in COLUMNS.items() if key in entry}
        out[f"{RECIPE}/{task}"] = files.digest_of(entry["recipe"])[:8]
    return out


def write(run: RunDirectory, task: str, entry: Mapping[str, Any]) -> None:
    """Add the score of a task to a run that this process holds, in the place of an older one."""
    run.write(FILE, dict(sorted({**read(run.path), task: dict(entry)}.items())))


def shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of accuracy that a row of these has."""
    return sorted({name for row in rows for name in row if str(name).startswith(PREFIX)})
