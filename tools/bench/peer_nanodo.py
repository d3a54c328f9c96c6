"""nanodo's side of a comparison: its model and loss, trained by AdamW as its optimizer makes it.

python peer_nanodo.py --repo=CHECKOUT --width=64 --layers=2 --batch=16

One jitted, donating update on the default device, as its own loop would run it on one host without
accelerators: there JAX has one CPU device, and XLA shares it among the cores. Batches are random
windows of tokens made on the host for every step; the loss of a step is fetched when the next one
is on its way. Left out, to its advantage: the statistics that its loop computes in every step, and
the accumulation of gradients (MultiSteps) around its optimizer.
"""

import argparse
import os
import sys

import jax
import numpy as np
import optax
from turns import serve

CONTEXT, VOCAB, HEADS = 128, 256, 4


def model(repo: str, width: int, layers: int):
    sys.path.insert(0, os.path.abspath(repo))
    from nanodo import model as nanodo

    shape = {"D": width, "H": HEADS, "L": CONTEXT, "N": layers, "V": VOCAB, "F": 4 * width}
    return nanodo.TransformerDo(nanodo.DoConfig(**shape, fsdp_enabled=False))


def training(net, rate: float, steps: int):
    """(init(key) -> state, update(state, inputs, targets) -> (state, loss)) for inputs [B, T]."""
    # Its default: linear warm-up, cosine decay, weight decay 0.1.
    schedule = optax.warmup_cosine_decay_schedule(rate / 10, rate, steps // 10, steps, rate / 10)
    optimizer = optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1)

    def loss(params, inputs, targets):
        logits = net.apply({"params": params}, inputs)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def init(key):
        params = net.init(key, np.zeros((1, CONTEXT), np.int32))["params"]
        return params, optimizer.init(params)

    def update(state, inputs, targets):
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, inputs, targets)
        change, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, change), moments), value

    return jax.jit(init), jax.jit(update, donate_argnums=0), jax.jit(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True)
    for name in ("width", "layers", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    init, update, _ = training(model(args.repo, args.width, args.layers), 1e-3, 10_000)
    text = np.random.default_rng(0).integers(0, VOCAB, 1 << 20, dtype=np.int32)
    draw, before = np.random.default_rng(1), None
    state = init(jax.random.key(0))
    params = sum(x.size for x in jax.tree.leaves(state[0]))

    def step():
        nonlocal state, before
        at = draw.integers(0, len(text) - CONTEXT - 1, args.batch)[:, None] + np.arange(CONTEXT)
        state, value = update(state, text[at], text[at + 1])
        if before is not None:
            float(before)
        before = value
        return value

    serve(step, float, params=params, device=str(jax.devices()[0].platform))


if __name__ == "__main__":
    main()
