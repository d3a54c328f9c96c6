"""A residual network for small images (He et al. 2016) with group normalization (Wu & He 2018),
which is independent of the batch: training and evaluation are the same function.

Dimensions: B batch, H height, W width, C channels, K classes.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from research.config.types import PositiveInt, UnrolledLayers
from research.models import activation_sharding
from research.models.conv import Conv

SIZED = ("width", "depth")
SIZE_RULE = (
    "width and depth in turn: one block more in every stage while depth < 3 sqrt(width/16), else "
    "width in steps of 4 (of 16 above 128, of 64 above 512), doubled at each of three stages; it "
    "meets ResNet-20 for CIFAR-10 (16, 3)"
)
GROUPS = (
    ("stem/conv/kernel", "stem"),
    (r"block\d+/conv[12]/kernel", "convolution"),
    (r"block\d+/conv_skip/kernel", "skip"),
    (r"norm\d*/(scale|bias)", "norm"),
    ("head/(kernel|bias)", "head"),
)
SHARDING = (
    ("stem/conv/kernel", (None, None, None, "tensor")),  # 3, 3, C, C: the image's channels are few
    (r"block\d+/conv(1|2|_skip)/kernel", (None, None, "fsdp", "tensor")),  # 3, 3, C, C
    (r"norm\d*/(scale|bias)", ()),
    ("head/kernel", ("tensor", None)),  # C, K: the classes are few
    ("head/bias", ()),
)
TRANSFER = (  # the roles of training.transfer
    ("stem/conv/kernel", "input"),
    (r"block\d+/conv(1|2|_skip)/kernel", "hidden"),
    (r"norm\d*/(scale|bias)", "vector"),
    ("head/kernel", "output"),
    ("head/bias", "output_vector"),
)
STAGES = 3
GROUP = 4  # channels per normalization group; divides every width of the size rule


class ResNet(nn.Module):
    """Images [B, H, W, C] → logits [B, K].

    A 3x3 convolution, three stages of residual blocks with 1, 2 and 4 times `width` channels at
    full, half and quarter resolution, global average pooling and a linear head. Raises ValueError
    if GROUP does not divide `width`.
    """

    image_shape: tuple[int, int, int]
    classes: PositiveInt
    width: PositiveInt
    depth: UnrolledLayers

    def __post_init__(self) -> None:
        if self.width % GROUP:
            raise ValueError(f"width: {self.width}; expected a multiple of {GROUP}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        x_BxHxWxC = Stem(self.width, name="stem")(x_BxHxWxC)
        for i in range(STAGES):
            stage = Stage(self.width * 2**i, self.depth, 1 if i == 0 else 2, name=f"stage{i}")
            x_BxHxWxC = activation_sharding.shard_rows(
                stage(x_BxHxWxC), *[activation_sharding.ANY] * 3
            )
        return nn.Dense(self.classes, name="head")(x_BxHxWxC.mean((1, 2)))


class Stem(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        x_BxHxWxC = _conv(self.channels, 3, 1, "conv")(x_BxHxWxC)
        return nn.relu(GroupNorm(name="norm")(x_BxHxWxC))


class Stage(nn.Module):
    """`depth` residual blocks, the first with stride `stride`."""

    channels: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        for j in range(self.depth):
            stride = 1 if j else self.stride
            x_BxHxWxC = Block(self.channels, stride, self.depth, name=f"block{j}")(x_BxHxWxC)
        return x_BxHxWxC


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), with a 1x1 convolution of the skip path where the
    shape changes."""

    channels: int
    stride: int
    depth: int

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        y_BxHxWxC = _conv(self.channels, 3, self.stride, "conv1")(x_BxHxWxC)
        y_BxHxWxC = nn.relu(GroupNorm(name="norm1")(y_BxHxWxC))
        y_BxHxWxC = _conv(self.channels, 3, 1, "conv2")(y_BxHxWxC)
        # Scaled by 1/√blocks, the residual branches sum to a variance independent of depth (De &
        # Smith 2020). From the usual zero init, they would hardly grow in a short run.
        scale = 1 / math.sqrt(STAGES * self.depth)
        y_BxHxWxC = GroupNorm(scale, name="norm2")(y_BxHxWxC)
        if x_BxHxWxC.shape != y_BxHxWxC.shape:
            x_BxHxWxC = _conv(self.channels, 1, self.stride, "conv_skip")(x_BxHxWxC)
        return nn.relu(x_BxHxWxC + y_BxHxWxC)


def _conv(channels: int, kernel: int, stride: int, name: str) -> Conv:
    he_normal = nn.initializers.he_normal()
    return Conv(channels, kernel, stride, "SAME", False, he_normal, name=name)


class GroupNorm(nn.Module):
    """Group normalization over GROUP channels and all positions, then scale and bias.

    Positions are reduced first and the rest is on [B, C], which on CPU takes a fraction of the time
    of one joint reduction.
    """

    scale: float = 1.0

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        B, _, _, C = x_BxHxWxC.shape
        scale_C = self.param("scale", nn.initializers.constant(self.scale), (C,))
        bias_C = self.param("bias", nn.initializers.zeros, (C,))

        def by_group(a_BxC: Array) -> Array:
            return jnp.repeat(a_BxC.reshape(B, C // GROUP, GROUP).mean(-1), GROUP, axis=1)

        # Seen from one of its pixels, a channel has squares as small as its spread: far from zero,
        # float32 would leave nothing of E x² − (E x)². The derivative does not depend on the pixel.
        origin_Bx1x1xC = jax.lax.stop_gradient(x_BxHxWxC[:, :1, :1])
        x_BxHxWxC -= origin_Bx1x1xC
        near_BxC = x_BxHxWxC.mean((1, 2))
        own_BxC = jnp.maximum(jnp.square(x_BxHxWxC).mean((1, 2)) - jnp.square(near_BxC), 0)
        mean_BxC = near_BxC + origin_Bx1x1xC[:, 0, 0]
        away_BxC = mean_BxC - by_group(mean_BxC)
        variance_BxC = by_group(own_BxC + jnp.square(away_BxC))
        factor_BxC = scale_C[None] * jax.lax.rsqrt(variance_BxC + 1e-5)
        offset_BxC = bias_C[None] + (away_BxC - near_BxC) * factor_BxC
        return x_BxHxWxC * factor_BxC[:, None, None] + offset_BxC[:, None, None]


def nth_size(i: int, **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest network, i ≥ 1, by SIZE_RULE."""
    width, depth = GROUP, 1
    while (i := i - 1) >= 1:
        if depth < math.isqrt(9 * width // 16):
            depth += 1
        else:
            width += 4 if width < 128 else 16 if width < 512 else 64
    return {"width": width, "depth": depth}


def forward_flops(m: ResNet) -> dict[str, int]:
    """Forward matmul FLOPs of one image, by part; a multiply-add is 2. Zero padding is counted like
    pixels, as it is computed."""
    height, width, channels = m.image_shape
    parts = {
        "first_layer": 2 * height * width * 9 * channels * m.width,
        "convolution": 0,
        "skip": 0,
    }
    channels = m.width
    for i in range(STAGES):
        into = m.width * 2**i
        if i:
            height, width = -(-height // 2), -(-width // 2)
            parts["skip"] += 2 * height * width * channels * into
        kernels = 9 * (channels * into + (2 * m.depth - 1) * into**2)
        parts["convolution"] += 2 * height * width * kernels
        channels = into
    return {**parts, "head": 2 * channels * m.classes}
