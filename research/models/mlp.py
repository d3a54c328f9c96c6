"""A multi-layer perceptron. Dimensions: B batch, F features, W width, K outputs."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from research.config.types import PositiveInt, UnrolledLayers
from research.models import activation_sharding

SIZED = ("width",)
SIZE_RULE = "width in steps of 1 (of 8 above 64, of 64 above 576); the depth is given"
GROUPS = ((r"hidden\d+/(kernel|bias)", "hidden"), ("head/(kernel|bias)", "head"))
SHARDING = (
    (r"hidden\d+/kernel", (None, "tensor")),  # W, W: the features of the data divide nothing
    (r"hidden\d+/bias", ("tensor",)),
    ("head/kernel", ("tensor", None)),  # W, K
    ("head/bias", ()),
)
TRANSFER = (  # the roles of training.transfer
    ("hidden0/kernel", "input"),
    (r"hidden[1-9]\d*/kernel", "hidden"),
    (r"hidden\d+/bias", "vector"),
    ("head/kernel", "output"),
    ("head/bias", "output_vector"),
)
ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "tanh": jnp.tanh, "linear": lambda x: x}


class MLP(nn.Module):
    """Features [B, ...], flattened, → predictions or logits [B, K]."""

    features: PositiveInt
    outputs: PositiveInt
    width: PositiveInt
    depth: UnrolledLayers
    activation: Literal["relu", "gelu", "tanh", "linear"]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x_BxW = x.reshape(x.shape[0], self.features)
        for i in range(self.depth):
            x_BxW = ACTIVATIONS[self.activation](nn.Dense(self.width, name=f"hidden{i}")(x_BxW))
            x_BxW = activation_sharding.shard_rows(x_BxW, activation_sharding.ANY)
        return nn.Dense(self.outputs, name="head")(x_BxW)


def nth_size(i: int, **_: object) -> dict[str, int]:
    """The i-th width, i ≥ 1, by SIZE_RULE."""
    return {"width": i if i <= 64 else 64 + 8 * (i - 64) if i <= 128 else 576 + 64 * (i - 128)}


def forward_flops(m: MLP) -> dict[str, int]:
    return {
        "first_layer": 2 * m.features * m.width,
        "hidden": 2 * m.width**2 * (m.depth - 1),
        "head": 2 * m.width * m.outputs,
    }
