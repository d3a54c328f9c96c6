"""Which implementation computes causal self-attention. Dimensions as in `layers`."""

from jax import Array

from research.models import activation_sharding, custom_vjp


def choose_implementation(choice: str, dtype: str, head_size: int, T: int, platform: str) -> str:
    """See attention_kernels, which a CPU needs for no choice but "xla"."""
    if choice == "own" or (platform == "cpu" and choice != "xla"):
        return "own"
    from research.models import attention_kernels as kernels

    return kernels.choose_implementation(choice, dtype, head_size, T, platform)


def causal_attention(choice: str, q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxK: Array) -> Array:
    """custom_vjp.causal_attention_vjp over all T positions, by the chosen implementation."""
    length, head_size = q_BxTxHxK.shape[1], q_BxTxHxK.shape[3]
    platform = activation_sharding.platform()
    by = choose_implementation(choice, q_BxTxHxK.dtype.name, head_size, length, platform)
    if by == "own":
        return custom_vjp.causal_attention_vjp(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)
    from research.models import attention_kernels as kernels

    return kernels.causal_attention(by, q_BxTxHxK, k_BxTxGxK, v_BxTxGxK)
