"""One run of a sweep around nanodo's model, as a process: trained, evaluated, its losses written.

Started by sweep.py; DATA holds the batches [steps, B, T] and the held-out windows [S, B, T].
"""

import argparse
import json

import jax
import numpy as np
from peer_nanodo import model, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--repo", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--lr", type=float, required=True)
    for name in ("width", "layers", "steps", "every"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    data = np.load(args.data)
    inputs, targets = data["train_inputs"], data["train_targets"]
    held_inputs, held_targets = data["held_inputs"], data["held_targets"]
    init, update, loss = training(model(args.repo, args.width, args.layers), args.lr, args.steps)
    state, before = init(jax.random.key(0)), None

    def evaluated() -> float:
        values = [loss(state[0], *rows) for rows in zip(held_inputs, held_targets, strict=True)]
        return float(np.mean([float(value) for value in values]))

    losses, evaluations = [], {}
    for step in range(args.steps):
        if step and step % args.every == 0:
            evaluations[step] = evaluated()
        state, value = update(state, inputs[step], targets[step])
        if before is not None:
            losses.append(float(before))
        before = value
    losses.append(float(before))
    evaluations[args.steps] = evaluated()
    with open(args.out, "w") as file:
        json.dump({"losses": losses, "held_out": evaluations}, file)


if __name__ == "__main__":
    main()
