"""What each derivative written by hand is worth: the training step without it, against all of them.

python -m tools.bench.what_pays --width=128 --layers=4 --batch=16

The step of configs/lm_gpt2.py on the devices that a run takes; one program for each row, which take
turns, so that what else the machine does falls on all of them. A row says the median milliseconds
of a step, and the seconds of processor that it took, which other processes disturb less.
"""

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research.config import validation
from research.config.loading import load_config, validated
from research.models import custom_vjp
from research.parallel import device_mesh
from research.training import step, trainer
from research.training.make_run import make_run
from research.training.trainer import run_mesh


def plain_norm(x: Array, scale_D: Array, centered: bool) -> Array:
    x = x - x.mean(-1, keepdims=True) if centered else x
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale_D[None]


def plain_attention(q: Array, k: Array, v: Array, at: Array | int = 0) -> Array:
    scores = jnp.einsum("bthk,bshk->bhts", q / math.sqrt(q.shape[-1]), k)
    past = at + jnp.arange(q.shape[1])[:, None] >= jnp.arange(k.shape[1])[None]
    weights = jax.nn.softmax(jnp.where(past[None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


PLAIN: dict[str, Callable] = {
    "dense": jnp.matmul,
    "causal_attention_vjp": plain_attention,
    "gelu": jax.nn.gelu,
    "normalize": plain_norm,
}


def program(changes: dict, without: tuple[str, ...], steps: int) -> Callable[[], None]:
    """A function that takes `steps` training steps; the ops named in `without` are plain jax."""
    config, _ = load_config("configs/lm_gpt2.py")
    config, problems = validation.override(config, changes)
    assert not problems, problems
    run = make_run(validated(config))
    for cached in (step.dispatch_program, step.init_program, trainer._place_state):
        cached.cache_clear()
    jax.clear_caches()  # of what was traced, so of the other programs too: hence one compiled ahead
    ours = {name: getattr(custom_vjp, name) for name in without}
    for name in without:
        setattr(custom_vjp, name, PLAIN[name])
    run_trainer = trainer.Trainer(run, run_mesh(run))
    batches = run_trainer.batches(0, steps, steps)
    compiled = run_trainer.lower(steps).compile()
    for name, op in ours.items():
        setattr(custom_vjp, name, op)
    states, count = [run_trainer.init()], jax.device_put(np.int32(steps))

    def go() -> None:
        states.append(compiled(states.pop(), batches, run_trainer.hyper, count)[0])
        jax.block_until_ready(states[0])

    return go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"width": 128, "layers": 4, "batch": 16, "steps": 10, "turns": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    device_mesh.use_all_cpu_cores()
    changes = {
        "model.width": args.width,
        "model.depth": args.layers,
        "model.hidden": 4 * args.width,
        "batch.size": args.batch,
        "model.unroll": args.layers,
    }
    looped = {**changes, "model.unroll": 1}
    rows = {
        "all": program(changes, (), args.steps),
        **{f"without {name}": program(changes, (name,), args.steps) for name in PLAIN},
        "without any": program(changes, tuple(PLAIN), args.steps),
        "layers in a loop": program(looped, (), args.steps),
        "layers in a loop, without gelu": program(looped, ("gelu",), args.steps),
    }
    wall: dict[str, list[float]] = {name: [] for name in rows}
    cpu: dict[str, list[float]] = {name: [] for name in rows}
    faults: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(args.turns):
        for name, go in rows.items():
            before = time.perf_counter(), time.process_time(), _faults()
            go()
            after = time.perf_counter(), time.process_time(), _faults()
            for out, a, b in zip((wall, cpu, faults), after, before, strict=True):
                out[name].append((a - b) / args.steps)
    print(f"{'':32}  ms a step  processor ms  page faults")
    for name in rows:
        times = 1e3 * statistics.median(wall[name]), 1e3 * statistics.median(cpu[name])
        print(
            f"{name:32} {times[0]:10.1f} {times[1]:13.1f} {statistics.median(faults[name]):12.0f}"
        )


def _faults() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
