"""What a row of the table may hold. A run may come from elsewhere, and what reads its row counts on
numbers where numbers are."""

from collections.abc import Mapping
from typing import Any

_NUMBERS = (
    *("size", "seed", "params", "tokens", "unique_tokens", "flops", "flops_spent", "steps", "lr"),
    *("params_non_embedding", "params_matmul", "flops_6nd", "flops_6nd_non_embedding", "budget"),
    *("flops_exact_full", "flops_exact_causal", "shared_tokens", "shared_flops", "epochs"),
    *("batch", "context", "train_examples", "warmup_steps", "head_share", "attention_share"),
    *("loss", "train_loss", "perplexity", "bits_per_byte", "accuracy", "mse", "mae", "r2"),
    *("macro_precision", "macro_recall", "macro_f1", "closed_form_loss", "closed_form_distance"),
    *("seconds", "device_seconds", "devices", "cores", "steps_per_dispatch"),
)
_WORDS = (
    *("name", "family", "task", "loss_unit", "group", "flops_convention", "rules", "reason"),
    *(
        "device_kind",
        "data_digest",
        "commit",
        "optimizer",
        "schedule",
        "shared_prefix",
        "xla_flags",
    ),
)
KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(_NUMBERS, (int | float, "a number")),
    **dict.fromkeys(_WORDS, (str, "text")),
    **dict.fromkeys(("groups", "versions"), (dict, "an object")),
}
STATUS = ("done", "diverged", "failed", "unfinished")
_OF_CLASSES = ("class_names", "class_precision", "class_recall", "class_f1")


def row_problem(row: Mapping[str, Any]) -> str | None:
    """What a row holds that it may not, in words; None if nothing."""
    if row["status"] not in STATUS:
        return f"status is {row['status']!r:.50}, expected one of {', '.join(STATUS)}"
    for name, (kind, words) in KINDS.items():
        if row.get(name) is not None and not isinstance(row[name], kind):
            return f"{name} is {row[name]!r:.50}, expected {words}"
    if row["status"] == "done" and row.get("loss") is None:
        return "is done and has no loss"
    if row.get("confusion") and not _of_classes(row):
        return "the confusion of its classes is no square of counts with a name for each"
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
    for name in ("execution", "facts", "model"):
        if not isinstance(launch.get(name, {}), dict):
            return f"{name} is {launch[name]!r:.50}, expected an object"
    return None


def _counts(found: Mapping[str, Any]) -> bool:
    return all(type(n) is int and n >= 1 for n in found.values())


def _of_classes(row: Mapping[str, Any]) -> bool:
    lists: list[Any] = [row.get(name) for name in ("confusion", *_OF_CLASSES)]
    if not all(isinstance(found, list) for found in lists) or row.get("accuracy") is None:
        return False
    counts, names, *scores = lists
    square = all(
        isinstance(line, list)
        and len(line) == len(names)
        and all(isinstance(count, int) for count in line)
        for line in counts
    )
    numbers = all(isinstance(x, int | float) for found in scores for x in found)
    return square and numbers and len({len(found) for found in lists}) == 1
