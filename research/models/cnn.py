"""The classic digit classifier: convolutions and max-pooling, then two dense layers (LeCun et al.
1998, with ReLU).

Dimensions: B batch, H height, W width, C channels, F flattened features, D hidden width, K classes.
"""

import flax.linen as nn
from jax import Array

from research.config.types import PositiveInt, UnrolledLayers
from research.models import activation_sharding, conv

SIZED = ("width", "depth", "hidden")
SIZE_RULE = (
    "width in steps of 1 (of 8 above 64, of 64 above 576), doubled at each stage; depth = the "
    "stages that bring the shorter side of the image to 6 pixels or fewer (28: 2); hidden = 4 x "
    "width. Width 32 for digits of 28 x 28 is the usual network of 225,034 parameters"
)
GROUPS = (
    (r"conv\d+/(kernel|bias)", "convolution"),
    ("dense0/(kernel|bias)", "dense"),
    ("head/(kernel|bias)", "head"),
)
SHARDING = (
    ("conv0/kernel", (None, None, None, "tensor")),  # 3, 3, C, C: the image's channels are few
    (r"conv[1-9]\d*/kernel", (None, None, "fsdp", "tensor")),  # 3, 3, C, 2C
    ("dense0/kernel", ("fsdp", "tensor")),  # F, D
    ("head/kernel", ("tensor", None)),  # D, K: the classes are few
    (r"(conv\d+|dense0)/bias", ("tensor",)),
    ("head/bias", ()),
)
TRANSFER = (  # the roles of training.transfer
    ("conv0/kernel", "input"),
    (r"(conv[1-9]\d*|dense0)/kernel", "hidden"),
    (r"(conv\d+|dense0)/bias", "vector"),
    ("head/kernel", "output"),
    ("head/bias", "output_vector"),
)
SMALLEST = 6  # pixels: the target for the shorter side of the last stage


class CNN(nn.Module):
    """Images [B, H, W, C] → logits [B, K].

    A stage is an unpadded 3x3 convolution, ReLU and 2x2 max-pooling; channels double from stage to
    stage. Raises ValueError if `depth` stages would shrink the image to nothing.
    """

    image_shape: tuple[int, int, int]
    classes: PositiveInt
    width: PositiveInt
    depth: UnrolledLayers
    hidden: PositiveInt

    def __post_init__(self) -> None:
        most = len(_stages(min(self.image_shape[:2])))
        if self.depth > most:
            height, width, _ = self.image_shape
            raise ValueError(
                f"depth: {self.depth}; images of {height} x {width} have room for {most} stages"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        for i in range(self.depth):
            channels = self.width * 2**i
            x_BxHxWxC = conv.Conv(channels, 3, name=f"conv{i}")(x_BxHxWxC)
            x_BxHxWxC = conv.max_pool_2x2(nn.relu(x_BxHxWxC))
            x_BxHxWxC = activation_sharding.shard_rows(x_BxHxWxC, *[activation_sharding.ANY] * 3)
        x_BxF = x_BxHxWxC.reshape(x_BxHxWxC.shape[0], -1)
        x_BxD = nn.relu(nn.Dense(self.hidden, name="dense0")(x_BxF))
        return nn.Dense(self.classes, name="head")(x_BxD)


def _stages(side: int) -> list[int]:
    """The side in pixels after each stage, while at least 1."""
    out = []
    while (side := (side - 2) // 2) >= 1:
        out.append(side)
    return out


def nth_size(i: int, *, image_shape: tuple[int, int, int], **_: object) -> dict[str, int]:
    """The sized fields of the i-th smallest network, i ≥ 1, by SIZE_RULE."""
    width = i if i <= 64 else 64 + 8 * (i - 64) if i <= 128 else 576 + 64 * (i - 128)
    sides = _stages(min(image_shape[:2]))
    depth = 1 + sum(side > SMALLEST for side in sides[:-1])
    return {"width": width, "depth": depth, "hidden": 4 * width}


def forward_flops(m: CNN) -> dict[str, int]:
    """Forward matmul FLOPs of one image, by part; a multiply-add is 2."""
    height, width, channels = m.image_shape
    parts = {"first_layer": 0, "convolution": 0}
    for i in range(m.depth):
        height, width, into = height - 2, width - 2, m.width * 2**i
        part = "convolution" if i else "first_layer"
        parts[part] += 2 * height * width * 9 * channels * into
        height, width, channels = height // 2, width // 2, into
    return {
        **parts,
        "dense": 2 * height * width * channels * m.hidden,
        "head": 2 * m.hidden * m.classes,
    }
