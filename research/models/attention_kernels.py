"""Causal self-attention by kernels that write no T x T map: cuDNN's on NVIDIA GPUs, splash
attention, which ships with jax, on TPUs. Dimensions as in `layers`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from research.models import activation_sharding

GPUS = ("gpu", "cuda")
# What the kernels take, forward and backward. Heads are filled up with zeros to a multiple of STEP,
# which changes no product: cuDNN wants 8, and rows of a TPU's vector unit are 128 wide.
LARGEST = {"cudnn": 128, "splash": 256}
STEP = {"cudnn": 8, "splash": 64}
HALF = ("bfloat16", "float16")  # cuDNN's is written for half precision
BLOCKS = (512, 256, 128)  # of splash; one of them divides the length


def why_not(kernel: str, dtype: str, head_size: int, length: int, platform: str) -> list[str]:
    """Reasons why "cudnn" or "splash" cannot be used, for a message; none if it can."""
    if kernel == "cudnn":
        wrong = [
            (platform not in GPUS, f"runs on NVIDIA GPUs, not on {platform}"),
            (dtype not in HALF, f"takes model.dtype bfloat16, not {dtype}"),
        ]
    else:
        wrong = [
            (platform != "tpu", f"runs on TPUs, not on {platform}"),
            (length % BLOCKS[-1] != 0, f"takes a multiple of {BLOCKS[-1]} tokens, not {length}"),
        ]
    most = LARGEST[kernel]
    wrong += [(head_size > most, f"takes heads of at most {most} features, not of {head_size}")]
    return [words for is_wrong, words in wrong if is_wrong]


def check(choice: str, dtype: str, head_size: int, length: int, platform: str) -> None:
    """Raise ValueError if `choice` is a kernel that cannot be used."""
    why = why_not(choice, dtype, head_size, length, platform) if choice in LARGEST else []
    if why:
        raise ValueError(f"attention: {choice} {'; '.join(why)}; expected auto, own or xla")


def choose_implementation(
    choice: str, dtype: str, head_size: int, length: int, platform: str
) -> str:
    """ "own", "xla", "cudnn" or "splash". "auto" is the platform's kernel where it can be used,
    else our own; a kernel likewise, as elsewhere a model is only traced for shapes (see `check`).
    """
    if choice in ("own", "xla"):
        return choice
    kernel = "splash" if platform == "tpu" else "cudnn"
    return "own" if why_not(kernel, dtype, head_size, length, platform) else kernel


def causal_attention(by: str, q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxK: Array) -> Array:
    """custom_vjp.causal_attention_vjp over all T positions by "xla", "cudnn" or "splash"."""
    scale, head_size = 1 / math.sqrt(q_BxTxHxK.shape[-1]), q_BxTxHxK.shape[-1]
    step = STEP.get(by, 1)
    fill = [(0, 0)] * 3 + [(0, -head_size % step)]
    qkv = [jnp.pad(x, fill) if head_size % step else x for x in (q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)]
    if by == "splash":
        function = functools.partial(splash, scale=scale)
        return _over_mesh(function, *qkv)[..., :head_size]
    y_BxTxHxK = jax.nn.dot_product_attention(
        *qkv,
        is_causal=True,
        scale=scale,
        implementation=by,  # type: ignore[arg-type]
    )
    return y_BxTxHxK[..., :head_size]


def splash(
    q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxK: Array, scale: float, interpret: bool = False
) -> Array:
    """Splash attention of what lies on one device; `interpret`: by XLA, on any platform."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    T, H = q_BxTxHxK.shape[1:3]
    block = next(size for size in BLOCKS if T % size == 0)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library.CausalMask((T, T))] * H),
        block_sizes=library.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q_BxTxHxK * scale, k_BxTxGxK, v_BxTxGxK))
    y_BxHxTxK: Any = jax.vmap(kernel)(q, k, v)
    return y_BxHxTxK.swapaxes(1, 2)


def _over_mesh(function: Callable, *qkv: Array) -> Array:
    """`function` of the rows and heads of each device: XLA cannot split a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(activation_sharding.ROWS) <= set(mesh.axis_names):
        return function(*qkv)
    lies = PartitionSpec(activation_sharding.ROWS, None, "tensor", None)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=lies, out_specs=lies, check_vma=False)
    return mapped(*qkv)
