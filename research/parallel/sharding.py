"""How the train state and its batches are sharded over a mesh."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from research.errors import BadInput
from research.params import PathTable, key_path, leaves_by_path, match_path

log = logging.getLogger(__name__)

BATCH = PartitionSpec(("data", "fsdp"))


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
    like that parameter; factored moments, which lack one of its axes, are replicated, as is what
    belongs to no parameter. A leaf with an indivisible dimension raises BadInput, or with
    `replicate` is replicated with a warning. Also raises BadInput for a parameter that no rule
    covers, and for optimizer state of any other shape.
    """
    params, indivisible = leaves_by_path(state.params), {}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = key_path(path)
        param = max((p for p in params if name.endswith(f"/{p}")), key=len, default=None)
        if param is None:  # a count or another number of an optimizer
            axes = ()
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


def put_rows(arrays: Mapping[str, np.ndarray], mesh: Mesh, batch: int) -> dict[str, jax.Array]:
    """Host arrays [S, B, ...] → global arrays, the axis of the `batch` rows split over data and
    fsdp. The arrays hold all rows, or those of `joining.own_rows`."""

    def put(a: np.ndarray) -> jax.Array:
        shape = len(a), batch, *a.shape[2:]
        return jax.make_array_from_process_local_data(stacked_rows(mesh), a, shape)

    with jax.transfer_guard("allow"):  # of several processes it counts as implicit
        return {name: put(a) for name, a in arrays.items()}


def stacked_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, *BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
