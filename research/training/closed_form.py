"""What training reached, compared with the best parameters where a family knows them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research.parallel import distributed
from research.training.run import Run


def compare(
    run: Run, evaluate: Callable[[dict], Mapping[str, Any]], params: dict
) -> dict[str, float]:
    """The held-out loss, by `evaluate`, of the best parameters for targets that are numbers, and
    how far `params` are from them (the largest difference of a parameter)."""
    train = run.data.train
    best = run.model.family.solve(train.rows(np.arange(len(train))))
    there = distributed.gather(params)
    away = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), there, best)
    placed = jax.tree.map(lambda p, b: jax.device_put(np.float32(b), p.sharding), params, best)
    return {
        "closed_form_loss": evaluate(placed)["loss"],
        "closed_form_distance": max(jax.tree.leaves(away)),
    }
