"""The device mesh: its axes, its devices, and its names in the programs that run on it."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from research.errors import BadInput, first_line
from research.io import host

AXES = ("data", "fsdp", "tensor")


def use_all_cpu_cores() -> None:
    """On CPU, one XLA device per core, since XLA runs the elementwise ops of a small model on one.
    What JAX_NUM_CPU_DEVICES or jax_num_cpu_devices ask for stays, as does a jax that is in use."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ and jax.config.jax_num_cpu_devices == -1:  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # of a jax in use, as in a notebook
            jax.config.update("jax_num_cpu_devices", host.cores())


def check_devices() -> None:
    """Raise BadInput if jax finds no device of the platform that the environment asks for."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = f": {first_line(error)}" if str(error) else ""
        raise BadInput(f"JAX_PLATFORMS={asked}: jax finds no such device here{why}") from error


def make_mesh(
    sizes: Mapping[str, int], batch: int, devices: Sequence | None = None, parts: int = 1
) -> Mesh:
    """A mesh with the axes data, fsdp and tensor, of the given `sizes`; one of them may be -1, and
    takes all remaining devices. `parts` is how many equal microbatches a batch is split into.

    If mesh.data is -1 on CPU, devices that would not divide the batch stay idle; otherwise raises
    BadInput for a mesh that does not fit the devices or does not divide the batch. Every process
    contributes equally many of its devices, in the order of the processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    members = {device.process_index for device in devices}
    shape = _resolve_axes(sizes, len(devices))
    if sizes["data"] == -1 and devices[0].platform == "cpu":
        shape = _shrink_to_batch(shape, batch // parts, len(members))
        devices = _take_equally(devices, math.prod(shape.values()))
    layout, used = _layout(shape), math.prod(shape.values())
    if used > len(devices) or (-1 in sizes.values() and used != len(devices)):
        raise BadInput(f"mesh: {layout} needs {used} devices, there are {len(devices)}")
    check_rows(shape, batch, parts)
    devices = _take_equally(devices, used)
    if len(devices) != used or {device.process_index for device in devices} != members:
        raise BadInput(
            f"mesh: {layout} needs {used} devices, which {len(members)} processes of as many each "
            f"do not have; expected a multiple of --num_processes = {len(members)}"
        )
    # The default axis type is Explicit, under which an embedding lookup does not even trace.
    grid = np.array(devices).reshape([shape[axis] for axis in AXES])
    if devices[0].platform == "tpu":
        from research.parallel import tpu_mesh

        grid = tpu_mesh.arrange(devices, grid.shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolve_axes(sizes: Mapping[str, int], available: int) -> dict[str, int]:
    """The sizes, -1 replaced by all devices that are left."""
    fixed = math.prod(n for n in sizes.values() if n != -1)
    return {axis: max(1, available // fixed) if n == -1 else n for axis, n in sizes.items()}


def _shrink_to_batch(shape: Mapping[str, int], rows: int, processes: int) -> dict[str, int]:
    """The largest data axis whose devices divide the rows and come equally from the processes."""
    fitted = dict(shape)
    while fitted["data"] > 1 and (
        rows % batch_shards(fitted) or math.prod(fitted.values()) % processes
    ):
        fitted["data"] -= 1
    return fitted


def _take_equally(devices: Sequence, used: int) -> list:
    """The first `used` devices, equally many from each process where possible."""
    by_process: dict[int, list] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    share = max(1, used // len(by_process))
    return [device for own in by_process.values() for device in own[:share]][:used]


def batch_shards(shape: Mapping[str, int]) -> int:
    """Over how many devices of a mesh of this shape the rows of a batch are split."""
    return shape["data"] * shape["fsdp"]


def check_rows(shape: Mapping[str, int], batch: int, parts: int = 1) -> None:
    """Raise BadInput unless mesh.data x mesh.fsdp divides each of the `parts` of a batch."""
    ways, rows = batch_shards(shape), batch // parts
    if rows % ways:
        name = "batch.size" if parts == 1 else "batch.size / batch.grad_accumulation"
        raise BadInput(
            f"{name}: {rows} is not divisible by mesh.data x mesh.fsdp = {ways} ({_layout(shape)})"
        )


def _layout(shape: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {shape[axis]}" for axis in AXES)


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of `sizes` without devices, to trace for hardware that is not attached."""
    shape = tuple(sizes[axis] for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def with_mesh_names(mesh: Mesh | AbstractMesh, function: Callable) -> Callable:
    """`function`, traced with the axis names of `mesh` in scope, for activation_sharding. A program
    is traced wherever it is first called or lowered, so it is wrapped and not its callers."""

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        names = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
        with jax.sharding.use_abstract_mesh(names):
            return function(*args)

    return named
