"""Where TPUs lie in a mesh: those beside each other on the torus along the same axis,
slices, which only the data center's network joins, along the outermost axis that they divide."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from research.errors import BadInput

log = logging.getLogger(__name__)


def arrange(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """`devices` in a grid of `shape`. Raises BadInput where the devices of several slices cannot be
    told apart by the first or the second axis."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    outer = [1] * len(shape)
    if slices > 1:
        split = next((i for i in (0, 1) if shape[i] % slices == 0), None)
        if split is None:
            raise BadInput(
                f"mesh: {slices} slices; expected a multiple of it for mesh.data or mesh.fsdp, "
                f"not {shape[0]} and {shape[1]}"
            )
        outer[split] = slices
    inner = [n // k for n, k in zip(shape, outer, strict=True)]
    try:
        if slices > 1:
            return mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError, AssertionError) as error:  # such as half a torus
        log.warning("mesh: devices in the order of their numbers: %s", error)
        return np.array(devices).reshape(shape)
