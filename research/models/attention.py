"""Which implementation computes causal self-attention. Dimensions as in `layers`."""

import jax
from jax import Array

from research.models import custom_vjp

# What cuDNN's kernel takes, forward and backward, on every GPU that has it: it is written for half
# precision, and for heads of so many features at most, a multiple of 8.
DTYPES, LARGEST, STEP = ("bfloat16", "float16"), 128, 8


def why_not_cudnn(dtype: str, head_size: int, platform: str) -> list[str]:
    """Reasons why cuDNN's kernel cannot be used, for a message; none if it can."""
    return [
        words
        for wrong, words in (
            (platform not in ("gpu", "cuda"), f"runs on NVIDIA GPUs, not on {platform}"),
            (dtype not in DTYPES, f"takes model.dtype bfloat16, not {dtype}"),
            (
                head_size % STEP != 0 or head_size > LARGEST,
                f"takes heads of a multiple of {STEP} and at most {LARGEST}, not of {head_size}",
            ),
        )
        if wrong
    ]


def check(implementation: str, dtype: str, head_size: int, platform: str) -> None:
    """Raise ValueError if `implementation` is "cudnn" and its kernel cannot be used."""
    why = why_not_cudnn(dtype, head_size, platform)
    if implementation == "cudnn" and why:
        raise ValueError(f"attention: cudnn {'; '.join(why)}; expected auto, own or xla")


def choose_implementation(implementation: str, dtype: str, head_size: int, platform: str) -> str:
    """ "own", "xla" or "cudnn". "auto" is cuDNN, which stores no T x T map, where it can be used,
    else our own; "cudnn" likewise, as elsewhere a model is only traced for shapes (see `check`)."""
    if implementation in ("own", "xla"):
        return implementation
    return "own" if why_not_cudnn(dtype, head_size, platform) else "cudnn"


def causal_attention(choice: str, q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxK: Array) -> Array:
    """custom_vjp.causal_attention_vjp over all T positions, by the chosen implementation."""
    dtype, head_size = q_BxTxHxK.dtype.name, q_BxTxHxK.shape[-1]
    by = choose_implementation(choice, dtype, head_size, jax.default_backend())
    if by == "own":
        return custom_vjp.causal_attention_vjp(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)
    return jax.nn.dot_product_attention(
        q_BxTxHxK,
        k_BxTxGxK,
        v_BxTxGxK,
        is_causal=True,
        implementation=by,  # type: ignore[arg-type]
    )
