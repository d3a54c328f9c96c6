"""Hand-written backward passes, where that was measured to pay (docs/benchmarks.md, "Ablations").

Each op is an ordinary function of arrays and returns what plain jax computes; it differs in what it
saves for the backward pass and in how that is computed. dL/dx is written dx.

Dimensions as in `layers`; I and O features in and out, N = R·T the queries of one key-value head.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from research.models import activation_sharding


def materialize(x: Array) -> Array:
    """`x`, written to memory by XLA on CPU instead of being fused into its consumer.

    XLA folds a transpose into the matmul after it, and on CPU a matmul that contracts the first
    dimension of its left operand is slower. On accelerators it makes no difference.
    """
    return jax.lax.optimization_barrier(x) if activation_sharding.platform() == "cpu" else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense(x_MxI: Array, w_IxO: Array, wide: bool = False) -> Array:
    """x w, [M, O], in the dtype of x and w or, if `wide`, in float32 as it was summed.

    dx = g wᵀ; dw = xᵀ g, for which the narrower of x and g is transposed in memory, since
    xᵀ g = (gᵀ x)ᵀ.
    """
    return _dense_forward(x_MxI, w_IxO, wide)[0]


def _dense_forward(x_MxI: Array, w_IxO: Array, wide: bool) -> tuple[Array, tuple]:
    dtype = _wide(x_MxI) if wide else None
    return jnp.matmul(x_MxI, w_IxO, preferred_element_type=dtype), (x_MxI, w_IxO)


def _dense_backward(wide: bool, saved: tuple, g_MxO: Array) -> tuple[Array, Array]:
    del wide
    x_MxI, w_IxO = saved
    g_MxO = g_MxO.astype(x_MxI.dtype)
    return g_MxO @ w_IxO.T, _weight_gradient(x_MxI, g_MxO)


def _weight_gradient(x_MxI: Array, g_MxO: Array) -> Array:
    if x_MxI.shape[1] <= g_MxO.shape[1]:
        return materialize(x_MxI.T) @ g_MxO
    return materialize(materialize(g_MxO.T) @ x_MxI).T


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x Φ(x), by the usual approximation x (1 + t) / 2, t = tanh(c (x + a x³)), with a = 0.044715
    and c = √(2/π) (Hendrycks & Gimpel 2016).

    Saved is the derivative itself, (1 + t) / 2 + x (1 − t²) c (1 + 3 a x²) / 2: one array instead
    of the several it is computed from, in float32 until it is saved.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    a, c, dtype = 0.044715, math.sqrt(2 / math.pi), x.dtype
    x = at_least_float32(x)
    half = 0.5 * (1 + jnp.tanh(c * (x + a * x * x * x)))  # (1 − t²) / 2 = 2 half (1 − half)
    derivative = half + 2 * x * half * (1 - half) * c * (1 + 3 * a * x * x)
    return (x * half).astype(dtype), derivative.astype(dtype)


gelu.defvjp(_gelu_forward, lambda derivative, g: (g * derivative,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalize(x: Array, scale_D: Array, centered: bool, epsilon: float = 1e-5) -> Array:
    """scale · x̂ over the last axis, in float32, where x̂ = x / √(mean x² + ε) is RMSNorm's (Zhang &
    Sennrich 2019), and LayerNorm's (Ba et al. 2016) if x is first `centered`, x − mean x.

    Saved are x, in its own dtype, its mean and r = 1 / √(mean x² + ε). With h = scale · g:

        dx = r (h − x̂ mean(h x̂) − mean h), the last term only if centered; dscale = Σ g x̂
    """
    return _norm_forward(x, scale_D, centered, epsilon)[0]


def _norm_forward(x: Array, scale_D: Array, centered: bool, epsilon: float) -> tuple[Array, tuple]:
    wide = at_least_float32(x)
    mean = wide.mean(-1, keepdims=True) if centered else None
    wide = wide if mean is None else wide - mean
    r = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    # Not x̂: in the dtype of x it would be rounded, and dscale with it.
    return wide * r * _last(scale_D, x), (x, mean, r, scale_D)


def _norm_backward(centered: bool, epsilon: float, saved: tuple, g: Array) -> tuple[Array, Array]:
    del epsilon
    x, mean, r, scale_D = saved
    unit = (at_least_float32(x) if mean is None else at_least_float32(x) - mean) * r
    h = g * _last(scale_D, g)
    dx = h - unit * (h * unit).mean(-1, keepdims=True)
    if centered:
        dx -= h.mean(-1, keepdims=True)
    return (dx * r).astype(x.dtype), (g * unit).reshape(-1, g.shape[-1]).sum(0)


normalize.defvjp(_norm_forward, _norm_backward)


def _last(v_D: Array, x: Array) -> Array:
    """`v_D` with leading axes of size 1, so that it broadcasts against x."""
    return v_D.reshape((1,) * (x.ndim - 1) + v_D.shape)


@jax.custom_vjp
def causal_attention_vjp(
    q_BxTxHxK: Array, k_BxSxGxK: Array, v_BxSxGxK: Array, at: Array | int = 0
) -> Array:
    """softmax(q kᵀ / √K) v under a causal mask, the softmax in float32; has the shape of q.

    Keys and values are at positions 0 … S−1, queries at `at` … at + T−1. With fewer key-value heads
    than heads, each serves R = H/G neighboring heads (grouped queries, Ainslie et al. 2023).

    Saved are the probabilities p, in the dtype of v. With g the gradient of the output:

        dv = pᵀ g;  ds = p (g vᵀ − Σ g vᵀ p);  dq = ds k / √K;  dk = dsᵀ q / √K

    Probabilities of 8 bits do not add up to 1, so for ds they are divided by their sum: what the
    difference leaves at a key that takes nearly everything is the others' share, which is exact.
    """
    return _attention_forward(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, at)[0]


def _attention_forward(
    q_BxTxHxK: Array, k_BxSxGxK: Array, v_BxSxGxK: Array, at: Array | int
) -> tuple[Array, tuple]:
    T, S, G = q_BxTxHxK.shape[1], *k_BxSxGxK.shape[1:3]
    q_BxGxNxK = _by_group(q_BxTxHxK / math.sqrt(q_BxTxHxK.shape[3]), G)
    k_BxGxSxK, v_BxGxSxK = k_BxSxGxK.swapaxes(1, 2), v_BxSxGxK.swapaxes(1, 2)
    scores_BxGxNxS = _wide_einsum("bgnk,bgsk->bgns", q_BxGxNxK, k_BxGxSxK)
    past_TxS = at + jnp.arange(T)[:, None] >= jnp.arange(S)[None]
    past_NxS = jnp.tile(past_TxS, (q_BxGxNxK.shape[2] // T, 1))
    scores_BxGxNxS = jnp.where(past_NxS[None, None], scores_BxGxNxS, -jnp.inf)
    p_BxGxNxS = jax.nn.softmax(scores_BxGxNxS, axis=-1).astype(v_BxGxSxK.dtype)
    o_BxGxNxK = jnp.einsum("bgns,bgsk->bgnk", p_BxGxNxS, v_BxGxSxK)
    return _by_time(o_BxGxNxK, T), (q_BxGxNxK, k_BxGxSxK, v_BxGxSxK, p_BxGxNxS)


def _attention_backward(saved: tuple, g_BxTxHxK: Array) -> tuple[Array, Array, Array, None]:
    q_BxGxNxK, k_BxGxSxK, v_BxGxSxK, p_BxGxNxS = saved
    T, K = g_BxTxHxK.shape[1], g_BxTxHxK.shape[3]
    g_BxGxNxK = _by_group(g_BxTxHxK, k_BxGxSxK.shape[1])
    dp = _wide_einsum("bgnk,bgsk->bgns", g_BxGxNxK, v_BxGxSxK)
    p = at_least_float32(p_BxGxNxS)
    if p.dtype != p_BxGxNxS.dtype:
        p /= p.sum(-1, keepdims=True)
    ds_BxGxNxS = (p * (dp - (dp * p).sum(-1, keepdims=True))).astype(k_BxGxSxK.dtype)
    dq_BxGxNxK = jnp.einsum("bgns,bgsk->bgnk", ds_BxGxNxS, k_BxGxSxK)
    dk_BxSxGxK = jnp.einsum("bgns,bgnk->bsgk", ds_BxGxNxS, q_BxGxNxK)
    dv_BxSxGxK = jnp.einsum("bgns,bgnk->bsgk", p_BxGxNxS, g_BxGxNxK)
    return _by_time(dq_BxGxNxK, T) / math.sqrt(K), dk_BxSxGxK, dv_BxSxGxK, None


causal_attention_vjp.defvjp(_attention_forward, _attention_backward)


def _by_group(x_BxTxHxK: Array, G: int) -> Array:
    """[B, T, H, K] → [B, G, R·T, K], so that every product is one batched matmul, for any R."""
    B, T, H, K = x_BxTxHxK.shape
    x_BxTxGxRxK = x_BxTxHxK.reshape(B, T, G, H // G, K)
    return x_BxTxGxRxK.transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, K)


def _by_time(x_BxGxNxK: Array, T: int) -> Array:
    """The inverse of `_by_group`: [B, G, R·T, K] → [B, T, H, K]."""
    B, G, N, K = x_BxGxNxK.shape
    x_BxGxRxTxK = x_BxGxNxK.reshape(B, G, N // T, T, K)
    return x_BxGxRxTxK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * N // T, K)


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or unchanged if it is float64."""
    return x.astype(_wide(x))


def _wide(x: Array) -> jnp.dtype:
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _wide_einsum(spec: str, x: Array, y: Array) -> Array:
    """The product in float32, as it was summed."""
    return jnp.einsum(spec, x, y, preferred_element_type=_wide(x))
