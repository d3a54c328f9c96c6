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
                "generator_seed": 0,
                "seed": 0,  # of the order of the training examples
            },
            # none: all training examples
            "batch": {"size": None, "grad_accumulation": 1, "rule": "constant"},
            "task": {"name": "regression"},
            "optim": {
                "optimizer": {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8},
                "schedule": {"name": "cosine", "final": 0.0},
                "warmup": {"unit": "steps", "amount": 0.0},
                "lr": 0.1,
                "lr_rule": "constant",
                # The base shape at which these numbers hold, and the rule by which they follow a
                # model's own: "mup", "complete_p", or "spectral" for Muon.
                "transfer": {"rule": "none", "width": None, "depth": None, "head_size": None},
                # The run at which these numbers hold, and the rule by which they follow tokens and
                # batch: "power_lines", "complete_p", "marin" or "token_horizon".
                "horizon_rule": {"rule": "none", "tokens": None, "batch": None},
                "recipe": None,  # the file that the rules "fitted" of learning rate and batch read
                "clip": None,
                "ema": None,
                "skip": None,  # or standard deviations that a loss may exceed its mean
            },
            "init": {"run": None, "step": None, "what": "params"},
            "horizon": {"unit": "steps", "amount": 2000.0},
            # What a mesh does not divide is an error, or lies whole on every device ("replicate").
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "indivisible": "error"},
            "eval": {"examples": None, "batch": 1000, "every": 0},
            # Every so many steps, and minutes; the `keep` latest are kept, and the best by a metric
            # of the evaluations ("loss"). What the disk refuses ends the run ("continue": not).
            "save": {
                "every": 0,
                "every_minutes": None,
                "keep": 1,
                "best": None,
                "asynchronous": False,  # whether training goes on while a state is written
                "on_error": "stop",
            },
            "log": {"every": 50, "trackers": []},
            # Steps that are sent at once: a number, or as many as take about a second. What takes
            # more than 10 times its median and more than `hang_seconds` ends the process, as does
            # what is done for the first time, and may compile. None: nothing does.
            "loop": {
                "steps_per_dispatch": "auto",
                "hang_seconds": 60.0,
                "hang_first_seconds": 3600.0,
            },
        },
        type_safe=False,  # types are checked with everything else, and explained
    )
