"""The classic convolutional network, 225,034 parameters, on 5,000 handwritten digits.

For your own images: --config.data.path=FOLDER, which holds one folder of images for each class.
"""

import ml_collections


def get_config():
    return ml_collections.ConfigDict(
        {
            "name": "cnn_digits",
            "seed": 0,  # of the initialization
            "size": None,  # or a target parameter count, which fills width, depth and hidden
            "model": {"name": "cnn", "width": 32, "depth": 2, "hidden": 128},
            "data": {
                "name": "images",
                # 5,000 digits of MNIST; or digits (8 x 8), a .npz, a folder, hub:NAME.
                "path": "mnist5k",
                "heldout": 0.2,  # none: the test part that the data come with
                "examples": None,  # all training images
                "resize": None,
                "shift": 2,  # pixels, at random, in training
                "flip": False,
                "seed": 0,  # of the order of the training examples
            },
            "batch": {"size": 64, "grad_accumulation": 1, "rule": "constant"},
            "task": {"name": "classification"},
            "optim": {
                "optimizer": {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8},
                "schedule": {"name": "cosine", "final": 0.0},
                "warmup": {"unit": "fraction", "amount": 0.05},
                "lr": 2e-3,
                "lr_rule": "constant",
                # The base shape at which these numbers hold, and the rule by which they follow a
                # model's own: "mup", "complete_p", or "spectral" for Muon.
                "transfer": {"rule": "none", "width": None, "depth": None, "head_size": None},
                # The run at which these numbers hold, and the rule by which they follow tokens and
                # batch: "power_lines", "complete_p", "marin" or "token_horizon".
                "horizon_rule": {"rule": "none", "tokens": None, "batch": None},
                "recipe": None,  # the file that the rules "fitted" of learning rate and batch read
                "clip": None,
                "ema": None,  # decay of a moving average of the parameters, which is evaluated
                "skip": None,  # or standard deviations that a loss may exceed its mean
            },
            # Another run to start from, and whether from its "params" or its whole "state".
            "init": {"run": None, "step": None, "what": "params"},
            "horizon": {"unit": "epochs", "amount": 10.0},
            # What a mesh does not divide is an error, or lies whole on every device ("replicate").
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "indivisible": "error"},
            "eval": {"examples": None, "batch": 250, "every": 125},  # none: all held-out images
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
            "log": {"every": 25, "trackers": []},
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
