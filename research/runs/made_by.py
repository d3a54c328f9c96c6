"""What made the steps of a run: the code and the settings of its first launch, and of those that
continued it otherwise.

continued.json, in the directory of a run that was continued otherwise:
    {"launches": [{"step", "accepted": [...], "told": [...], "made_by": {...}}]}

A difference that can change what a run means, in the code that training loads or in numbers as jax
makes them, is refused unless it is accepted. One that can change bits alone (versions, devices,
another commit of the same code) is told.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import BadInput, Damaged, printable
from research.io import files, source
from research.runs import checkpoint
from research.runs.directory import CONTINUED, RunDirectory, read_launch, read_run_file

MEANING = (  # of jax_config
    *("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable"),
    *("jax_enable_custom_prng", "jax_random_seed_offset", "jax_high_dynamic_range_gumbel"),
    *("jax_default_matmul_precision", "NVIDIA_TF32_OVERRIDE"),
)
BITS = ("commit", "platform", "device_kind", "cores", "instructions", "xla_flags")
COMPARED = ("code", "source", "jax_config", "versions", *BITS)
SHOWN = 12  # files that are listed


class Differences(NamedTuple):
    """A line for each field: those that are refused unless accepted, and those that are told."""

    refused: list[str]
    told: list[str]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> Differences:
    """How `now` differs from what made a run, as launch.json has it."""
    refused, told = _code(before, now, workdir)
    for name, change in _changed(before, now, "jax_config"):
        (refused if name in MEANING else told).append(f"{name}: {change}")
    told += [f"{name} {change}" for name, change in _changed(before, now, "versions")]
    for name in BITS:
        if name in before and before[name] != now.get(name):
            told.append(f"{name}: {_word(before[name])} -> {_word(now.get(name))}")
    return Differences(refused, told)


def _code(before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> Differences:
    if "code" not in before:
        return Differences([], ["code: the launch that began it did not record it"])
    if before.get("source") == now["source"]:
        return Differences([], [])
    there, here = _listed(workdir, before.get("source")), source.library().files
    if there is None:
        if before["code"] == now["code"]:
            return Differences([], ["code: files changed that training does not load"])
        line = f"code: {_word(before['code'])} -> {now['code']}; the list of its files is not there"
        return Differences([line], [])
    refused, told = [], []
    for path in sorted(p for p in there.keys() | here.keys() if there.get(p) != here.get(p)):
        change = "is new" if path not in there else "is gone" if path not in here else "changed"
        line = f"code: {_word(path)} {change}"
        if _is_loaded(path):
            refused.append(line)
        else:
            told.append(f"{line}, which this run does not load")
    return Differences(_shorten(refused), _shorten(told))


def _is_loaded(path: str) -> bool:
    """Whether a file of the library may decide what this process trains: training may load it, and
    it is loaded."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return path in source.library().training and name in sys.modules


def _listed(workdir: Path, digest: object) -> dict[str, str] | None:
    """{path: digest} of the library that another launch had, by its digest; None if that was not
    kept, or is not as it was written."""
    if not (isinstance(digest, str) and re.fullmatch(f"[0-9a-f]{{{source.DIGITS}}}", digest)):
        return None
    path = workdir / "code" / f"{digest}.json"
    try:
        listed = files.read_json(path, source.LARGEST, follow=False)["files"]
        return listed if files.digest_of(listed)[: source.DIGITS] == digest else None
    except (BadInput, KeyError, TypeError):
        return None


def _shorten(lines: Sequence[str]) -> list[str]:
    left = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"code: {left} more files"] if left > 0 else [])]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """The name of what differs in an object that both have, and how."""
    there, here = before.get(key), now.get(key)
    if not isinstance(there, dict) or not isinstance(here, dict):
        return []
    names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    return [(_word(n), f"{_word(there.get(n))} -> {_word(here.get(n))}") for n in names]


def _word(value: object) -> str:
    return "none" if value is None or value == "" else printable(value)[:80]


def launches(run: Path) -> list[dict[str, Any]]:
    """The launches that continued a run otherwise. Raises Damaged."""
    if not (path := run / CONTINUED).exists():
        return []
    out = read_run_file(path).get("launches")
    shape = {"step": int, "accepted": list, "told": list, "made_by": dict}
    if not isinstance(out, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in shape.items())
        for entry in out
    ):
        raise Damaged(f"{path}: not a list of launches; remove it to forget what continued the run")
    return out


def latest(run: Path, step: int) -> dict[str, Any]:
    """What made the steps of a run up to `step`, of which there must be some: its first launch, or
    the last one that continued it before."""
    later = [entry["made_by"] for entry in launches(run) if entry["step"] < step]
    return {**(read_launch(run) or {}), **(later[-1] if later else {})}


def check(directory: RunDirectory, now: Mapping[str, Any], warn: Callable[..., None]) -> None:
    """Tell how `now` differs from what made the steps of a run that are saved. Raises BadInput
    where that can change what the run means, and was not accepted."""
    before = latest(directory.path, checkpoint.saved_steps(directory.path)[0])
    refused, told = differences(before, now, directory.workdir)
    if refused and not directory.accept_changes:
        raise BadInput(
            f"{directory.path}: what makes its steps has changed since they were made "
            f"({'; '.join(refused)}); go back to that, or continue with --accept_changes, which is "
            "recorded"
        )
    for line in (*(f"accepted: {line}" for line in refused), *told):
        warn("%s: %s", directory.path, line)


def record(directory: RunDirectory, step: int, now: Mapping[str, Any]) -> None:
    """Write down that the run is continued from `step`, if that is done otherwise than before."""
    there = launches(directory.path)
    kept = [entry for entry in there if entry["step"] < step]
    before = latest(directory.path, step)
    refused, told = differences(before, now, directory.workdir) if step else ([], [])
    if refused or told:
        lines = {"accepted": refused, "told": told}
        kept.append({"step": step, **lines, "made_by": dict(now)})
    if kept != there:
        directory.write(CONTINUED, {"launches": kept})


def summary(run: Path) -> dict[str, str]:
    """What the table says of a run that was continued otherwise: the `code` of all who made it, and
    where it was `continued` and how; {} of any other run."""
    if not (there := launches(run)):
        return {}
    made = (read_launch(run) or {}, *(entry["made_by"] for entry in there))
    codes = dict.fromkeys(_word(each.get("code")) for each in made)
    lines = (f"step {e['step']}: {'; '.join(map(str, e['accepted'] + e['told']))}" for e in there)
    return {"code": "+".join(codes), "continued": "\n".join(lines)}
