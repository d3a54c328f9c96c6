"""A coordinate check: how large the activations of every module are, and how far a few steps move
them (Yang et al. 2022, section D.1). Where a parametrization is right neither depends on the shape
of the model."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.models import Model
from research.params import leaves_by_path
from research.training import transfer
from research.training.optimizers import by_table
from research.training.run import Run
from research.training.trainer import host_batches, step_spec


def activations(model: Model, params: dict, inputs: Array) -> dict[str, Array]:
    """What every module returns, by its path, in float32; of a scanned one all layers, and of the
    stack itself, as "residual", only the last. Also "embedding" and the "logits"."""
    outputs, seen = model.module.apply(
        {"params": params}, inputs, capture_intermediates=True, mutable=["intermediates"]
    )  # type: ignore[misc]
    out: dict[str, Array] = {}
    for path, leaf in leaves_by_path(seen["intermediates"]).items():
        module, _, index = path.partition("__call__")
        if index in ("/0", "/0/0") and jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = module.strip("/")
            if name == "blocks":
                name, leaf = "residual", leaf[-1]
            if name:  # of the whole model it is what follows
                out[name] = leaf.astype(jnp.float32)
    leaves = leaves_by_path(params)
    if (table := leaves.get("embed/embedding")) is not None:
        out["embedding"] = table[inputs.reshape(-1)]
    language = hasattr(model.module, "unembed")
    return out | {"logits": model.unembed(params, outputs) if language else outputs}


# What may start at 0 in a check, and the roles of training.transfer that it has.
ZEROS: dict[str, tuple[str, ...]] = {
    "outputs": ("output", "branch"),
    "head": ("output",),
    "none": (),
}


def with_zeros(model: Model, params: dict, zeros: str) -> dict:
    """The parameters, with those of ZEROS starting at 0: a head of its own, and the last matrix of
    every residual branch."""
    roles = by_table(transfer.role_table(model), params, "row of TRANSFER")
    return jax.tree.map(lambda x, role: x * 0 if role in ZEROS[zeros] else x, params, roles)


def measure(run: Run, seeds: int, steps: int, zeros: str = "none") -> dict[str, np.ndarray]:
    """For every module [seeds, steps + 1, 2]: the RMS of its activations on the first batch, and
    that of their change since the initialization, before each step and after the last. Seeds are
    of the initialization. What `zeros` names starts at 0: the logits of a head that is drawn are
    noise that falls with the root of the width, and branches that are drawn add noise that a rule
    of depth makes fall with its root, which a short check takes for slopes of what is learned (Yang
    et al. 2022, section D.2)."""
    spec = step_spec(run)
    batches = jax.tree.map(jnp.asarray, host_batches(run, 0, steps, steps))

    def read(params: dict) -> dict[str, Array]:
        return activations(run.model, params, batches["inputs"][0])

    def one(key: Array) -> dict[str, Array]:
        state = spec.init(key, batches["inputs"][0], run.hyper)
        state = state._replace(params=with_zeros(run.model, state.params, zeros))
        first = read(state.params)

        def sizes(params: dict) -> Mapping[str, Array]:
            rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))  # noqa: E731
            now = read(params)
            return {name: jnp.stack([rms(x), rms(x - first[name])]) for name, x in now.items()}

        def step(state, batch):
            return spec.step(state, batch, run.hyper)[0], sizes(state.params)

        last, during = jax.lax.scan(step, state, batches)
        end = sizes(last.params)
        return {name: jnp.concatenate([x, end[name][None]]) for name, x in during.items()}

    # One seed after the other: vmapped, all their activations would be in memory at once.
    keys = jnp.stack([jax.random.key(run.seed + i) for i in range(seeds)])
    return jax.device_get(jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
