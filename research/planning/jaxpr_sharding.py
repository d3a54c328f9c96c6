"""A traced program as it is on one device of a mesh; nothing is compiled.

The program is traced for the rows of one device, so the axes data and fsdp are in its shapes. The
axis tensor is not: here each value gets the dimension that this axis splits, from the parameters on
through every operation, as a partitioner would. Whatever a model, its task and its optimizer come
to is read from the operations alone (see `jaxpr_liveness`), so no formula is kept beside the code
that it would describe.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
from jax.sharding import PartitionSpec

from research.models.parameter_sharding import GATHERED
from research.training.chunked_losses import OWN_ROWS

# One pass over their operands, fused with their like. What `pad` makes is written, though: that is
# what XLA was seen to do.
CHEAP = {
    *("add", "sub", "mul", "neg", "min", "abs", "sign", "and", "or", "not", "xor", "eq"),
    *("ne", "lt", "le", "gt", "ge", "select_n", "clamp", "square", "integer_pow"),
    *("convert_element_type", "broadcast_in_dim", "iota", "copy", "stop_gradient", "name"),
    *("is_finite", "floor", "ceil", "round", "add_any", "reduce_precision", "real", "imag"),
    *("slice", "dynamic_slice", "concatenate", "transpose", "rev", "sharding_constraint"),
    *("reshape", "squeeze", "expand_dims", "split"),
}
# The same, but not worth doing twice: written where several read them.
EXPENSIVE = {
    *("max", "div", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sqrt"),
    *("rsqrt", "cbrt", "erf", "erf_inv", "erfc", "sin", "cos", "tan", "pow", "atan2"),
    *("rem", "nextafter"),
}
ELEMENTWISE = CHEAP | EXPENSIVE
_VIEWS = {
    *("reshape", "squeeze", "expand_dims", "copy", "sharding_constraint", "stop_gradient", "name"),
}
CASTS = {"convert_element_type", "name", "copy"}
REDUCTIONS = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("argmax", "argmin"),
}
_UNCONSTRAINED = PartitionSpec.UNCONSTRAINED
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LOOPS = frozenset(("scan", "while", "cond", "shard_map"))
_KERNELS = frozenset(("pallas_call",))  # whose own program is of blocks and not of their operands


class Value:
    """An array of the program: `shape` and `size` (bytes) as traced; `split`, the dimension that
    the tensor axis splits, if any; `ways`, over how many devices it lies in all, where that is not
    told by `split`; `partial`, whether devices of the tensor axis hold terms of a sum; `added`, how
    many bytes they add up then; `sum_of`, the value whose terms it is the sum of; `summed`, of the
    gradient of one turn of a loop, which devices with other rows add up, over how many devices the
    sum lies; `on_host`, whether it is kept in the memory of the host."""

    __slots__ = (
        *("added", "kind", "on_host", "partial", "shape", "size", "split", "sum_of", "summed"),
        "ways",
    )

    def __init__(self, aval: Any, split: int | None = None):
        self.shape: tuple[int, ...] = tuple(getattr(aval, "shape", ()))
        item = getattr(getattr(aval, "dtype", None), "itemsize", 4)
        self.on_host = getattr(aval, "memory_space", None) == jax.memory.Space.Host
        self.size, self.split, self.ways, self.kind = math.prod(self.shape) * item, split, 0, ""
        self.partial, self.added, self.summed = False, 0.0, 0
        self.sum_of: Value | None = None


class Op(NamedTuple):
    """An operation, or a loop with the operations of its `bodies`, done `times`."""

    name: str
    ins: list[Value]
    outs: list[Value]
    params: Mapping[str, Any]
    bodies: tuple["Level", ...] = ()
    times: int = 1


class Level(NamedTuple):
    """Operations in order, with their inputs and outputs. In a loop body, `outs[stacked:]` are
    stacked over the iterations; the outputs before them are carried, in the place of
    `ins[first:]`."""

    ops: list[Op]
    ins: list[Value]
    outs: list[Value]
    stacked: int = 0
    first: int = 0


class Program:
    """A traced program (`jaxpr`, closed) on one device of a mesh with `tensor` devices on that axis
    and `rows` among which examples are split.

    `layouts` says of the first inputs, and of the outputs of the same numbers, which dimension the
    tensor axis splits and over how many devices they lie in all. Arrays whose last dimensions
    are `unwritten` are in a kernel and never materialized. `names`, {size of a last dimension:
    kind}, tells kinds of memory apart. What is put into the memory of the host takes none of the
    device, but on the `platform` "cpu", where XLA takes no notice of it.
    """

    def __init__(
        self,
        jaxpr: Any,
        layouts: Sequence[tuple[int | None, int]],
        tensor: int,
        rows: int = 1,
        unwritten: tuple[int, ...] = (),
        names: Mapping[int, str] | None = None,
        platform: str = "gpu",
    ):
        self.tensor, self.rows, self.unwritten = tensor, rows, unwritten
        self.platform = platform
        self.names = names or {}
        self.state_count = len(layouts)
        ins = [Value(v.aval) for v in jaxpr.jaxpr.invars]
        for value, (split, ways) in zip(ins, layouts, strict=False):
            value.split, value.ways = split, ways
        self.level = self._level(jaxpr.jaxpr, ins)
        for out, (split, ways) in zip(self.level.outs, layouts, strict=False):
            out.split, out.ways = split, ways
        self._lay_out_gradients(self.level)
        self._lay_out_casts(self.level)

    # Building: operations with splits.

    def _level(self, jaxpr: Any, ins: list[Value]) -> Level:
        ops: list[Op] = []
        outs = self._inline(jaxpr, ins, ops)
        for v in outs:
            self._all_reduce(v)
        return Level(_without_dead_ops(ops, outs), ins, outs)

    def _inline(self, jaxpr: Any, ins: list[Value], ops: list[Op]) -> list[Value]:
        env = dict(zip(jaxpr.invars, ins, strict=True))
        env |= {v: Value(v.aval) for v in jaxpr.constvars}

        def value(v: Any) -> Value:
            return Value(v.aval) if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            operands, name = [value(v) for v in eqn.invars], eqn.primitive.name
            inner = next((eqn.params[k] for k in _CALLS if k in eqn.params), None)
            if inner is not None and name not in _LOOPS | _KERNELS:
                inner = getattr(inner, "jaxpr", inner)
                outs = self._inline(inner, operands, ops)
            else:
                outs = [Value(v.aval) for v in eqn.outvars]
                op = self._loop(name, eqn.params, operands, outs)
                op = op or Op(name, operands, outs, eqn.params)
                if not op.bodies:
                    self._propagate_split(op)
                ops.append(op)
            env |= dict(zip(eqn.outvars, outs, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def _lay_out_gradients(self, level: Level) -> None:
        """What comes to a parameter by operations on each element lies where the parameter lies:
        updates, and gradients up to the products that they come from, in loops too."""
        for op in reversed(level.ops):
            out = op.outs[0]
            if op.name in ELEMENTWISE and op.params.get("name") != OWN_ROWS:
                order = (
                    op.params["permutation"] if op.name == "transpose" else range(len(out.shape))
                )
                shape = tuple(size for _, size in sorted(zip(order, out.shape, strict=True)))
                for v in op.ins if out.ways else ():
                    if not v.ways and v.shape == shape:
                        v.ways, v.kind = out.ways, "gradients"
                        v.split = None if out.split is None else order[out.split]
            for body in op.bodies:
                for out, inner in zip(op.outs[: body.stacked], body.outs, strict=False):
                    inner.ways, inner.split, inner.kind = out.ways, out.split, out.kind
                for out, v in zip(op.outs[: body.stacked], op.ins[body.first :], strict=False):
                    v.ways = v.ways or out.ways
                for out, inner in zip(op.outs, body.outs, strict=False):
                    inner.summed = out.ways if out.shape != inner.shape else 0
                for v, inner in zip(op.ins, body.ins, strict=False):
                    if v.shape == inner.shape:
                        inner.ways = v.ways
                self._lay_out_gradients(body)

    def _lay_out_casts(self, level: Level) -> None:
        """A parameter in another type lies where the parameter does, and so does what a loop keeps
        of it for another, until it is gathered for a product or by name."""
        for op in level.ops:
            first, out = op.ins[0] if op.ins else None, op.outs[0]
            same = op.name in CASTS and op.params.get("name") != GATHERED
            if same and first and first.ways and first.shape == out.shape:
                out.ways, out.split = first.ways, first.split
            for body in op.bodies:
                for v, inner in zip(op.ins[len(op.ins) - len(body.ins) :], body.ins, strict=True):
                    if inner.shape in (v.shape, v.shape[1:]):
                        inner.ways = inner.ways or v.ways
                self._lay_out_casts(body)
                for out, inner in zip(op.outs[body.stacked :], body.outs[body.stacked :]):
                    out.ways = out.ways or inner.ways

    def _loop(self, name: str, params: Mapping, ins: list[Value], outs: list[Value]) -> Op | None:
        if name == "scan":
            return self._scan(params, ins, outs)
        if name == "while":
            skip, consts = params["cond_nconsts"], params["body_nconsts"]
            body = self._loop_body(params["body_jaxpr"], ins[skip:], consts, len(outs), ())
            for out, inner in zip(outs, body.outs, strict=True):
                out.split = inner.split
            return Op(name, ins[skip:], outs, params, (body,))
        if name == "cond":
            bodies = [self._level(b.jaxpr, ins[1:]) for b in params["branches"]]
            for out, *inner in zip(outs, *(b.outs for b in bodies), strict=True):
                out.split = next((m.split for m in inner if m.split is not None), None)
            return Op(name, ins, outs, params, tuple(bodies))
        return None

    def _scan(self, params: Mapping, ins: list[Value], outs: list[Value]) -> Op:
        inner = params["jaxpr"].jaxpr
        whole, carries = _unsliced_count(inner.invars, ins), _unsliced_count(inner.outvars, outs)
        body = self._loop_body(params["jaxpr"], ins[:whole], whole - carries, carries, ins[whole:])
        for i, (out, result) in enumerate(zip(outs, body.outs, strict=True)):
            stacked = i >= carries
            out.split = result.split if result.split is None or not stacked else result.split + 1
            if stacked:
                out.kind = "activations"
        return Op("scan", ins, outs, params, (body,), params["length"])

    def _loop_body(
        self, closed: Any, ins: list[Value], consts: int, carries: int, xs: Sequence[Value]
    ) -> Level:
        """The body of a loop; what it carries is split as it comes out, if it comes in whole."""
        splits = [v.split for v in ins]
        splits += [None if v.split is None else v.split - 1 if v.split else None for v in xs]
        level = None
        for _ in range(3):
            arguments = [Value(v.aval, s) for v, s in zip(closed.jaxpr.invars, splits, strict=True)]
            level = self._level(closed.jaxpr, arguments)
            carried = [v.split for v in level.outs[:carries]]
            now = splits[consts : consts + carries]
            better = [b if a is None else a for a, b in zip(now, carried, strict=True)]
            if better == now:
                break
            splits[consts : consts + carries] = better
        assert level is not None
        return level._replace(stacked=carries, first=consts)

    def _propagate_split(self, op: Op) -> None:
        """The splits of what an operation makes. Terms of one sum are added on each device before
        they are added up over devices."""
        terms = [v for v in op.ins if v.partial]
        same = op.name in _VIEWS and op.name != "sharding_constraint"
        passed = bool(terms) and (same or (op.name in ("add", "add_any") and len(terms) == 2))
        for v in () if passed else terms:
            self._all_reduce(v)
        for out in op.outs:
            out.split, summed = _output_split(op, out)
            out.partial = self.tensor > 1 and (summed or passed)
        if op.name == "sharding_constraint" and self.tensor > 1:
            self._move(op.ins[0], op.outs[0], op.params["sharding"].spec)

    def _move(self, value: Value, out: Value, spec: Any) -> None:
        """What a constraint costs: half of a sum where parts are gathered, and where a sum is
        scattered."""
        if value.split is None and out.split is not None and value.sum_of:
            value.sum_of.added /= 2
        elif value.split is not None and out.split is None and _UNCONSTRAINED not in spec:
            out.added = self.bytes(out) / 2
        elif value.added and out.split is None:
            out.sum_of = value

    def _all_reduce(self, value: Value) -> None:
        if value.partial:
            value.added, value.partial = float(self.bytes(value)), False

    def bytes(self, value: Value) -> float:
        """On one device."""
        if value.on_host and self.platform != "cpu":
            return 0.0
        if self.unwritten and len(value.shape) > 3:
            sizes = [size for size in value.shape if size > 1]
            if tuple(sizes[-len(self.unwritten) :]) == self.unwritten:
                return 0.0
        ways = value.ways or (self.tensor if value.split is not None else 1)
        return value.size / ways


def _unsliced_count(inner: Sequence[Any], outer: Sequence[Value]) -> int:
    """How many values the body of a scan has as they are outside: all but the slices, which have a
    dimension less. (Its parameters say so too, but in each version of jax in another way.)"""
    return sum(v.aval.ndim == len(o.shape) for v, o in zip(inner, outer, strict=True))


def _without_dead_ops(ops: list[Op], outs: Sequence[Value]) -> list[Op]:
    """Without operations whose results nobody reads."""
    read, live = {id(v) for v in outs}, []
    for op in reversed(ops):
        if any(id(v) in read for v in op.outs):
            live.append(op)
            read |= {id(v) for v in op.ins}
    return live[::-1]


def _output_split(op: Op, out: Value) -> tuple[int | None, bool]:
    """The dimension of `out` that the tensor axis splits, and whether its parts must be added."""
    split = [v.split for v in op.ins]
    name, params = op.name, op.params
    if name == "sharding_constraint":
        return _constrained_dim(params["sharding"].spec), False
    if all(s is None for s in split):
        return None, False
    if name == "dot_general":
        return _dot_split(op)
    if name in REDUCTIONS:
        (at,), axes = split[:1], params["axes"]
        if at is None:
            return None, False
        return (None, True) if at in axes else (at - sum(a < at for a in axes), False)
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped_dim(op.ins[0].shape, split[0], out.shape), False
    if name == "broadcast_in_dim":
        at = split[0]
        return (None if at is None else params["broadcast_dimensions"][at]), False
    if name == "transpose":
        at = split[0]
        return (None if at is None else params["permutation"].index(at)), False
    if name == "gather":
        return None, split[0] is not None
    if name.startswith(("scatter", "dynamic_update")):
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


def _constrained_dim(spec: Any) -> int | None:
    named = (axes if isinstance(axes, tuple) else (axes,) for axes in spec)
    return next((i for i, axes in enumerate(named) if "tensor" in axes), None)


def _reshaped_dim(before: tuple, split: int | None, after: tuple) -> int | None:
    """The dimension of `after` that begins where the one that is split did."""
    if split is None:
        return None
    start, at = math.prod(before[:split]), 1
    for i, size in enumerate(after):
        if at == start and size > 1:
            return i
        at *= size
    return None


def is_view(op: Op) -> bool:
    """Whether it only looks at what is there in another shape."""
    return op.name in _VIEWS and bool(op.ins) and op.ins[0].size == op.outs[0].size
