"""How often devices gather a parameter that the fsdp axis splits, by the traced step: once for each
product that reads it, in each turn of its loop, so once more where activations are recomputed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from research.models.parameter_sharding import GATHERED
from research.planning.jaxpr_sharding import ELEMENTWISE, Level, Op, Value


class Uses(NamedTuple):
    """In a step: `gathered`, the elements of all parameters, each as often as it is gathered;
    `rows`, bytes that one device looks up in a table, of whose gradient as many are exchanged;
    `added`, the elements whose gradients are added up, as they come from products."""

    gathered: float = 0.0
    rows: float = 0.0
    added: float = 0.0

    def __add__(self, other: "Uses") -> "Uses":  # type: ignore[override]
        return Uses(*(a + b for a, b in zip(self, other, strict=True)))


def parameter_uses(level: Level, parameters: Sequence[tuple[Value, float]], parts: int) -> Uses:
    """Of the step `level`, which takes its batch in `parts`; `parameters` are inputs of it, with
    the elements of each that devices with the same place on the tensor axis share."""
    uses = [_uses(level, {id(v): n}, 1)[0] for v, n in parameters]
    added = [parts * n for (_, n), one in zip(parameters, uses, strict=True) if one.added]
    return sum(uses, Uses())._replace(added=sum(added))


def _uses(level: Level, given: Mapping[int, float], times: int) -> tuple[Uses, dict[int, float]]:
    """The uses of one parameter, where `added` is 0 if no product reads it; `given` and what is
    returned beside it: the ids of values that are the parameter, or a part of it, with the elements
    of the whole."""
    found, same = Uses(), dict(given)
    for op in level.ops:
        held = [same[id(v)] for v in op.ins if id(v) in same]
        if not held:
            continue
        for body in op.bodies:
            outer = zip(op.ins[len(op.ins) - len(body.ins) :], body.ins, strict=True)
            inside = {id(b): same[id(v)] * _share(b, v) for v, b in outer if id(v) in same}
            more, made = _uses(body, inside, times * op.times)
            found += more
            stacked = list(zip(op.outs, body.outs, strict=False))[body.stacked :]
            same |= {id(v): made[id(b)] / _share(b, v) for v, b in stacked if id(b) in made}
        if op.name in ("dot_general", "conv_general_dilated"):
            found += Uses(times * sum(held), added=1.0)
        elif op.name == "gather":
            found += Uses(times * held[0], rows=times * float(op.outs[0].size))
        elif op.params.get("name") == GATHERED:
            found += Uses(times * held[0], added=1.0)
        elif not op.bodies and _is_passed(op):
            same[id(op.outs[0])] = held[0]
    return found, same


def _is_passed(op: Op) -> bool:
    """Whether what comes out is what went in, in another type, shape or scale."""
    alike = op.name in ELEMENTWISE or op.name == "optimization_barrier"
    return alike and _elements(op.outs[0]) == max(map(_elements, op.ins))


def _share(inner: Value, outer: Value) -> float:
    return _elements(inner) / _elements(outer)


def _elements(value: Value) -> int:
    return math.prod(value.shape)
