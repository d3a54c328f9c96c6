"""What a config says of the optimizer for some parameters, by their paths (`optim.paths`): factors
of the learning rate and of the weight decay, or that they are frozen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import BadInput
from research.models import Model
from research.params import leaves_by_path, matching_rows
from research.training.transfer import Factors, Transfer

SHOWN = 8  # paths in a message


def with_paths(
    rules: Sequence[Sequence[Any]],
    transfer: Transfer | None,
    model: Model,
    inputs: Any,
    words: str,
) -> tuple[Transfer, str]:
    """`transfer` with the `rules` of a checked config beside it, and these after its `words`. The
    factors are static, a part of the compiled step. Weight decay is coupled, so the factor of the
    rate is one of the decay, too; a frozen parameter has neither gradient, decay nor optimizer
    state.

    Raises BadInput for a pattern that no parameter matches, for a parameter that two match, and
    where nothing is left to train."""
    leaves = leaves_by_path(model.shapes(inputs))
    table = [(str(pattern), rule) for pattern, rule in rules]
    factors = dict(transfer.factors if transfer else ((path, Factors()) for path in leaves))
    taken: dict[str, list[str]] = {pattern: [] for pattern, _ in table}
    frozen, problems = set(), []
    for path in leaves:
        hits = matching_rows(table, path)
        if len(hits) > 1:
            patterns = ", ".join(repr(pattern) for pattern, _ in hits)
            problems.append(f"optim.paths: parameter {path!r} matches {patterns}; expected one")
        for pattern, rule in hits:
            taken[pattern].append(path)
            if rule == "frozen":
                frozen.add(path)
            else:
                own = factors[path]
                lr, decay = own.lr * rule.get("lr", 1.0), own.decay * rule.get("decay", 1.0)
                factors[path] = own._replace(lr=lr, decay=decay)
    for pattern, paths in taken.items():
        if not paths:
            there = ", ".join(list(leaves)[:SHOWN]) + (", …" if len(leaves) > SHOWN else "")
            problems.append(f"optim.paths: {pattern!r} matches no parameter; there are {there}")
    if frozen == leaves.keys():
        problems.append("optim.paths: every parameter is frozen; expected one to train")
    if problems:
        raise BadInput(*problems)
    lines = [_words(pattern, rule, taken[pattern], leaves) for pattern, rule in table]
    said = "\n".join(filter(None, [words, *lines]))
    return Transfer(tuple(factors.items()), frozenset(frozen)), said


def _words(pattern: str, rule: Any, paths: Sequence[str], leaves: Mapping[str, Any]) -> str:
    how = rule if rule == "frozen" else ", ".join(f"{key} x {x:g}" for key, x in rule.items())
    count = sum(math.prod(leaves[path].shape) for path in paths)
    return f"optim.paths: {pattern}: {how} ({len(paths)} arrays, {count:,} parameters)"
