"""The mesh, and where each array of the train state lives on it."""

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
# Leaves of the state that belong to no parameter; every device has a copy.
_SCALARS = (("step|count|ns_coeffs|seen|mean|square|skipped", ()),)


def use_all_cores() -> None:
    """One XLA device per core that this process may use, on CPU; call before the first use of jax.

    XLA runs the elementwise work of a small model on one core per device. JAX_NUM_CPU_DEVICES, and
    a count that is already set, are left as they are.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ and jax.config.jax_num_cpu_devices == -1:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", host.cores())


def make_mesh(
    sizes: Mapping[str, int], batch: int, devices: Sequence | None = None, parts: int = 1
) -> Mesh:
    """A mesh with the axes data, fsdp and tensor; one of `sizes` may be -1 for what is left. It
    splits each of the equal `parts` that a batch is taken in.

    With a free data axis on CPU, devices that would not divide the batch are left idle; otherwise
    a mesh that does not fit the devices, or a batch that does not divide, raises BadInput. Of
    several processes each gives equally many of its devices, in the order of the processes.
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
    words = " x ".join(f"{axis} {shape[axis]}" for axis in AXES)
    used = math.prod(shape.values())
    if used > len(devices) or (free and used != len(devices)):
        raise BadInput(f"mesh: {words} needs {used} devices, there are {len(devices)}")
    check_rows(shape, batch, parts)
    devices = _equally(devices, used)
    if len(devices) != used or {device.process_index for device in devices} != members:
        raise BadInput(
            f"mesh: {words} needs {used} devices, which {len(members)} processes of as many each "
            f"do not have; expected a multiple of --num_processes = {len(members)}"
        )
    # The default axis type is Explicit, under which an embedding lookup does not even trace.
    grid = np.array(devices).reshape([shape[axis] for axis in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _equally(devices: Sequence, used: int) -> list:
    """The first `used` devices, equally many of each process where that is possible."""
    of: dict[int, list] = {}
    for device in devices:
        of.setdefault(device.process_index, []).append(device)
    return [device for mine in of.values() for device in mine[: max(1, used // len(of))]][:used]


def check_rows(shape: Mapping[str, int], batch: int, parts: int = 1) -> None:
    """Raise BadInput where the axes data and fsdp do not divide each of the `parts` of a batch."""
    ways, rows = shape["data"] * shape["fsdp"], batch // parts
    if rows % ways:
        name = "batch.size" if parts == 1 else "batch.size / batch.grad_accumulation"
        words = " x ".join(f"{axis} {shape[axis]}" for axis in AXES)
        raise BadInput(
            f"{name}: {rows} is not divisible by mesh.data x mesh.fsdp = {ways} ({words})"
        )


def check_fields(spec: Any, split: Mapping[str, Sequence[str]], shape: Mapping[str, int]) -> None:
    """Raise BadInput where an axis does not divide a field of the model that it splits."""
    for axis, names in split.items():
        for name in names:
            if (count := getattr(spec, name)) % shape[axis]:
                raise BadInput(f"mesh.{axis}: {shape[axis]} does not divide model.{name} = {count}")


def state_shardings(
    state: Any, rules: PathTable, mesh: Mesh | AbstractMesh, replicate: bool = False
) -> Any:
    """A NamedSharding for every leaf of the (abstract) train state, by the rules of its family.

    A rule gives the mesh axes of a leaf's trailing dimensions; scan and run axes in front are not
    split. A moment or average has its parameter's path as a tail and lies where it lies; what an
    optimizer keeps of only some axes is on every device. Raises BadInput naming the leaf when a
    dimension is not divisible, or with `replicate` puts that leaf on every device and tells so;
    and BadInput for a leaf that no rule covers, or of which the optimizer keeps another shape.
    """
    params, whole = leaves_by_path(state.params), {}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = key_path(path)
        of = max((p for p in params if name.endswith(f"/{p}")), key=len, default=None)
        if of is None:
            axes = match_path(_SCALARS, name, "sharding rule")
        elif leaf.shape == params[of].shape:
            axes = match_path(rules, name, "row of its family's SHARDING")
        elif name.startswith("opt_state/") and _reduced(leaf.shape, params[of].shape):
            axes = ()
        else:
            raise BadInput(
                f"{name}: shape {leaf.shape}, but {of} has {params[of].shape}; expected state of "
                "the shape of its parameter, or of that without one axis"
            )
        axes = (None,) * (leaf.ndim - len(axes)) + tuple(axes)
        for dim, axis in zip(leaf.shape, axes, strict=True):
            if not axis or dim % mesh.shape[axis] == 0:
                continue
            if replicate:
                whole[of or name] = leaf.shape
                return NamedSharding(mesh, PartitionSpec())
            raise BadInput(
                f"mesh.{axis}: {mesh.shape[axis]} does not divide a dimension of {name}, "
                f"shape {leaf.shape}; mesh.indivisible = replicate keeps it on every device"
            )
        return NamedSharding(mesh, PartitionSpec(*axes))

    placed = jax.tree_util.tree_map_with_path(place, state)
    if whole:
        told = ", ".join(f"{name} {shape}" for name, shape in whole.items())
        log.warning("mesh: on every device, as it does not divide them: %s", told)
    return placed


def _reduced(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether it is `whole` without one axis, or (1,) in the place of nothing: as in Adafactor."""
    return shape == (1,) or shape in [whole[:i] + whole[i + 1 :] for i in range(len(whole))]


def own_rows(mesh: Mesh, batch: int) -> np.ndarray | None:
    """The rows of a batch that the devices of this process take, in order; None if all do."""
    if not mesh.is_multi_process:
        return None
    of = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch,))
    return np.unique(np.concatenate([np.arange(batch)[at] for at in of.values() if at]))


def put_rows(
    arrays: Mapping[str, np.ndarray],
    mesh: Mesh,
    stacked: bool,
    batch: int = 0,
    own: np.ndarray | None = None,
) -> dict[str, jax.Array]:
    """Host arrays → global arrays, the batch axis split over data and fsdp.

    The batch axis is the first, or the second when batches are `stacked`. Each device takes its own
    rows, whatever the processes; the arrays hold all rows, or of `batch` rows those of `own_rows`.
    """
    spec = PartitionSpec(None, *BATCH) if stacked else BATCH
    sharding, axis = NamedSharding(mesh, spec), int(stacked)

    def put(a: np.ndarray) -> jax.Array:
        if own is None:
            return jax.make_array_from_callback(a.shape, sharding, lambda at: a[at])
        shape, rows = (*a.shape[:axis], batch, *a.shape[axis + 1 :]), own

        def taken(at: Any) -> np.ndarray:
            start, stop, _ = at[axis].indices(batch)
            begin = int(np.searchsorted(rows, start))
            return a[(*at[:axis], slice(begin, begin + stop - start), *at[axis + 1 :])]

        return jax.make_array_from_callback(shape, sharding, taken)

    with jax.transfer_guard("allow"):  # make_array_from_callback counts as implicit
        return {name: put(a) for name, a in arrays.items()}


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of devices that need not be here."""
    shape = tuple(sizes[axis] for axis in AXES)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on(mesh: Mesh | AbstractMesh, function: Callable) -> Callable:
    """`function`, traced where the names of the mesh's axes mean something (see models.layout)."""

    @functools.wraps(function)
    def named(*args: Any) -> Any:
        names = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
        with jax.sharding.use_abstract_mesh(names):
            return function(*args)

    return named


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def device_memory() -> float:
    """Bytes of one device that is here; on CPU, of its share of the machine's memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return host.memory() / jax.local_device_count()


def bytes_per_device(tree: object) -> int:
    """What the arrays of `tree` take on one device (the largest share)."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
