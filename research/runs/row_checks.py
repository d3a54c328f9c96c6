"""What result.json and launch.json of a run may hold: they may come from elsewhere."""

from collections.abc import Mapping
from typing import Any

from research.runs.schema import COLUMNS, KINDS, declared_metrics, is_number

STATUS = ("done", "diverged", "failed", "unfinished")
_OF_CLASSES = ("class_names", "class_precision", "class_recall", "class_f1")


def row_problem(row: Mapping[str, Any]) -> str | None:
    """What a row holds that it may not, in words; None if nothing."""
    if row["status"] not in STATUS:
        return f"status is {row['status']!r:.50}, expected one of {', '.join(STATUS)}"
    try:
        metrics = declared_metrics(row)
    except ValueError as error:
        return f"metrics: {error}"
    for column in (*COLUMNS, *metrics):
        kind, words = KINDS[column.kind]
        value = row.get(column.name)
        if value is None:
            continue
        if not isinstance(value, kind) or (column.kind == "number" and not is_number(value)):
            return f"{column.name} is {value!r:.50}, expected {words}"
    if row["status"] == "done" and row.get("loss") is None:
        return "is done and has no loss"
    if row.get("confusion") and not _of_classes(row):
        return "the confusion of its classes is not a square of counts with a name for each"
    return None


def launch_problem(launch: Mapping[str, Any]) -> str | None:
    """What a launch.json holds that it may not, in words; None if nothing."""
    mesh, names = launch.get("mesh"), launch.get("members", [])
    if not isinstance(mesh, dict) or mesh.keys() != {"data", "fsdp", "tensor"} or not _counts(mesh):
        return f"mesh is {mesh!r:.50}, expected how many devices data, fsdp and tensor have"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"members is {names!r:.50}, expected a list of runs"
    many = launch.get("members_mesh")
    if many is not None and not (isinstance(many, dict) and "runs" in many and _counts(many)):
        return f"members_mesh is {many!r:.50}, expected how many devices runs has"
    for name in ("execution", "facts", "model", "versions", "jax_config"):
        if not isinstance(launch.get(name, {}), dict):
            return f"{name} is {launch[name]!r:.50}, expected an object"
    return None


def _counts(numbers: Mapping[str, Any]) -> bool:
    return all(type(n) is int and n >= 1 for n in numbers.values())


def _of_classes(row: Mapping[str, Any]) -> bool:
    lists: list[Any] = [row.get(name) for name in ("confusion", *_OF_CLASSES)]
    accuracy = row.get("accuracy")
    if not all(isinstance(values, list) for values in lists):
        return False
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        return False
    counts, names, *class_scores = lists
    square = all(
        isinstance(line, list)
        and len(line) == len(names)
        and all(isinstance(count, int) for count in line)
        for line in counts
    )
    numbers = all(is_number(x) for values in class_scores for x in values)
    return square and numbers and len({len(values) for values in lists}) == 1
