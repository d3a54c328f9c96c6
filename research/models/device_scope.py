"""Programs outside a mesh are traced for the device that holds their parameters."""

import contextlib

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def on_device_of(params: dict) -> contextlib.AbstractContextManager:
    """The device of `params` as a mesh of one, whose platform decides what a model computes by (see
    activation_sharding.platform); to be entered where a program is called."""
    device = min(jax.tree.leaves(params)[0].devices(), key=lambda d: d.id)
    one = Mesh(np.array(device).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    return jax.sharding.use_abstract_mesh(one.abstract_mesh)
