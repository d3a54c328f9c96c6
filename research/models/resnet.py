"""A residual network for small images (He et al. 2016) with group normalisation (Wu & He 2018),
which knows no batch, so that training and evaluation are one function.

Dimensions: B batch, H height, W width, C channels, K classes.
"""

import math

import flax.linen as nn
from jax import Array

from research.kinds import Count
from research.models.convolution import Conv

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
STAGES = 3
GROUP = 4  # channels that are normalised together; divides every width of the size rule


class ResNet(nn.Module):
    """Images [B, H, W, C] → logits [B, K].

    A 3x3 convolution, three stages of residual blocks with `width`, twice and four times as many
    channels on the whole image, a half and a quarter of its sides, and a linear map of the mean
    over the places. Raises ValueError for a width without whole groups.
    """

    image_shape: tuple[int, int, int]
    classes: Count
    width: Count
    depth: Count

    def __post_init__(self) -> None:
        if self.width % GROUP:
            raise ValueError(f"width {self.width}: expected a multiple of {GROUP}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        x_BxHxWxC = Stem(self.width, name="stem")(x_BxHxWxC)
        for i in range(STAGES):
            stage = Stage(self.width * 2**i, self.depth, 1 if i == 0 else 2, name=f"stage{i}")
            x_BxHxWxC = stage(x_BxHxWxC)
        return nn.Dense(self.classes, name="head")(x_BxHxWxC.mean((1, 2)))


class Stem(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        x_BxHxWxC = _conv(self.channels, 3, 1, "conv")(x_BxHxWxC)
        return nn.relu(_norm("norm")(x_BxHxWxC))


class Stage(nn.Module):
    """`depth` blocks; the first steps by `stride`."""

    channels: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        for j in range(self.depth):
            stride = 1 if j else self.stride
            x_BxHxWxC = Block(self.channels, stride, name=f"block{j}")(x_BxHxWxC)
        return x_BxHxWxC


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv x))))); where the shape changes, x goes through a 1x1
    convolution."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        y_BxHxWxC = _conv(self.channels, 3, self.stride, "conv1")(x_BxHxWxC)
        y_BxHxWxC = nn.relu(_norm("norm1")(y_BxHxWxC))
        y_BxHxWxC = _conv(self.channels, 3, 1, "conv2")(y_BxHxWxC)
        # From zero, every block starts as its shortcut, so that signals neither grow nor fade with
        # depth and one learning rate serves all depths (Goyal et al. 2017).
        y_BxHxWxC = _norm("norm2", nn.initializers.zeros)(y_BxHxWxC)
        if x_BxHxWxC.shape != y_BxHxWxC.shape:
            x_BxHxWxC = _conv(self.channels, 1, self.stride, "conv_skip")(x_BxHxWxC)
        return nn.relu(x_BxHxWxC + y_BxHxWxC)


def _conv(channels: int, kernel: int, stride: int, name: str) -> Conv:
    he_normal = nn.initializers.he_normal()
    return Conv(channels, kernel, stride, "SAME", False, he_normal, name=name)


def _norm(
    name: str, scale_init: nn.initializers.Initializer = nn.initializers.ones
) -> nn.GroupNorm:
    return nn.GroupNorm(None, GROUP, scale_init=scale_init, name=name)


def rung(i: int, **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest network, i ≥ 1, by SIZE_RULE."""
    width, depth = GROUP, 1
    while (i := i - 1) >= 1:
        if depth < math.isqrt(9 * width // 16):
            depth += 1
        else:
            width += 4 if width < 128 else 16 if width < 512 else 64
    return {"width": width, "depth": depth}


def forward_flops(m: ResNet) -> dict[str, int]:
    """FLOPs of the dot products of one image, by part.

    A convolution keeps the sides by zeros around the image; these are multiplied like pixels and
    counted.
    """
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
