"""What a traced program holds at most, and its kernels, on one device.

Memory is what is live in the order of the program. Chains of elementwise operations are one kernel,
of which only the ends are written; loops hold what they stack and, once, what their body needs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from research.planning.jaxpr_sharding import (
    ELEMENTWISE,
    EXPENSIVE,
    REDUCTIONS,
    Level,
    Op,
    Program,
    Value,
    is_view,
)


class Kernel(NamedTuple):
    """One kernel on one device: FLOPs of its products, bytes that it reads and writes, how often
    it runs, and the bytes of its result that the devices of the tensor axis must add up."""

    flops: float
    moved: float
    times: int
    summed: float = 0.0


def peak_bytes(program: Program) -> dict[str, float]:
    """Bytes on one device, by kind, where the program holds most besides its inputs: kinds
    "gradients", "activations" (stacked by one loop for another), "workspace", and those of its
    names. Outputs laid out as the inputs overwrite them."""
    level = program.level
    return _level_peak(program, level, {id(v) for v in level.outs[: program.state_count]}, True)


def _level_peak(
    program: Program, level: Level, free: set[int], top: bool = False
) -> dict[str, float]:
    """`free` are the ids of values that take no place of their own."""
    written, last = _lifetimes(level, top)
    sizes = {id(v): 0.0 if id(v) in free else program.bytes(v) for v in written.values()}
    if program.rows > 1:  # a turn's gradients are added up together: what goes in and what comes
        makers = {id(v): op for op in level.ops for v in op.outs}
        for key, v in written.items():
            if v.summed:
                sizes[key], last[key] = _summed_bytes(program, v, makers), len(level.ops)
    ends: dict[int, list[Value]] = {}
    for key, index in last.items():
        ends.setdefault(index, []).append(written[key])
    # What loops stack begins as zeros, which wait for nothing: XLA makes all of them at once.
    stacks = [v for op in level.ops for body in op.bodies for v in op.outs[body.stacked :]]
    live: dict[int, tuple[str, float]] = {}
    by_kind: dict[str, float] = {}  # bytes of `live`, updated as it is: an op may be one of 10^5

    def allocate(values: Iterable[Value]) -> None:
        for v in values:
            if id(v) in written and id(v) not in live:
                kind, size = live[id(v)] = _memory_kind(program, v), sizes[id(v)]
                by_kind[kind] = by_kind.get(kind, 0.0) + size

    allocate(stacks)
    peak_bytes, peak = -1.0, {}
    for index, op in enumerate(level.ops):
        new = [v for v in op.outs if id(v) in written]
        dying = [live[id(v)][1] for v in ends.get(index, ()) if id(v) in live]
        allocate(new)
        turns = [_level_peak(program, body, _updated_in_place(body)) for body in op.bodies]
        inner = max(turns, key=lambda part: sum(part.values()), default={})
        reused = _reused_bytes(op, [sizes[id(v)] for v in new], dying)
        extra = _gathered_bytes(program, op) - reused
        here = sum(by_kind.values()) + sum(inner.values()) + extra
        if here > peak_bytes:
            peak_bytes, peak = here, by_kind.copy()
            for kind, size in (("workspace", extra), *inner.items()):
                peak[kind] = peak.get(kind, 0.0) + size
        for v in ends.get(index, ()):
            if id(v) in live:
                kind, size = live.pop(id(v))
                by_kind[kind] -= size
    return peak


def _summed_bytes(program: Program, value: Value, makers: Mapping[int, Op]) -> float:
    """Of a gradient that devices with other rows add up: its terms, and the sum. On GPUs the terms
    are in the type of their product, and of the sum each device gets its part alone."""
    term, part = program.bytes(value), value.size / value.summed
    if program.platform != "gpu":
        return 2 * term
    while (op := makers.get(id(value))) and op.name in ELEMENTWISE and len(op.ins) == 1:
        value = op.ins[0]
        term = min(term, program.bytes(value))
    return term + part


def _reused_bytes(op: Op, new: list[float], dying: list[float]) -> float:
    """Bytes that are written in the place of what is read for the last time."""
    if op.name not in ELEMENTWISE and not op.bodies and not op.name.startswith("scatter"):
        return 0.0
    out, freed = 0.0, list(dying)
    for size in new:
        if size in freed:
            freed.remove(size)
            out += size
    return out


def _memory_kind(program: Program, value: Value) -> str:
    last = value.shape[-1] if len(value.shape) > 1 else -1
    return value.kind or program.names.get(last, "workspace")


def _gathered_bytes(program: Program, op: Op) -> float:
    """What a product needs, or makes, whole of a parameter that lies on several devices."""
    if not op.name.startswith("dot"):
        return 0.0
    slices = [(v, program.tensor if v.split is not None else 1) for v in (*op.ins, *op.outs)]
    return sum(v.size / ways - v.size / v.ways for v, ways in slices if v.ways)


def list_kernels(program: Program, level: Level | None = None, times: int = 1) -> Iterator[Kernel]:
    """All kernels of the program, or of one level of it."""
    level = level or program.level
    written, _ = _lifetimes(level, True)
    sources: dict[int, set[int]] = {}
    sizes = {id(v): program.bytes(v) for op in level.ops for v in (*op.ins, *op.outs)}
    for v in (v for op in level.ops if op.name.startswith("dot") for v in op.ins if v.ways):
        sizes[id(v)] = v.size / (program.tensor if v.split is not None else 1)  # once gathered
    for op in level.ops:
        if op.bodies:
            yield from list_kernels(program, op.bodies[0], times * op.times)
            continue
        read = set().union(*(sources.get(id(v), {id(v)}) for v in op.ins))
        for v in op.outs:
            if id(v) in written:
                moved = sizes[id(v)] + sum(min(sizes[k], _read_limit(op, sizes)) for k in read)
                yield Kernel(_flops(program, op), moved, times, v.added)
            else:
                sources[id(v)] = read
                if v.added:
                    yield Kernel(0.0, 0.0, times, v.added)


def _flops(program: Program, op: Op) -> float:
    """Of a product on one device: a multiply and an add are two."""
    if op.name == "dot_general":
        (contracted, _), _ = op.params["dimension_numbers"]
        inner = math.prod(op.ins[0].shape[d] for d in contracted)
    elif op.name == "conv_general_dilated":
        spec = op.params["dimension_numbers"].rhs_spec
        inner = math.prod(op.ins[1].shape) // op.ins[1].shape[spec[0]]
    else:
        return 0.0
    whole = 2.0 * math.prod(op.outs[0].shape) * inner
    split = any(v.split is not None for v in (*op.ins, *op.outs))
    return whole / (program.tensor if split else 1)


def _updated_in_place(body: Level) -> set[int]:
    """What a loop carries and works out from itself by element takes the place of what it was."""
    sources: dict[int, set[int]] = {}
    for inner in body.ops:
        for v in inner.outs:
            own = inner.name in ELEMENTWISE
            read = set().union(*(sources.get(id(i), {id(i)}) for i in inner.ins)) if own else set()
            sources[id(v)] = read
    carried = zip(body.ins[body.first :], body.outs[: body.stacked], strict=False)
    return {id(out) for was, out in carried if id(was) in sources.get(id(out), {id(out)})}


def _read_limit(op: Op, sizes: Mapping[int, float]) -> float:
    """What one operand can give: a slice or a lookup reads no more than it makes."""
    if op.name in ("dynamic_slice", "gather", "slice"):
        return sum(sizes[id(v)] for v in op.outs)
    return math.inf


def _lifetimes(level: Level, outputs_live: bool) -> tuple[dict[int, Value], dict[int, int]]:
    """The values that are written to memory, and the operation after which each is gone."""
    readers: dict[int, list[int]] = {}
    for index, op in enumerate(level.ops):
        for v in op.ins:
            readers.setdefault(id(v), []).append(index)
    outs = {id(v) for v in level.outs}
    for index in range(len(level.ops) - 1, -1, -1):  # who reads another view of it reads it
        op = level.ops[index]
        if is_view(op):
            readers.setdefault(id(op.ins[0]), []).extend(readers.get(id(op.outs[0]), []))
            if id(op.outs[0]) in outs:
                outs.add(id(op.ins[0]))
    carried = outs if outputs_live else {id(v) for v in level.outs[: level.stacked]}
    written: dict[int, Value] = {}
    last: dict[int, int] = {}
    ends: dict[int, int] = {}  # of any value: the last operation that reads what it stands for
    for index in range(len(level.ops) - 1, -1, -1):
        op = level.ops[index]
        for v in op.outs:
            after = readers.get(id(v), [])
            end = index
            for reader in after:
                results = level.ops[reader].outs
                for m in results:
                    end = max(end, reader if id(m) in written else ends.get(id(m), reader))
            if id(v) in carried:
                end = len(level.ops)
            ends[id(v)] = end
            if _is_written(op, after, level, id(v) in outs):
                written[id(v)], last[id(v)] = v, end
    return written, last


def _is_written(op: Op, after: list[int], level: Level, is_out: bool) -> bool:
    """Whether its results are written to memory, where the operations `after` read them."""
    if op.bodies:
        return True
    if is_view(op):
        return False
    if is_out or op.name not in ELEMENTWISE:
        return True
    readers = [level.ops[i] for i in set(after) if not is_view(level.ops[i])]
    if op.name in EXPENSIVE and len(readers) > 1:
        return True
    return any(reader.name not in ELEMENTWISE | REDUCTIONS for reader in readers)
