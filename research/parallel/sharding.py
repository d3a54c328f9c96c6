"""The device mesh, and how the train state and its batches are sharded over it."""

import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from research.errors import BadInput
from research.io import host
from research.params import PathTable, key_path, leaves_by_path, match_path

log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
# Leaves of the state that belong to no parameter: replicated.
_SCALARS = (("step|count|ns_coeffs|seen|mean|square|skipped", ()),)


def use_all_cpu_cores() -> None:
    """On CPU, one XLA device per core that this process may use; call before the first use of jax.

    XLA runs the elementwise ops of a small model on one core per device. JAX_NUM_CPU_DEVICES, or a
    jax_num_cpu_devices that is already set, takes precedence.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ and jax.config.jax_num_cpu_devices == -1:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", host.cores())


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
    fixed = math.prod(n for n in sizes.values() if n != -1)
    free = [axis for axis, n in sizes.items() if n == -1]
    shape = {axis: max(1, n) for axis, n in sizes.items()}
    rows = batch // parts
    if free:
        shape[free[0]] = max(1, len(devices) // fixed)
    if free == ["data"] and devices[0].platform == "cpu":
        while shape["data"] > 1 and (
            rows % (shape["data"] * shape["fsdp"]) or shape["data"] * fixed % len(members)
        ):
            shape["data"] -= 1
        devices = _equally(devices, shape["data"] * fixed)
    layout = " x ".join(f"{axis} {shape[axis]}" for axis in AXES)
    used = math.prod(shape.values())
    if used > len(devices) or (free and used != len(devices)):
        raise BadInput(f"mesh: {layout} needs {used} devices, there are {len(devices)}")
    check_rows(shape, batch, parts)
    devices = _equally(devices, used)
    if len(devices) != used or {device.process_index for device in devices} != members:
        raise BadInput(
            f"mesh: {layout} needs {used} devices, which {len(members)} processes of as many each "
            f"do not have; expected a multiple of --num_processes = {len(members)}"
        )
    # The default axis type is Explicit, under which an embedding lookup does not even trace.
    grid = np.array(devices).reshape([shape[axis] for axis in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _equally(devices: Sequence, used: int) -> list:
    """The first `used` devices, equally many from each process where possible."""
    by_process: dict[int, list] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    share = max(1, used // len(by_process))
    return [device for own in by_process.values() for device in own[:share]][:used]


def check_rows(shape: Mapping[str, int], batch: int, parts: int = 1) -> None:
    """Raise BadInput unless mesh.data x mesh.fsdp divides each of the `parts` of a batch."""
    ways, rows = shape["data"] * shape["fsdp"], batch // parts
    if rows % ways:
        name = "batch.size" if parts == 1 else "batch.size / batch.grad_accumulation"
        layout = " x ".join(f"{axis} {shape[axis]}" for axis in AXES)
        raise BadInput(
            f"{name}: {rows} is not divisible by mesh.data x mesh.fsdp = {ways} ({layout})"
        )


def check_fields(spec: Any, split: Mapping[str, Sequence[str]], shape: Mapping[str, int]) -> None:
    """Raise BadInput if a mesh axis does not divide a field of the model that it splits."""
    for axis, names in split.items():
        for name in names:
            if (count := getattr(spec, name)) % shape[axis]:
                raise BadInput(f"mesh.{axis}: {shape[axis]} does not divide model.{name} = {count}")


def state_shardings(
    state: Any, rules: PathTable, mesh: Mesh | AbstractMesh, replicate: bool = False
) -> Any:
    """A NamedSharding for every leaf of the (abstract) train state, by the rules of its family.

    A rule gives the mesh axes of a leaf's trailing dimensions; leading scan and run axes are not
    split. Optimizer moments and EMA weights, whose paths end in their parameter's path, are sharded
    like that parameter; factored moments, which lack one of its axes, are replicated. A leaf with
    an indivisible dimension raises BadInput, or with `replicate` is replicated with a warning. Also
    raises BadInput for a leaf that no rule covers, and for optimizer state of any other shape.
    """
    params, indivisible = leaves_by_path(state.params), {}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = key_path(path)
        param = max((p for p in params if name.endswith(f"/{p}")), key=len, default=None)
        if param is None:
            axes = match_path(_SCALARS, name, "sharding rule")
        elif leaf.shape == params[param].shape:
            axes = match_path(rules, name, "row of its family's SHARDING")
        elif name.startswith("opt_state/") and _is_factored(leaf.shape, params[param].shape):
            axes = ()
        else:
            raise BadInput(
                f"{name}: shape {leaf.shape}, but {param} has {params[param].shape}; expected "
                "state of the shape of its parameter, or of that without one axis"
            )
        axes = (None,) * (leaf.ndim - len(axes)) + tuple(axes)
        for dim, axis in zip(leaf.shape, axes, strict=True):
            if not axis or dim % mesh.shape[axis] == 0:
                continue
            if replicate:
                indivisible[param or name] = leaf.shape
                return NamedSharding(mesh, PartitionSpec())
            raise BadInput(
                f"mesh.{axis}: {mesh.shape[axis]} does not divide a dimension of {name}, "
                f"shape {leaf.shape}; mesh.indivisible = replicate keeps it on every device"
            )
        return NamedSharding(mesh, PartitionSpec(*axes))

    placed = jax.tree_util.tree_map_with_path(place, state)
    if indivisible:
        names = ", ".join(f"{name} {shape}" for name, shape in indivisible.items())
        log.warning("mesh: on every device, as it does not divide them: %s", names)
    return placed


def _is_factored(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether `shape` is `whole` without one axis, or Adafactor's placeholder (1,)."""
    return shape == (1,) or shape in [whole[:i] + whole[i + 1 :] for i in range(len(whole))]


def own_rows(mesh: Mesh, batch: int) -> np.ndarray | None:
    """The indices, ascending, of the batch rows that this process's devices hold; None on a mesh of
    one process, which holds all."""
    if not mesh.is_multi_process:
        return None
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[at] for at in slices if at]))


def put_rows(
    arrays: Mapping[str, np.ndarray],
    mesh: Mesh,
    stacked: bool,
    batch: int = 0,
    own: np.ndarray | None = None,
) -> dict[str, jax.Array]:
    """Host arrays → global arrays, the batch axis split over data and fsdp.

    The batch axis is the first, or the second when batches are `stacked`. The arrays hold all rows
    or, if `own` is what `own_rows` returned, only those of the `batch` rows.
    """
    spec = PartitionSpec(None, *BATCH) if stacked else BATCH
    sharding, axis = NamedSharding(mesh, spec), int(stacked)

    def put(a: np.ndarray) -> jax.Array:
        if own is None:
            return jax.make_array_from_callback(a.shape, sharding, lambda at: a[at])
        shape, rows = (*a.shape[:axis], batch, *a.shape[axis + 1 :]), own

        def device_rows(at: Any) -> np.ndarray:
            start, stop, _ = at[axis].indices(batch)
            begin = int(np.searchsorted(rows, start))
            return a[(*at[:axis], slice(begin, begin + stop - start), *at[axis + 1 :])]

        return jax.make_array_from_callback(shape, sharding, device_rows)

    with jax.transfer_guard("allow"):  # make_array_from_callback counts as implicit
        return {name: put(a) for name, a in arrays.items()}


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of `sizes` without devices, to trace for hardware that is not attached."""
    shape = tuple(sizes[axis] for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def with_mesh_names(mesh: Mesh | AbstractMesh, function: Callable) -> Callable:
    """`function`, traced with the axis names of `mesh` in scope, for activation_sharding."""

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        names = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
        with jax.sharding.use_abstract_mesh(names):
            return function(*args)

    return named


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def device_memory() -> float:
    """Memory of one local device in bytes; on CPU, its share of the machine's memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return host.memory() / jax.local_device_count()


def bytes_per_device(tree: object) -> int:
    """Bytes that the arrays of `tree` take on the device that holds most of them."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
