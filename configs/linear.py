"""Linear regression by gradient descent, beside its closed form: y = 3 x + 2 + noise.

Full-batch Adam with a rate that falls to nothing; the result says how far it is from the least
squares solution.
"""

import ml_collections


def get_config():
    return ml_collections.ConfigDict(
        {
            "name": "linear",
            "seed": 0,
            "size": None,
            "model": {"name": "linear"},
            "data": {
                "name": "linear",
                "weights": [3.0],
                "bias": 2.0,
                "noise": 1.0,
                "examples": 1000,
                "heldout": 1000,
                "seed": 0,
            },
            "batch": {"size": None, "seed": 0, "accumulate": 1},  # none: all training examples
            "task": {"name": "regression"},
            "optim": {
                "optimizer": {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8},
                "schedule": {"name": "cosine", "final": 0.0},
                "warmup": {"unit": "steps", "amount": 0.0},
                "lr": 0.1,
                "lr_rule": "constant",
                "clip": None,
                "ema": None,
            },
            "init": {"run": None, "step": None, "what": "params"},
            "horizon": {"unit": "steps", "amount": 2000.0},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "eval": {"examples": None, "batch": 1000, "every": 0},
            "save": {"every": 0, "keep": 1},
            "log": {"every": 50, "sinks": []},
            "loop": {"steps_per_dispatch": "auto"},
        }
    )
