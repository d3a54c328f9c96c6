"""Linear regression, y = x w + b, whose best parameters are known in closed form.

Dimensions: B batch, F features, K outputs.
"""

import flax.linen as nn
import numpy as np
from jax import Array

from research.config.types import PositiveInt

SIZED = ()
SIZE_RULE = "none: features x outputs + outputs"
GROUPS = (("linear/(kernel|bias)", "linear"),)
SHARDING = (("linear/(kernel|bias)", ()),)


class Linear(nn.Module):
    """Features [B, ...] → predictions [B, K]. It starts from zero, so that gradient descent ends in
    the solution of least norm where there are several, which is the one that `solve` gives."""

    features: PositiveInt
    outputs: PositiveInt

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x_BxF = x.reshape(x.shape[0], self.features)
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros, name="linear")(x_BxF)


def solve(rows: dict[str, np.ndarray]) -> dict:
    """The parameters of least squared error on `rows`, of least norm if there are several.

    By the singular value decomposition of the design in float64: nothing is inverted, and columns
    that depend on each other do no harm.
    """
    x_BxF = rows["inputs"].reshape(len(rows["inputs"]), -1).astype(np.float64)
    design = np.concatenate([x_BxF, np.ones((len(x_BxF), 1))], axis=1)
    w, *_ = np.linalg.lstsq(design, rows["targets"].astype(np.float64), rcond=None)
    return {"linear": {"kernel": w[:-1], "bias": w[-1]}}


def nth_size(i: int, **_: object) -> dict[str, int]:
    return {}


def forward_flops(m: Linear) -> dict[str, int]:
    return {"first_layer": 2 * m.features * m.outputs}
