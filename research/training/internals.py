"""What a run logs of its updates beside loss and norm (`log.internals`).

A metric is a function of the model and of an Update, and names scalars as "NAME/PART". Every run
has `rms_by_module`; a task or a family that lists more as INTERNALS adds them to its runs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from research.models import Model
from research.params import leaves_by_path
from research.training.tasks import Task


class Update(NamedTuple):
    """One update, as its metrics see it: the `params` before it, as stored; the `gradient` whose
    norm is `grad_norm`, before it is clipped; the `change`, learning rate and all, that is
    subtracted from the parameters. What is frozen has a gradient and a change of 0, what is skipped
    a change of 0."""

    params: dict
    gradient: dict
    change: dict
    batch: Mapping[str, Array]


NAMES = {"params": "param_rms", "gradient": "grad_rms", "change": "update_rms"}
Metric = Callable[[Model, Update], dict[str, Array]]


class Internals(NamedTuple):
    """The `metrics` of every `every`-th update, which is the one that is logged; 0 at others."""

    every: int
    metrics: tuple[Metric, ...]

    def __call__(
        self,
        model: Model,
        state: Any,
        batch: Mapping[str, Array],
        gradient: dict,
        lr: Array,
        updates: Any,
    ) -> dict[str, Array]:
        """Those of the update that subtracts `lr` times `updates` from the parameters of `state`,
        a TrainState, in float32."""

        def measured() -> dict[str, Array]:
            change = jax.tree.map(lambda u: lr * u, updates)
            update = Update(state.params, gradient, change, batch)
            named = [item for metric in self.metrics for item in metric(model, update).items()]
            names = [name for name, _ in named]
            if len({*names}) < len(names) or not all("/" in name for name in names):
                raise ValueError(f"{', '.join(names)}: expected names like grad_rms/embed, once")
            return {name: jnp.float32(value) for name, value in named}

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measured))
        # A branch of its own costs nothing where it is not taken (vmapped runs compute it always),
        # and what it reads of the step is computed as it would be without it.
        return jax.lax.cond(state.step % self.every == 0, measured, lambda: zeros)


def rms_by_module(model: Model, update: Update) -> dict[str, Array]:
    """√(Σ x² / n) over the n numbers x of a module, the first part of a parameter's path (`embed`,
    `blocks` with all its layers, `final_norm`, …): of the parameters, of their gradient and of the
    change."""
    del model
    out = {}
    for name, short in NAMES.items():
        modules: dict[str, list[Array]] = {}
        for path, leaf in leaves_by_path(getattr(update, name)).items():
            modules.setdefault(path.partition("/")[0], []).append(leaf)
        for module, leaves in modules.items():
            square = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
            count = sum(leaf.size for leaf in leaves)
            out[f"{short}/{module}"] = jnp.sqrt(square / count)
    return out


def internals(every: int, task: Task, model: Model) -> Internals:
    """Those of a run: of every run, and those that its task and its family add."""
    own = (*getattr(task, "INTERNALS", ()), *getattr(model.family, "INTERNALS", ()))
    return Internals(every, (rms_by_module, *own))
