"""What a traced program holds, computes and moves on one device of a mesh; nothing is compiled.

The program is traced for the rows of one device, so the axes data and fsdp are in its shapes. The
axis tensor is not: here each value gets the dimension that this axis splits, from the parameters on
through every operation, as a partitioner would. Whatever a model, its task and its optimizer come
to is read from the operations alone, so no formula is kept beside the code that it would describe.

Memory is what is live in the order of the program. Chains of elementwise operations are one kernel,
of which only the ends are written; loops hold what they stack and, once, what their body needs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

# One pass over their operands, fused with their like. What `pad` makes is written, though: that is
# what XLA was seen to do.
_CHEAP = frozenset(
    "add sub mul neg min abs sign and or not xor eq ne lt le gt ge select_n clamp square "
    "integer_pow convert_element_type broadcast_in_dim iota copy stop_gradient is_finite floor ceil "
    "round add_any reduce_precision real imag slice dynamic_slice concatenate transpose rev "
    "sharding_constraint reshape squeeze expand_dims split".split()
)
# The same, but not worth doing twice: written where several read them.
_DEAR = frozenset(
    "max div exp exp2 expm1 log log1p tanh logistic sqrt rsqrt cbrt erf erf_inv erfc sin cos tan pow "
    "atan2 rem nextafter".split()
)
_SAME = frozenset("reshape squeeze expand_dims copy sharding_constraint stop_gradient".split())
_REDUCES = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split()
)
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LOOPS = frozenset(("scan", "while", "cond", "shard_map"))


class Value:
    """An array of the program: `shape` and `size` (bytes) as traced; `split`, the dimension that
    the tensor axis splits, if any; `ways`, over how many devices it lies in all, where that is not
    told by `split`; `partial`, whether devices of the tensor axis hold terms of a sum; `summed`,
    whether it is one turn's gradient, which devices with other rows add up."""

    __slots__ = ("kind", "partial", "shape", "size", "split", "summed", "ways")

    def __init__(self, aval: Any, split: int | None = None):
        self.shape = tuple(getattr(aval, "shape", ()))
        item = getattr(getattr(aval, "dtype", None), "itemsize", 4)
        self.size, self.split, self.ways, self.kind = math.prod(self.shape) * item, split, 0, ""
        self.partial = self.summed = False


class Op(NamedTuple):
    """An operation, or a loop with the operations of its `bodies`, done `times`."""

    name: str
    ins: list[Value]
    outs: list[Value]
    params: Mapping[str, Any]
    bodies: tuple["Level", ...] = ()
    times: int = 1


class Level(NamedTuple):
    """Operations in their order, with what goes in and comes out. Of `outs`, those from `stacked`
    on are written to a stack one by one; those before go on to the next turn."""

    ops: list[Op]
    ins: list[Value]
    outs: list[Value]
    stacked: int = 0


class Kernel(NamedTuple):
    """One kernel on one device: FLOPs of its products, bytes that it reads and writes, how often
    it runs, and the bytes of its result that the devices of the tensor axis must add up."""

    flops: float
    moved: float
    times: int
    summed: float = 0.0


class Program:
    """A traced program (`jaxpr`, closed) on one device of a mesh with `tensor` devices on that axis
    and `rows` among which examples are split.

    `lies` says of the first inputs, and of the outputs of the same numbers, which dimension the
    tensor axis splits and over how many devices they lie in all. Arrays for which
    `unwritten(shape)` is true stay inside a kernel. `names` ({size of a last dimension: kind}) tell
    kinds of memory apart.
    """

    def __init__(
        self,
        jaxpr: Any,
        lies: Sequence[tuple[int | None, int]],
        tensor: int,
        rows: int = 1,
        unwritten: Callable[[tuple], bool] = lambda shape: False,
        names: Mapping[int, str] | None = None,
    ):
        self.tensor, self.rows, self.unwritten = tensor, rows, unwritten
        self.names = names or {}
        self.summed: dict[int, float] = {}
        self.kept = len(lies)
        ins = [Value(v.aval) for v in jaxpr.jaxpr.invars]
        for value, (split, ways) in zip(ins, lies, strict=False):
            value.split, value.ways = split, ways
        self.level = self._level(jaxpr.jaxpr, ins)
        for out, (split, ways) in zip(self.level.outs, lies, strict=False):
            out.split, out.ways = split, ways
        self._lay(self.level)

    # Building: operations with splits.

    def _level(self, jaxpr: Any, ins: list[Value]) -> Level:
        ops: list[Op] = []
        outs = self._inline(jaxpr, ins, ops)
        for v in outs:
            self._add_up(v)
        return Level(_needed(ops, outs), ins, outs)

    def _inline(self, jaxpr: Any, ins: list[Value], ops: list[Op]) -> list[Value]:
        env = dict(zip(jaxpr.invars, ins, strict=True))
        env |= {v: Value(v.aval) for v in jaxpr.constvars}

        def value(v: Any) -> Value:
            return Value(v.aval) if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            given, name = [value(v) for v in eqn.invars], eqn.primitive.name
            inner = next((eqn.params[k] for k in _CALLS if k in eqn.params), None)
            if inner is not None and name not in _LOOPS:
                inner = getattr(inner, "jaxpr", inner)
                outs = self._inline(inner, given, ops)
            else:
                outs = [Value(v.aval) for v in eqn.outvars]
                op = self._loop(name, eqn.params, given, outs) or Op(name, given, outs, eqn.params)
                if not op.bodies:
                    self._spread(op)
                ops.append(op)
            env |= dict(zip(eqn.outvars, outs, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def _lay(self, level: Level) -> None:
        """What comes to a parameter by operations on each element lies where the parameter lies:
        updates, and gradients up to the products that they come from, in loops too."""
        for op in reversed(level.ops):
            out = op.outs[0]
            if op.name in _CHEAP or op.name in _DEAR:
                order = op.params["permutation"] if op.name == "transpose" else range(len(out.shape))
                for v in op.ins:
                    if out.ways and not v.ways and len(v.shape) == len(out.shape):
                        if v.shape == tuple(out.shape[list(order).index(d)] for d in range(len(order))):
                            v.ways, v.kind = out.ways, "gradients"
                            v.split = None if out.split is None else order[out.split]
            for body in op.bodies:
                for out, inner in zip(op.outs[: body.stacked], body.outs, strict=False):
                    inner.ways, inner.split, inner.kind = out.ways, out.split, out.kind
                for out, inner in zip(op.outs, body.outs, strict=False):
                    inner.summed = bool(out.ways) and out.shape != inner.shape
                for v, inner in zip(op.ins, body.ins, strict=False):
                    if v.shape == inner.shape:
                        inner.ways = v.ways
                self._lay(body)

    def _loop(self, name: str, params: Mapping, ins: list[Value], outs: list[Value]) -> Op | None:
        if name == "scan":
            return self._scan(params, ins, outs)
        if name == "while":
            skip, consts = params["cond_nconsts"], params["body_nconsts"]
            body = self._turns(params["body_jaxpr"], ins[skip:], consts, len(outs), ())
            for out, made in zip(outs, body.outs, strict=True):
                out.split = made.split
            return Op(name, ins[skip:], outs, params, (body,))
        if name == "cond":
            bodies = [self._level(b.jaxpr, ins[1:]) for b in params["branches"]]
            for out, *made in zip(outs, *(b.outs for b in bodies), strict=True):
                out.split = next((m.split for m in made if m.split is not None), None)
            return Op(name, ins, outs, params, tuple(bodies))
        return None

    def _scan(self, params: Mapping, ins: list[Value], outs: list[Value]) -> Op:
        consts, carries = params["num_consts"], params["num_carry"]
        xs = ins[consts + carries :]
        body = self._turns(params["jaxpr"], ins[: consts + carries], consts, carries, xs)
        for i, (out, made) in enumerate(zip(outs, body.outs, strict=True)):
            stacked = i >= carries
            out.split = made.split if made.split is None or not stacked else made.split + 1
            if stacked:
                out.kind = "kept"
        return Op("scan", ins, outs, params, (body,), params["length"])

    def _turns(
        self, closed: Any, ins: list[Value], consts: int, carries: int, xs: Sequence[Value]
    ) -> Level:
        """The body of a loop; what it carries is split as it comes out, if it comes in whole."""
        splits = [v.split for v in ins]
        splits += [None if v.split is None else v.split - 1 if v.split else None for v in xs]
        for _ in range(3):
            given = [Value(v.aval, s) for v, s in zip(closed.jaxpr.invars, splits, strict=True)]
            level = self._level(closed.jaxpr, given)
            found = [v.split for v in level.outs[:carries]]
            now = splits[consts : consts + carries]
            better = [b if a is None else a for a, b in zip(now, found, strict=True)]
            if better == now:
                break
            splits[consts : consts + carries] = better
        return level._replace(stacked=carries)

    def _spread(self, op: Op) -> None:
        """The splits of what an operation makes. Terms of one sum are added on each device before
        they are added up over devices."""
        terms = [v for v in op.ins if v.partial]
        same = op.name in ("convert_element_type", *_SAME) and op.name != "sharding_constraint"
        passed = bool(terms) and (same or (op.name in ("add", "add_any") and len(terms) == 2))
        for v in () if passed else terms:
            self._add_up(v)
        for out in op.outs:
            out.split, summed = _split(op, out)
            out.partial = self.tensor > 1 and (summed or passed)

    def _add_up(self, value: Value) -> None:
        if value.partial:
            self.summed[id(value)], value.partial = float(self.bytes(value)), False

    # Reading: memory and kernels.

    def bytes(self, value: Value) -> float:
        """On one device."""
        if self.unwritten(value.shape):
            return 0.0
        ways = value.ways or (self.tensor if value.split is not None else 1)
        return value.size / ways

    def peak(self) -> dict[str, float]:
        """Bytes on one device, by kind, where the program holds most besides its inputs: kinds
        "gradients", "kept" (stacked by one loop for another), "workspace", and those of `names`.
        The outputs that lie as inputs do are written in their place."""
        return self._peak(self.level, {id(v) for v in self.level.outs[: self.kept]}, True)

    def _peak(self, level: Level, free: set[int], top: bool = False) -> dict[str, float]:
        written, last = _lives(level, top)
        ends: dict[int, list[Value]] = {}
        sizes = {id(v): 0.0 if id(v) in free else self.bytes(v) for v in written.values()}
        if self.rows > 1:  # the gradients of a turn are added up together: what goes in, what comes
            for key, v in written.items():
                if v.summed:
                    sizes[key], last[key] = 2 * sizes[key], len(level.ops)
        for key, index in last.items():
            ends.setdefault(index, []).append(written[key])
        live: dict[int, tuple[str, float]] = {}
        most, found = -1.0, {}
        total = 0.0
        for index, op in enumerate(level.ops):
            made = [v for v in op.outs if id(v) in written]
            inner: dict[str, float] = {}
            for body in op.bodies:
                one = self._peak(body, _in_place(body, op))
                inner = max(inner, one, key=lambda part: sum(part.values()))
            dying = [v for v in ends.get(index, ()) if id(v) in live and v not in made]
            reused = 0.0
            if op.name in _CHEAP or op.name in _DEAR or op.bodies:
                gone = sorted((live[id(v)][1] for v in dying), reverse=True)
                for v in sorted(made, key=lambda v: -sizes[id(v)]):
                    hit = next((s for s in gone if s == sizes[id(v)]), None)
                    if hit:
                        gone.remove(hit)
                        reused += hit
            for v in made:
                live[id(v)] = (self._kind(v), sizes[id(v)])
                total += sizes[id(v)]
            extra = self._gathered(op)
            here = total - reused + sum(inner.values()) + extra
            if here > most:
                most, found = here, {}
                for kind, size in live.values():
                    found[kind] = found.get(kind, 0.0) + size
                for kind, size in inner.items():
                    found[kind] = found.get(kind, 0.0) + size
                found["workspace"] = found.get("workspace", 0.0) + extra - reused
            for v in ends.get(index, ()):
                if id(v) in live:
                    total -= live.pop(id(v))[1]
        return found

    def _kind(self, value: Value) -> str:
        if value.kind:
            return value.kind
        last = value.shape[-1] if len(value.shape) > 1 else None
        return self.names.get(last, "workspace")  # type: ignore[arg-type]

    def _gathered(self, op: Op) -> float:
        """What a kernel needs whole of a parameter that lies on several devices."""
        if op.bodies or op.name in _CHEAP or op.name in _DEAR:
            return 0.0
        out = 0.0
        for v in (*op.ins, *op.outs):
            if v.ways and op.name.startswith("dot"):
                out += v.size / (self.tensor if v.split is not None else 1) - v.size / v.ways
        return out

    def kernels(self, level: Level | None = None, times: int = 1) -> Iterator[Kernel]:
        """All kernels of the program."""
        level = level or self.level
        written, _ = _lives(level, True)
        sources: dict[int, set[int]] = {}
        sizes = {id(v): self.bytes(v) for op in level.ops for v in (*op.ins, *op.outs)}
        for op in level.ops:
            for body in op.bodies[:1]:
                yield from self.kernels(body, times * op.times)
            if op.bodies:
                continue
            read: set[int] = set()
            for v in op.ins:
                read |= sources.get(id(v), {id(v)})
            for v in op.outs:
                if id(v) in written:
                    moved = sizes[id(v)] + sum(min(sizes[k], _most(op, sizes)) for k in read)
                    yield Kernel(self._flops(op), moved, times, self.summed.get(id(v), 0.0))
                else:
                    sources[id(v)] = read

    def _flops(self, op: Op) -> float:
        """Of a product on one device: a multiply and an add are two."""
        if op.name == "dot_general":
            (contracted, _), _ = op.params["dimension_numbers"]
            inner = math.prod(op.ins[0].shape[d] for d in contracted)
            whole = 2.0 * math.prod(op.outs[0].shape) * inner
            halves = [v.split is not None for v in (*op.ins, *op.outs)]
            return whole / (self.tensor if any(halves) else 1)
        if op.name == "conv_general_dilated":
            spec = op.params["dimension_numbers"].rhs_spec
            inner = math.prod(op.ins[1].shape) // op.ins[1].shape[spec[0]]
            whole = 2.0 * math.prod(op.outs[0].shape) * inner
            return whole / (self.tensor if op.outs[0].split is not None else 1)
        return 0.0


def _in_place(body: Level, op: Op) -> set[int]:
    """What a loop carries and works out from itself by element takes the place of what it was."""
    first = op.params.get("num_consts", op.params.get("body_nconsts", 0))
    sources: dict[int, set[int]] = {}
    for inner in body.ops:
        for v in inner.outs:
            own = inner.name in _CHEAP or inner.name in _DEAR
            read = set().union(*(sources.get(id(i), {id(i)}) for i in inner.ins)) if own else set()
            sources[id(v)] = read
    carried = zip(body.ins[first:], body.outs[: body.stacked], strict=False)
    return {id(out) for was, out in carried if id(was) in sources.get(id(out), {id(out)})}


def _most(op: Op, sizes: Mapping[int, float]) -> float:
    """What one operand can give: a slice or a lookup reads no more than it makes."""
    if op.name in ("dynamic_slice", "gather", "slice"):
        return sum(sizes[id(v)] for v in op.outs)
    return math.inf


def _needed(ops: list[Op], outs: Sequence[Value]) -> list[Op]:
    """Without operations whose results nobody reads."""
    read, kept = {id(v) for v in outs}, []
    for op in reversed(ops):
        if any(id(v) in read for v in op.outs):
            kept.append(op)
            read |= {id(v) for v in op.ins}
    return kept[::-1]


def _lives(level: Level, outputs_live: bool) -> tuple[dict[int, Value], dict[int, int]]:
    """The values that are written to memory, and the operation after which each is gone."""
    readers: dict[int, list[int]] = {}
    for index, op in enumerate(level.ops):
        for v in op.ins:
            readers.setdefault(id(v), []).append(index)
    outs = {id(v) for v in level.outs}
    for index in range(len(level.ops) - 1, -1, -1):  # who reads another view of it reads it
        op = level.ops[index]
        if _is_view(op):
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
                made = level.ops[reader].outs
                for m in made:
                    end = max(end, reader if id(m) in written else ends.get(id(m), reader))
            if id(v) in carried:
                end = len(level.ops)
            ends[id(v)] = end
            if _is_written(op, v, after, level, id(v) in outs):
                written[id(v)], last[id(v)] = v, end
    return written, last


def _is_written(op: Op, v: Value, after: list[int], level: Level, is_out: bool) -> bool:
    if op.bodies:
        return True
    if _is_view(op):
        return False
    if not (op.name in _CHEAP or op.name in _DEAR):
        return True
    if is_out:
        return True
    readers = [level.ops[i] for i in set(after) if not _is_view(level.ops[i])]
    if op.name in _DEAR and len(readers) > 1:
        return True
    fused = (*_CHEAP, *_DEAR, *_REDUCES)
    return any(reader.name not in fused for reader in readers)


def _is_view(op: Op) -> bool:
    return op.name in _SAME and bool(op.ins) and op.ins[0].size == op.outs[0].size


def _split(op: Op, out: Value) -> tuple[int | None, bool]:
    """The dimension of `out` that the tensor axis splits, and whether its parts must be added."""
    split = [v.split for v in op.ins]
    if all(s is None for s in split):
        return None, False
    name, params = op.name, op.params
    if name == "dot_general":
        return _dot_split(op)
    if name in _REDUCES:
        (at,), axes = split[:1], params["axes"]
        if at is None:
            return None, False
        return (None, True) if at in axes else (at - sum(a < at for a in axes), False)
    if name == "sharding_constraint":
        return _constraint(params["sharding"].spec, len(out.shape)), False
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped(op.ins[0].shape, split[0], out.shape), False
    if name == "broadcast_in_dim":
        at = split[0]
        return (None if at is None else params["broadcast_dimensions"][at]), False
    if name == "transpose":
        at = split[0]
        return (None if at is None else params["permutation"].index(at)), False
    if name == "gather":
        return None, split[0] is not None
    if name.startswith("scatter") or name.startswith("dynamic_update"):
        return next((s for s in split if s is not None and s < len(out.shape)), None), False
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"]
        return (spec.out_spec[1] if split[1] == spec.rhs_spec[0] else None), False
    for v in op.ins:  # elementwise, slices, cumulative sums: dimension for dimension
        if v.split is not None and len(v.shape) == len(out.shape):
            return v.split, False
    return None, False


def _dot_split(op: Op) -> tuple[int | None, bool]:
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    left, right = op.ins
    free_left = [d for d in range(len(left.shape)) if d not in (*lc, *lb)]
    free_right = [d for d in range(len(right.shape)) if d not in (*rc, *rb)]
    for split, batch, free, start in (
        (left.split, lb, free_left, len(lb)),
        (right.split, rb, free_right, len(lb) + len(free_left)),
    ):
        if split in batch:
            return list(batch).index(split), False
        if split in free:
            return start + free.index(split), False
    return None, True


def _constraint(spec: Any, rank: int) -> int | None:
    axes = list(spec)
    at = [i for i, a in enumerate(axes) if a == "tensor" or (isinstance(a, tuple) and "tensor" in a)]
    return at[0] if at else None


def _reshaped(before: tuple, split: int | None, after: tuple) -> int | None:
    """The dimension of `after` that begins where the one that is split did."""
    if split is None:
        return None
    start, at = math.prod(before[:split]), 1
    for i, size in enumerate(after):
        if at == start and size > 1:
            return i
        at *= size
    return None
