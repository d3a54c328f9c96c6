"""Convolutions, by whichever of two equivalent programs is faster on the backend.

On CPU, XLA runs a convolution inside a loop, such as the one over the steps of a dispatch, about
eight times slower than outside. There we use im2col: one matmul over image patches, which a loop
does not slow down. Accelerators use XLA's own convolution.

Dimensions: B batch, H height, W width, I channels in, O channels out.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from research.models import activation_sharding, custom_vjp

Padding = Literal["SAME", "VALID"]


class Conv(nn.Module):
    """Images [B, H, W, I] → [B, H', W', O], with a square kernel [h, w, I, O]."""

    channels: int
    kernel: int
    stride: int = 1
    padding: Padding = "VALID"
    bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x_BxHxWxI: Array) -> Array:
        shape = (self.kernel, self.kernel, x_BxHxWxI.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        conv = im2col_conv if activation_sharding.platform() == "cpu" else xla_conv
        y_BxHxWxO = conv(x_BxHxWxI, kernel, self.stride, self.padding)
        if not self.bias:
            return y_BxHxWxO
        bias_O = self.param("bias", nn.initializers.zeros, (self.channels,))
        return y_BxHxWxO + bias_O[None, None, None]


def xla_conv(x_BxHxWxI: Array, kernel_hxwxIxO: Array, stride: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x_BxHxWxI,
        kernel_hxwxIxO,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def im2col_conv(x_BxHxWxI: Array, kernel_hxwxIxO: Array, stride: int, padding: Padding) -> Array:
    """As `xla_conv`, by one matmul of the patches [B·H'·W', h·w·I] and the kernel [h·w·I, O]."""
    h, w, I, O = kernel_hxwxIxO.shape
    pads = jax.lax.padtype_to_pads(x_BxHxWxI.shape[1:3], (h, w), (stride, stride), padding)
    x_BxHxWxI = jnp.pad(x_BxHxWxI, ((0, 0), *pads, (0, 0)))
    B, H, W, _ = x_BxHxWxI.shape
    rows, columns = (H - h) // stride + 1, (W - w) // stride + 1
    shifted = [
        x_BxHxWxI[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
        for i in range(h)
        for j in range(w)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    x_MxP = patches.reshape(B * rows * columns, h * w * I)
    y_MxO: Any = custom_vjp.dense(x_MxP, kernel_hxwxIxO.reshape(h * w * I, O))
    return y_MxO.reshape(B, rows, columns, O)


def max_pool_2x2(x_BxHxWxC: Array) -> Array:
    """[B, H, W, C] → [B, H//2, W//2, C]: max pooling with stride 2; an odd last row or column is
    dropped.

    By slices, because the gradient of `nn.max_pool` takes half of the training step on CPU.
    """
    H, W = (n // 2 * 2 for n in x_BxHxWxC.shape[1:3])
    rows = jnp.maximum(x_BxHxWxC[:, 0:H:2], x_BxHxWxC[:, 1:H:2])
    return jnp.maximum(rows[:, :, 0:W:2], rows[:, :, 1:W:2])
