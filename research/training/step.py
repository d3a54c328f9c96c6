"""One training step, and the programs that run it. All numbers are traced; nothing here knows a
config, a file or a run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from research.models import Model
from research.parallel import sharding
from research.training import schedules
from research.training.gradient_accumulation import mean_loss_and_gradient
from research.training.optimizers import Optimizer
from research.training.tasks import Task


class TrainState(NamedTuple):
    """Everything that a step changes. `step` counts the updates made; `average` is the moving
    average of the parameters, if there is one."""

    step: Array
    params: dict
    opt_state: Any
    average: dict | None = None

    @property
    def evaluated(self) -> dict:
        """The parameters that are evaluated and used."""
        return self.params if self.average is None else self.average


class StepSpec(NamedTuple):
    """What a compiled step depends on. All numbers of the optimizer and its schedule are traced;
    static choices of the optimizer, such as Nesterov momentum, are part of it.

    A step takes its batch in `grad_accumulation` parts, one after the other, which need the memory
    of one. `replicate`: leaves that a mesh does not divide are on every device.
    """

    model: Model
    task: Task
    optimizer: Optimizer
    schedule: str
    grad_accumulation: int = 1
    replicate: bool = False

    def transform(self, hyper: Mapping) -> optax.GradientTransformationExtraArgs:
        made = self.optimizer.transform(hyper["optimizer"])
        if hyper["clip"] is not None:
            made = optax.chain(optax.clip_by_global_norm(hyper["clip"]), made)
        if hyper["skip"] is not None:
            from research.training.spike_skipping import skip_spikes  # which few runs ask for

            made = skip_spikes(made, hyper["skip"])
        return optax.with_extra_args_support(made)

    def init(self, key: Array, inputs: Array, hyper: Mapping) -> TrainState:
        return self.begin(self.model.init(key, inputs), hyper)

    def begin(self, params: dict, hyper: Mapping) -> TrainState:
        """The state before the first update of `params`."""
        average = None if hyper["ema"] is None else jax.tree.map(jnp.copy, params)
        return TrainState(jnp.int32(0), params, self.transform(hyper).init(params), average)

    def gradient(self, params: dict, batch: Mapping[str, Array]) -> tuple[Array, dict]:
        """The mean loss of a batch, in nats per token or per example, and its gradient."""
        summed_loss = functools.partial(self.task.loss, self.model)
        return mean_loss_and_gradient(summed_loss, params, batch, self.grad_accumulation)

    def step(
        self, state: TrainState, batch: Mapping[str, Array], hyper: Mapping
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update. The metrics are of the state before it."""
        loss, grads = self.gradient(state.params, batch)
        norm = optax.tree.norm(grads)
        update: Callable[..., tuple[Any, Any]] = self.transform(hyper).update
        updates, opt_state = update(grads, state.opt_state, state.params, loss=loss, norm=norm)
        lr = schedules.learning_rate(self.schedule, state.step, hyper)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        metrics = {"train_loss": loss, "grad_norm": norm, "lr": lr}
        if hyper["skip"] is not None:
            metrics["skips"] = opt_state.skipped
            metrics["skipped"] = opt_state.skipped - state.opt_state.skipped
        average = _moving_average(state.average, params, state.step, hyper["ema"])
        return TrainState(state.step + 1, params, opt_state, average), metrics


def _moving_average(
    average: dict | None, params: dict, step: Array, decay: Array | None
) -> dict | None:
    """The exponential moving average of the parameters after a step. The first steps, which hold
    what the initialisation drew, are forgotten sooner: decay ≤ (1 + step) / (10 + step)."""
    if average is None or decay is None:
        return None
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: p + keep * (a - p), average, params)


# A program that runs once is compiled without optimising it: half the time, of that and of its kind
# a third of what a small model takes to compile.
_ONCE = {"xla_backend_optimization_level": 0}


@functools.lru_cache(maxsize=64)
def init_program(spec: StepSpec, shardings: Any) -> Callable:
    """(key, inputs, hyper) → the first state, made where it lies, jitted."""
    options = _ONCE if jax.default_backend() == "cpu" else None
    init = sharding.with_mesh_names(shardings.mesh, spec.init)
    return jax.jit(init, out_shardings=shardings.tree, compiler_options=options)


@functools.lru_cache(maxsize=64)
def dispatch_program(spec: StepSpec, shardings: Any) -> jax.stages.Wrapped:
    """(state, batches [S, B, ...], hyper, n) → (state after n steps, metrics [S]), jitted.

    Several steps in one dispatch spare the host's overhead, and on CPU the page faults of memory
    that is given back after every call. `n` ≤ S is traced, so one program serves the remainder of
    a run and the way to the next checkpoint, and any split into dispatches computes the same. A
    step that is not finite ends its dispatch, so a run that diverges goes no further than the next
    one, although the host looks at no step by itself.
    """

    run_steps = sharding.with_mesh_names(shardings.mesh, several_steps(spec.step, is_sound))
    return jax.jit(run_steps, donate_argnums=0, out_shardings=(shardings.tree, None))


def is_sound(state: TrainState, metrics: Mapping[str, Array]) -> Array:
    """Whether a step was finite, or was skipped because it was not."""
    finite = jnp.isfinite(metrics["train_loss"]) & jnp.isfinite(metrics["grad_norm"])
    return finite | (metrics["skipped"] > 0) if "skipped" in metrics else finite


def several_steps(step: Callable, going: Callable[[Any, Any], Array]) -> Callable:
    """`n` of one step (state, batch, hyper) → (state, metrics) in a loop on the device, or fewer:
    the last is one that is not `going`(state, metrics). Metrics of steps not taken are 0."""
    step = jax.jit(step, inline=True)  # so that it is traced once and not for its shapes too

    def run_steps(state: Any, batches: dict, hyper: dict, n: Array) -> tuple:
        size = jax.tree.leaves(batches)[0].shape[0]
        blank = jax.eval_shape(step, state, jax.tree.map(lambda x: x[0], batches), hyper)[1]
        blank = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), blank)

        def body(carry: tuple) -> tuple:
            i, _, state, metrics = carry
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), batches)
            state, new = step(state, batch, hyper)
            metrics = jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)
            return i + 1, going(state, new), state, metrics

        first = jnp.int32(0), jnp.bool_(True), state, blank
        return jax.lax.while_loop(lambda carry: (carry[0] < n) & carry[1], body, first)[2:]

    return run_steps


@functools.lru_cache(maxsize=64)
def eval_program(spec: StepSpec, mesh: Mesh) -> Callable:
    """(params, batches [S, B, ...], weights [S, B]) → sums of the task's terms, jitted."""
    return jax.jit(sharding.with_mesh_names(mesh, functools.partial(evaluation_sums, spec)))


def evaluation_sums(
    spec: StepSpec, params: dict, batches: dict, weights: Array
) -> dict[str, Array]:
    def add(sums: dict, item: tuple) -> tuple:
        batch, weight_B = item
        terms = spec.task.terms(spec.model, params, batch)
        weighted = {k: t * weight_B.reshape(-1, *[1] * (t.ndim - 1)) for k, t in terms.items()}
        return {k: sums[k] + weighted[k].sum(axis=0) for k in sums}, None

    first = jax.tree.map(lambda x: x[0], batches)
    terms = functools.partial(spec.task.terms, spec.model)
    shapes = jax.eval_shape(terms, params, first)
    zeros = {name: jnp.zeros(x.shape[1:], jnp.float32) for name, x in shapes.items()}
    return jax.lax.scan(add, zeros, (batches, weights))[0]


class Placement:
    """The shardings of a whole state on a mesh, hashable by identity so that programs are cached
    by it."""

    def __init__(self, tree: Any, mesh: Mesh):
        self.tree, self.mesh = tree, mesh


@functools.lru_cache(maxsize=64)
def placement(spec: StepSpec, mesh: Mesh, inputs: Any, structure: Any) -> tuple[Placement, Any]:
    """Where every leaf of the state lies, and the abstract state laid out so. Allocates nothing."""
    hyper = jax.tree.unflatten(structure, [np.float32(0)] * structure.num_leaves)
    abstract = jax.eval_shape(spec.begin, spec.model.shapes(inputs), hyper)
    rules = spec.model.sharding
    tree = sharding.state_shardings(abstract, rules, mesh, spec.replicate)
    split = getattr(spec.model.family, "SPLIT", {})
    sharding.check_fields(spec.model.spec, split, mesh.shape)
    laid_out = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, tree
    )
    return Placement(tree, mesh), laid_out
