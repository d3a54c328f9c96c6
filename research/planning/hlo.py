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
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(body|calls|to_apply|branch_computations|\w+_computation)=\{?([^,}\s]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_OP = re.compile(r'op_name="([^"]*)"')
# What is no array of its own: names of others, and what is called is looked into.
_NAMES = frozenset(
    ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
)
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
    kind: str
    arrays: tuple[Array, ...]
    rest: str  # operands and attributes

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


class Buffer(NamedTuple):
    bytes: int
    array: str
    operation: str


class Program:
    """The text of a compiled program. A loop whose length is not known is that of the steps."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations[header[2]] = []
                self.entry = header[2] if header[1] else self.entry
            elif found := _LINE.match(line):
                shapes = _SHAPE.findall(found[2])
                arrays = [Array(t, tuple(int(n) for n in d.split(",") if n)) for t, d in shapes]
                current.append(Instruction(found[3], tuple(arrays), found[4]))

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
        if found := _TRIPS.search(loop.rest):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        compared = self.computations.get(condition[1], []) if condition else []
        if not compared or compared[-1].kind != "compare":
            return 1
        limits = [re.match(r"(\d+)\)", i.rest) for i in compared if i.kind == "constant"]
        return next((int(found[1]) for found in limits if found), 1)

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """Of a program on `mesh`, {axis: devices}, the most received first."""
        count: dict[Collective, int] = defaultdict(int)
        for instruction, times in self.instructions():
            kind = instruction.kind.removesuffix("-start")
            if not re.fullmatch(KINDS, kind):
                continue
            axes, ways = _over(instruction.rest, mesh)
            for array in _moved(instruction, kind):
                whole = array.bytes * (ways if kind == "reduce-scatter" else 1)
                label = str(array) if kind != "reduce-scatter" else f"{ways} x {array}"
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
