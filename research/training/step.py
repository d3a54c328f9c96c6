"""One training step, and the programs that run it. All numbers are traced; nothing here knows a
config, a file or a run."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from research.models import Model
from research.parallel import device_mesh
from research.training import schedules
from research.training.gradient_accumulation import mean_loss_and_gradient
from research.training.optimizers import Optimizer
from research.training.tasks import Task

if TYPE_CHECKING:
    from research.training.internals import Internals
    from research.training.transfer import Transfer


class Hyper(NamedTuple):
    """The numbers of a run that are traced, float32 scalars: runs that differ in them alone share a
    compiled program. None is off, which another program computes."""

    lr: Any
    warmup: Any  # steps
    total: Any  # steps
    clip: Any
    ema: Any
    skip: Any
    optimizer: Mapping[str, Any]  # by keyword, as of `schedule`
    schedule: Mapping[str, Any]


class TrainState(NamedTuple):
    """Everything that a step changes. `step` counts the updates made; `average` is the moving
    average of the parameters, if there is one."""

    step: Array
    params: dict
    opt_state: Any
    average: dict | None = None

    @property
    def eval_params(self) -> dict:
        """The parameters that are evaluated and used."""
        return self.params if self.average is None else self.average


class StepSpec(NamedTuple):
    """What a compiled step depends on. All numbers of the optimizer and its schedule are traced;
    static choices of the optimizer, such as Nesterov momentum, are part of it.

    A step takes its batch in `grad_accumulation` parts, which need the memory of one."""

    model: Model
    task: Task
    optimizer: Optimizer
    schedule: schedules.Choice
    grad_accumulation: int = 1
    transfer: "Transfer | None" = None
    internals: "Internals | None" = None

    def init(self, key: Array, inputs: Array, hyper: Hyper) -> TrainState:
        params = self.model.init(key, inputs)
        if self.transfer is not None:
            params = self.transfer.initial(params)
        return init_from_params(params, self.optimizer, hyper, self.transfer)

    def gradient(self, params: dict, batch: Mapping[str, Array]) -> tuple[Array, dict]:
        """The mean loss of a batch, in nats per token or per example, and its gradient."""
        summed_loss, transfer = functools.partial(self.task.loss, self.model), self.transfer
        if transfer is not None and transfer.frozen:
            whole = summed_loss
            summed_loss = lambda params, batch: whole(transfer.held(params), batch)  # noqa: E731
        return mean_loss_and_gradient(summed_loss, params, batch, self.grad_accumulation)

    def step(
        self, state: TrainState, batch: Mapping[str, Array], hyper: Hyper
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update. The metrics are of the state before it, the norm is that which is clipped."""
        loss, grads = self.gradient(state.params, batch)
        if self.transfer is not None:
            grads = self.transfer.gradient(grads)
        norm = optax.tree.norm(grads)
        updates, opt_state = update_rule(self.optimizer, hyper, self.transfer).update(
            grads, state.opt_state, state.params, loss=loss, norm=norm
        )
        lr = schedules.learning_rate(
            self.schedule, state.step, hyper.lr, hyper.warmup, hyper.total, hyper.schedule
        )
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        average = state.average
        if average is not None:
            average = _moving_average(average, params, state.step, hyper.ema)
        new = TrainState(state.step + 1, params, opt_state, average)
        metrics = {"train_loss": loss, "grad_norm": norm, "lr": lr}
        if hyper.skip is not None:
            metrics["skips"] = new.opt_state.skipped
            metrics["skipped"] = new.opt_state.skipped - state.opt_state.skipped
        if self.internals is not None:
            metrics |= self.internals(self.model, state, batch, grads, lr, updates)
        return new, metrics


def update_rule(
    optimizer: Optimizer, hyper: Hyper, transfer: "Transfer | None" = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, of a clipped gradient where asked, which skips spikes where asked."""
    rule = optimizer.transform(hyper.optimizer)
    if transfer is not None:
        rule = transfer.around(rule)
    if hyper.clip is not None:
        rule = optax.chain(optax.clip_by_global_norm(hyper.clip), rule)
    if hyper.skip is not None:
        from research.training.spike_skipping import skip_spikes  # lazily: few runs ask for it

        rule = skip_spikes(rule, hyper.skip)
    return optax.with_extra_args_support(rule)


def init_from_params(
    params: dict, optimizer: Optimizer, hyper: Hyper, transfer: "Transfer | None" = None
) -> TrainState:
    """The state before the first update of `params`."""
    average = None if hyper.ema is None else jax.tree.map(jnp.copy, params)
    opt_state = update_rule(optimizer, hyper, transfer).init(params)
    return TrainState(jnp.int32(0), params, opt_state, average)


def _moving_average(average: dict, params: dict, step: Array, decay: Array) -> dict:
    """The exponential moving average of the parameters after a step. The first steps, which hold
    what the initialization drew, are forgotten sooner: decay ≤ (1 + step) / (10 + step)."""
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: p + keep * (a - p), average, params)


@dataclass(frozen=True)
class Placement:
    """The shardings of a whole state on a mesh; programs are cached by it."""

    mesh: Mesh
    leaves: tuple[NamedSharding, ...]
    structure: Any

    @property
    def tree(self) -> TrainState:
        return jax.tree.unflatten(self.structure, self.leaves)


# Of XLA for CPU, where they change no number: what runs once is not optimized; with jaxlib 0.10 its
# older emitters compile it in half the time, and steps of LLVM's first level are as fast.
_ONCE, _STEPS = {"xla_backend_optimization_level": 0}, {}
if jax.__version__.startswith("0.10."):
    _ONCE["xla_cpu_use_fusion_emitters"] = False
    _STEPS["xla_backend_optimization_level"] = 1


def _on_cpu(mesh: Mesh, options: dict[str, int]) -> dict[str, int] | None:
    barely = jax.config.read("jax_disable_most_optimizations")
    return None if barely or mesh.devices.flat[0].platform != "cpu" else options


@functools.lru_cache(maxsize=64)
def init_program(spec: StepSpec, shardings: Placement) -> Callable:
    """(key, inputs, hyper) → the first state, made where it lies, jitted."""
    init = device_mesh.with_mesh_names(shardings.mesh, spec.init)
    options = _on_cpu(shardings.mesh, _ONCE)
    return jax.jit(init, out_shardings=shardings.tree, compiler_options=options)


@functools.lru_cache(maxsize=64)
def dispatch_program(spec: StepSpec, shardings: Placement) -> jax.stages.Wrapped:
    """(state, batches [S, B, ...], hyper, n) → (state after n steps, metrics [S]), jitted.

    Several steps in one dispatch spare the host's overhead, and on CPU the page faults of memory
    that is given back after every call. `n` ≤ S is traced, so one program serves the remainder of
    a run and the way to the next checkpoint, and any split into dispatches computes the same. A
    step that is not finite ends its dispatch, so a run that diverges goes no further than the next
    one, although the host looks at no step by itself.
    """
    run_steps = steps_while(spec.step, finite_or_skipped)
    run_steps = device_mesh.with_mesh_names(shardings.mesh, run_steps)
    out, options = (shardings.tree, None), _on_cpu(shardings.mesh, _STEPS)
    return jax.jit(run_steps, donate_argnums=0, out_shardings=out, compiler_options=options)


def finite_or_skipped(state: TrainState, metrics: Mapping[str, Array]) -> Array:
    """Whether a step was finite, or was skipped because it was not."""
    finite = jnp.isfinite(metrics["train_loss"]) & jnp.isfinite(metrics["grad_norm"])
    return finite | (metrics["skipped"] > 0) if "skipped" in metrics else finite


def steps_while(step: Callable, keep_going: Callable[[Any, Any], Array]) -> Callable:
    """`n` of one step (state, batch, hyper) → (state, metrics) in a loop on the device, or fewer:
    none follows one that is not `keep_going`(state, metrics). Metrics of steps not taken are 0."""
    step = jax.jit(step, inline=True)  # so that it is traced once and not for its shapes too

    def run_steps(state: Any, batches: dict, hyper: Hyper, n: Array) -> tuple:
        size = jax.tree.leaves(batches)[0].shape[0]
        first_batch = jax.tree.map(lambda x: x[0], batches)
        _, one_step = jax.eval_shape(step, state, first_batch, hyper)
        zeros = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), one_step)

        def body(carry: tuple) -> tuple:
            i, _, state, metrics = carry
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), batches)
            state, new = step(state, batch, hyper)
            metrics = jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)
            return i + 1, keep_going(state, new), state, metrics

        first = jnp.int32(0), jnp.bool_(True), state, zeros
        return jax.lax.while_loop(lambda carry: (carry[0] < n) & carry[1], body, first)[2:]

    return run_steps


@functools.lru_cache(maxsize=64)
def eval_program(spec: StepSpec, mesh: Mesh) -> Callable:
    """(params, batches [S, B, ...], weights [S, B]) → sums of the task's terms, jitted."""
    sums = device_mesh.with_mesh_names(mesh, functools.partial(evaluation_sums, spec))
    return jax.jit(sums, compiler_options=_on_cpu(mesh, _STEPS))


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
