"""The recurrence of a GRU with a derivative written by hand (see custom_vjp)."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from research.models import activation_sharding
from research.models.custom_vjp import at_least_float32, materialize


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def recurrence(x_TxBxE: Array, h_BxD: Array, u_DxE: Array, c_D: Array, unroll: int = 1) -> Array:
    """The states h_1 … h_T of a gated recurrent unit, [T, B, D] in float32, from h_0 and the input
    projections x of the gates r, z, n (E = 3D; see research/models/gru.py for the equations).

    With y = h U and a = y_n + c, backward in time from g = dh_t (including what later steps add):

        dn̂ = g (1 − z) (1 − n²);  dẑ = g (h − n) z (1 − z);  dr̂ = dn̂ a r (1 − r)
        dx = (dr̂, dẑ, dn̂);  dy = (dr̂, dẑ, dn̂ r);  dh_{t−1} = g z + dy Uᵀ

    dU = Σ_t h_{t−1}ᵀ dy_t and dc = Σ_t dn̂ r are one matmul and one sum after the loop. Plain jax
    accumulates dU at every step, with an all-reduce each time where the batch is sharded.
    """
    return _recurrence_forward(x_TxBxE, h_BxD, u_DxE, c_D, unroll)[0]


def _recurrence_forward(
    x_TxBxE: Array, h_BxD: Array, u_DxE: Array, c_D: Array, unroll: int
) -> tuple[Array, tuple]:
    def step(h_BxD: Array, x_BxE: Array) -> tuple[Array, tuple]:
        # The state stays in float32: rounding errors would accumulate over the steps.
        h_BxD, x_BxE = activation_sharding.shard_rows(h_BxD), activation_sharding.shard_rows(x_BxE)
        rx, zx, nx = jnp.split(at_least_float32(x_BxE), 3, axis=-1)
        rh, zh, nh = jnp.split(at_least_float32(h_BxD.astype(u_DxE.dtype) @ u_DxE), 3, axis=-1)
        r_BxD, z_BxD = jax.nn.sigmoid(rx + rh), jax.nn.sigmoid(zx + zh)
        a_BxD = nh + c_D[None]
        n_BxD = jnp.tanh(nx + r_BxD * a_BxD)
        after_BxD = (1 - z_BxD) * n_BxD + z_BxD * h_BxD
        after_BxD = activation_sharding.shard_rows(after_BxD)
        # In float32: of 1 − z and 1 − n² a gate near saturation would leave nothing in 8 bits.
        return after_BxD, (after_BxD, h_BxD, r_BxD, z_BxD, n_BxD, a_BxD.astype(u_DxE.dtype))

    _, (h_TxBxD, *saved) = jax.lax.scan(step, h_BxD, x_TxBxE, unroll=min(unroll, len(x_TxBxE)))
    return h_TxBxD, (saved, u_DxE, c_D, jnp.zeros((), x_TxBxE.dtype))


def _recurrence_backward(unroll: int, saved: tuple, g_TxBxD: Array) -> tuple[Array, ...]:
    steps, u_DxE, c_D, like_x = saved
    u_ExD = materialize(u_DxE.T)

    def step(later_BxD: Array, at: tuple) -> tuple[Array, tuple]:
        g_BxD, *gates = at
        h_BxD, r_BxD, z_BxD, n_BxD, a_BxD = (at_least_float32(x) for x in gates)
        g_BxD = activation_sharding.shard_rows(g_BxD + later_BxD)
        dn_BxD = g_BxD * (1 - z_BxD) * (1 - n_BxD * n_BxD)
        dz_BxD = g_BxD * (h_BxD - n_BxD) * z_BxD * (1 - z_BxD)
        dr_BxD = dn_BxD * a_BxD * r_BxD * (1 - r_BxD)
        dy_BxE = jnp.concatenate([dr_BxD, dz_BxD, dn_BxD * r_BxD], axis=-1).astype(u_DxE.dtype)
        return g_BxD * z_BxD + at_least_float32(dy_BxE @ u_ExD), (
            dy_BxE,
            dn_BxD.astype(like_x.dtype),
        )

    zeros_BxD = jnp.zeros_like(g_TxBxD[0])
    unroll = min(unroll, len(g_TxBxD))
    dh_BxD, (dy_TxBxE, dn_TxBxD) = jax.lax.scan(
        step, zeros_BxD, (g_TxBxD, *steps), reverse=True, unroll=unroll
    )
    D = c_D.shape[0]
    # As in _weight_gradient, but over two separate axes: flattening [T, B] would gather the sharded
    # batch axis on every device.
    h_DxTxB = materialize(jnp.moveaxis(steps[0].astype(u_DxE.dtype), -1, 0))
    du_DxE = jnp.einsum("dtb,tbe->de", h_DxTxB, dy_TxBxE)
    dc_D = at_least_float32(dy_TxBxE[..., 2 * D :]).sum((0, 1)).astype(c_D.dtype)
    dx_TxBxE = jnp.concatenate([dy_TxBxE[..., : 2 * D].astype(like_x.dtype), dn_TxBxD], axis=-1)
    return dx_TxBxE, dh_BxD, du_DxE, dc_D


recurrence.defvjp(_recurrence_forward, _recurrence_backward)
