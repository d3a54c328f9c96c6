"""Values of a config that are nested: `eval.sets`, `optim.paths`, `eval.at` and `save.at`.

A set that is evaluated beside what is held out is {"name": NAME, "path": FILE}, perhaps with
"examples", how many of it (none: as eval.examples says, else all), and in a resolved config with
the "digest" of its content. NAME becomes a column, loss/NAME; that of what is held out is
loss/heldout.

A rule by path is [PATTERN, "frozen"], or [PATTERN, {"lr": FACTOR, "decay": FACTOR}], for the
parameters whose path ends as the regular expression says (see research/params.py).

A moment is a step, or a share of the run ("10%"), or "powers of 2" (of any number from 1.1 on).
"""

import re
from collections.abc import Iterator, Mapping

HELDOUT = "heldout"  # the name of what the data set itself holds out
MOST_SETS = 8
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,19}")
NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
MOMENT = re.compile(rf"powers of (?P<base>{NUMBER})|(?P<percent>{NUMBER})\s?%")
KEYS = ("name", "path", "examples", "digest")
LEAST, MOST = 2.0**-126, 2.0**127  # a factor, as a program in float32 sees it


def set_problems(path: str, value: object, hint: str) -> Iterator[str]:
    """What is wrong with a list of sets."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        yield f"{path}: {value!r:.60} is no list of objects{hint}"
        return
    if not 0 < len(value) <= MOST_SETS:
        yield f"{path}: {len(value)} sets; expected 1 to {MOST_SETS}, or none"
    names = [str(one.get("name")) for one in value]
    for one, name in zip(value, names):
        where = f"{path}: {name:.30}"
        for key in [key for key in one if key not in KEYS]:
            yield f"{where}: has a key {key!r:.30}; expected name, path and perhaps examples"
        if not isinstance(one.get("name"), str) or not NAME.fullmatch(name) or name == HELDOUT:
            yield (
                f"{path}: {one.get('name')!r:.60} names a set; expected a letter, then at most 19 "
                f"letters, digits, _ . or -, and not {HELDOUT}"
            )
        if names.count(name) > 1:
            yield f"{where}: is the name of two sets"
        if not isinstance(file := one.get("path"), str) or not file or "\0" in file:
            yield f"{where}: path is {file!r:.60}; expected a file"
        examples = one.get("examples")
        if examples is not None and (type(examples) is not int or not 0 < examples < 2**31):
            yield f"{where}: examples is {examples!r:.30}; expected a whole number of at least 1"
        if not isinstance(one.get("digest", ""), str):
            yield f"{where}: digest is {one['digest']!r:.30}; expected text, or leave it out"


def headline_problems(flat: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with `eval.headline`, the set whose metrics are those of a run."""
    sets, headline = flat.get("eval.sets"), flat.get("eval.headline")
    if sets is None:
        yield f"eval.headline: {headline!r:.60}, but there are no eval.sets; expected none"
        return
    names = [HELDOUT, *(str(one["name"]) for one in sets)]  # type: ignore[union-attr, index]
    if headline is not None and headline not in names:
        yield f"eval.headline: {headline!r:.60}; expected one of {', '.join(names)}, or none"


def path_problems(path: str, value: object, hint: str) -> Iterator[str]:
    """What is wrong with a list of rules by path."""
    pairs = isinstance(value, list | tuple) and len(value) and all(map(_is_pair, value))
    if not pairs:
        yield f"{path}: {value!r:.60} is no list of pairs{hint}"
        return
    for pattern, rule in value:  # type: ignore[union-attr]
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"{path}: {pattern!r:.60} is no regular expression: {error}"
        if rule == "frozen":
            continue
        if not isinstance(rule, Mapping) or not rule or not rule.keys() <= {"lr", "decay"}:
            yield f"{path}: {pattern!r:.60}: {rule!r:.60}; expected frozen, or factors lr, decay"
            continue
        for key, factor in rule.items():
            number = type(factor) in (int, float) and (LEAST <= factor < MOST or factor == 0)
            if not number or (key == "lr" and factor == 0):
                words = "frozen, or a factor above 0" if key == "lr" else "a factor of at least 0"
                words += ", in float32"
                yield f"{path}: {pattern!r:.60}: {key} is {factor!r:.30}; expected {words}"


def _is_pair(entry: object) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)


def moment_problems(path: str, value: object, hint: str) -> Iterator[str]:
    """What is wrong with a list of moments of a run."""
    if not isinstance(value, list | tuple) or not value:
        yield f"{path}: {value!r:.60} is no list of moments{hint}"
        return
    for moment in value:
        if type(moment) is int and moment > 0:
            continue
        if not isinstance(moment, str) or not (found := MOMENT.fullmatch(moment)):
            yield f"{path}: {moment!r:.60} is no moment of a run{hint}"
        elif found["base"] and not 1.1 <= float(found["base"]) <= 1e6:
            yield f"{path}: powers of {found['base']:.20}; expected those of a number from 1.1 on"
        elif found["percent"] and not 0 < float(found["percent"]) <= 100:
            yield f"{path}: {moment:.20}; expected more than 0% and at most 100%"


PROBLEMS = {"EvalSets": set_problems, "PathRules": path_problems, "Moments": moment_problems}
