"""Reads a compiled program: what its devices say to each other, how often in a step, and the
largest arrays that it writes. XLA has no interface for this, so it is read from the program's text.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
# A fusion of the compiler for TPUs: it adds up and keeps a part, which is to scatter.
FUSED = "all-reduce-scatter"
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(body|calls|to_apply|branch_computations|\w+_computation)=\{?([^,}\s]+)")
_LOOP = re.compile(r"\b(condition|body)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_CHAIN = re.compile(r'\bchain_id="(\d+)"')
_OP = re.compile(r'op_name="([^"]*)"')
# What is no array of its own: names of others, and what is called is looked into.
_PART = "get-tuple-element"
_ENTRY = re.compile(r"\bindex=(\d+)")
_NAMES = frozenset(("parameter", "tuple", _PART, "bitcast", "while", "conditional", "call"))
# Parts of an operation's name that say how it came about and not what it is.
_WRAPPERS = frozenset(
    ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation")
)


class Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        named = re.search(r"\d+", self.dtype)
        bits = int(named[0]) if named else 8 * (self.dtype == "pred")  # a token has none
        return bits * math.prod(self.shape) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    name: str
    kind: str
    arrays: tuple[Array, ...]
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    @property
    def operation(self) -> str:
        """What of the source it was made for: the end of its name there."""
        found = _OP.search(self.rest)
        name = found[1].partition("/(")[0] if found else ""  # "(a:b:c)": of several at once
        parts = [p for p in name.split("/") if p not in _WRAPPERS]
        return "/".join(p for p in parts[-4:] if not p.startswith(("jit(", "jvp", "transpose(jvp")))


class Collective(NamedTuple):
    """Of one array: `bytes` of the whole of it, as it is gathered or before it is scattered, on one
    device, once; `times` in a step; `axes` of the mesh that it runs over, "" where that is not
    known; `ways` devices take part."""

    kind: str
    axes: str
    array: str
    bytes: int
    times: int
    ways: int
    operation: str

    @property
    def received(self) -> float:
        """Bytes that one device receives in a step, by a ring."""
        share = (self.ways - 1) / self.ways if self.kind != "collective-permute" else 1.0
        return self.times * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def _constant(instruction: Instruction) -> int | None:
    found = re.match(r"(\d+)\)", instruction.rest)
    return int(found[1]) if found else None


class Buffer(NamedTuple):
    bytes: int
    array: str
    operation: str


class Program:
    """The text of a compiled program. A loop whose length is not known is that of the steps."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, name, current = "", "", []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                name = header[2]
                current = self.computations[name] = []
                self.entry = name if header[1] else self.entry
            elif found := _LINE.match(line):
                shapes = _SHAPE.findall(found[2])
                arrays = [Array(t, tuple(int(n) for n in d.split(",") if n)) for t, d in shapes]
                fused = name.startswith(FUSED) and found[3] == "all-reduce"
                kind = FUSED if fused else found[3]
                current.append(Instruction(found[1], kind, tuple(arrays), found[4]))

    def instructions(
        self, name: str | None = None, times: int = 1, within: bool = True
    ) -> Iterator[tuple[Instruction, int]]:
        """All instructions and how often each runs in a step, also `within` fusions."""
        for instruction in self.computations.get(name or self.entry, []):
            yield instruction, times
            opened = within or instruction.kind in _NAMES
            for role, called in _CALLED.findall(instruction.rest) if opened else ():
                if role == "to_apply" and instruction.kind != "call":
                    continue  # how two numbers are added
                inner = times * (self._trips(instruction) if role == "body" else 1)
                yield from self.instructions(called.lstrip("%"), inner, within)

    def _trips(self, loop: Instruction) -> int:
        """How often the body runs: up to what its counter is compared with, by what it grows (a
        loop that was unrolled counts by more than one)."""
        if found := _TRIPS.search(loop.rest):
            return int(found[1])
        called = dict(_LOOP.findall(loop.rest))
        test = self.computations.get(called["condition"], [])
        if not test or test[-1].kind != "compare":
            return 1
        named = {one.name: one for one in test}
        compared = [named[name] for name in test[-1].operands if name in named]
        limit = next((_constant(one) for one in compared if one.kind == "constant"), None)
        at = next((_ENTRY.search(one.rest) for one in compared if one.kind == _PART), None)
        return -(-limit // self._stride(called["body"], at and int(at[1]))) if limit else 1

    def _stride(self, body: str, at: int | None) -> int:
        """What is added to entry `at` of what a loop carries, 1 where that cannot be read."""
        instructions = self.computations.get(body, [])
        named = {one.name: one for one in instructions}
        carried = instructions[-1].operands if instructions else []
        grown = named.get(carried[at]) if at is not None and at < len(carried) else None
        if grown is None or grown.kind != "add":
            return 1
        added = [named[name] for name in grown.operands if name in named]
        return next((_constant(one) or 1 for one in added if one.kind == "constant"), 1)

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """Of a program on `mesh`, {axis: devices}, the most received first.

        The compiler for TPUs starts a collective in one fusion, advances it in others and ends it
        in another, and writes it out in each, with the number of their chain: it is one.
        """
        count: dict[Collective, int] = defaultdict(int)
        chains = set()
        for instruction, times in self.instructions():
            fused = instruction.kind == FUSED
            kind = "reduce-scatter" if fused else instruction.kind.removesuffix("-start")
            if not re.fullmatch(KINDS, kind):
                continue
            if chain := _CHAIN.search(instruction.rest):
                if chain[1] in chains:
                    continue
                chains.add(chain[1])
            axes, ways = _over(instruction.rest, mesh)
            for array in _moved(instruction, kind):
                part = kind == "reduce-scatter" and not fused
                whole = array.bytes * (ways if part else 1)
                label = f"{ways} x {array}" if part else str(array)
                one = Collective(kind, axes, label, whole, 1, ways, instruction.operation)
                count[one] += times
        found = [one._replace(times=times) for one, times in count.items()]
        return sorted(found, key=lambda c: -c.received)

    def largest(self, count: int = 32) -> list[Buffer]:
        """The largest arrays that are written, each once."""
        found = {
            Buffer(array.bytes, str(array), instruction.operation)
            for instruction, _ in self.instructions(within=False)
            if instruction.kind not in _NAMES and not instruction.kind.endswith("-done")
            for array in instruction.arrays
        }
        return sorted(found, reverse=True)[:count]


def _moved(instruction: Instruction, kind: str) -> Sequence[Array]:
    """The results of a collective; one that is started names its operands before them."""
    arrays = [array for array in instruction.arrays if array.shape or kind == "all-reduce"]
    twice = instruction.kind.endswith("-start") and kind != "all-reduce" and len(arrays) > 1
    return arrays[len(arrays) // 2 :] if twice else arrays


def _over(rest: str, mesh: Mapping[str, int]) -> tuple[str, int]:
    """The axes of the mesh that a collective runs over, and how many devices take part."""
    group = _first_group(rest)
    if group is None or max(group, default=0) >= math.prod(mesh.values()):
        return "", max(2, len(group or []))
    at = np.unravel_index(np.array(group), list(mesh.values()))
    axes = [axis for axis, where in zip(mesh, at, strict=True) if len(set(where.tolist())) > 1]
    return ",".join(axes), len(group)


def _first_group(rest: str) -> list[int] | None:
    """The devices of one group: listed, or as part of a grid of all of them, of which there are two
    notations."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return [int(found[1]), int(found[2])]
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(n) for n in found[1].split(",")]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return _numbered(found[2], found[3]).reshape(-1, _numbers(found[1])[-1])[0].tolist()
    if found := _MESH.search(rest):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
        chosen = re.findall(r"'(\w+)'(:?)", found[4])
        if not sizes or any(part for _, part in chosen):
            return None
        ids = _numbered(found[2] or str(math.prod(sizes.values())), found[3])
        at = tuple(slice(None) if (name, "") in chosen else 0 for name in sizes)
        return ids.reshape(list(sizes.values()))[at].ravel().tolist()
    return None


def _numbered(grid: str, order: str | None) -> np.ndarray:
    """The numbers of devices in a grid whose axes are then put in another order."""
    sizes = _numbers(grid)
    axes = _numbers(order) if order else list(range(len(sizes)))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
