"""Roofline: how long a step takes at best, kernels against compute and memory bandwidth,
collectives against links.

Each kernel takes as long as its FLOPs at the machine's peak or its bytes at its bandwidth,
whichever is longer (Williams et al. 2009), and they follow each other. Gathers of parameters and
sums of gradients run beside the kernels; sums within a tensor-parallel block are waited for.

So this is a bound and no forecast: no kernel reaches a data sheet, launches and waiting for the
slowest device cost nothing here. `docs/machines.md` says how far published runs are below it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from research.planning.hardware import Machine
from research.planning.jaxpr_liveness import Kernel

AXES = ("tensor", "fsdp", "data")  # from neighbors outwards: the order of a mesh's devices


class Traffic(NamedTuple):
    """Bytes that one device receives from others in a step, by mesh axis."""

    data: float
    fsdp: float
    tensor: float


class ParameterBytes(NamedTuple):
    """Of parameters in a step: `moved`, those of which fsdp splits, each as often as it is gathered
    and its gradient scattered; `own`, a device's part of the same, as often as its gradients are
    added up; `replicated`, all others."""

    moved: float
    own: float
    replicated: float


class StepSeconds(NamedTuple):
    """Of a step, at least: its `kernels`, and the traffic of each mesh axis."""

    kernels: float
    data: float
    fsdp: float
    tensor: float

    @property
    def step(self) -> float:
        return max(self.kernels, self.data + self.fsdp) + self.tensor

    @property
    def bound(self) -> str:
        """What limits the step."""
        overlapped = self.data + self.fsdp
        return "kernels" if self.kernels >= max(overlapped, self.tensor) else "links"


def kernel_seconds(kernels: Iterable[Kernel], machine: Machine, dtype: str) -> float:
    """Seconds of all kernels of one device."""
    rate = machine.rate(dtype)
    return sum(k.times * max(k.flops / rate, k.moved / machine.bandwidth) for k in kernels)


def collective_traffic(
    kernels: Iterable[Kernel], mesh: Mapping[str, int], parameters: ParameterBytes
) -> Traffic:
    """Of a step on `mesh`, with ring or tree collectives, of which a device receives (n − 1)/n.

    Parameters are gathered for each product of the step and their gradients reduce-scattered
    (Rajbhandari et al. 2020, ZeRO stage 3, which has two products: forward and backward); an
    all-reduce is both, so twice its bytes.
    """
    share = {axis: (mesh[axis] - 1) / mesh[axis] for axis in mesh}
    summed = sum(k.times * k.summed for k in kernels)
    return Traffic(
        data=2 * share["data"] * (parameters.own + parameters.replicated),
        fsdp=share["fsdp"] * (parameters.moved + 2 * parameters.replicated),
        tensor=2 * share["tensor"] * summed,
    )


def step_seconds(
    kernels: float, traffic: Traffic, mesh: Mapping[str, int], machine: Machine
) -> StepSeconds:
    """The bound of a step whose kernels take `kernels` seconds. Devices are numbered so that the
    tensor axis has neighbors, then fsdp, then data."""
    stride, links = 1, {}
    for axis in AXES:
        size = mesh[axis]
        links[axis] = _link_seconds(getattr(traffic, axis), stride, size, machine)
        stride *= size
    return StepSeconds(kernels, **links)


def _link_seconds(count: float, stride: int, size: int, machine: Machine) -> float:
    """Seconds for `count` bytes to one of `size` devices that are `stride` apart. Where a group
    spans nodes, its members in a node share what comes in from others."""
    if size == 1 or count == 0:
        return 0.0
    per_node = max(1, min(size, machine.node // stride))
    inside = count / machine.within if per_node > 1 else 0.0
    nodes = -(-size // per_node)
    outside = count * (1 - 1 / nodes) / (1 - 1 / size) / (per_node * machine.between)
    return max(inside, outside if nodes > 1 else 0.0)
