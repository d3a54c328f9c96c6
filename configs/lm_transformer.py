"""A Llama-shaped transformer on text: RMSNorm, rotary positions, SwiGLU, no biases, untied head."""

import ml_collections


def get_config():
    return ml_collections.ConfigDict(
        {
            "name": "lm_transformer",
            "seed": 0,  # of the initialization
            # Target parameter count; fills width, depth, heads, kv_heads and hidden below.
            "size": 3e5,
            "model": {
                "name": "transformer",
                "width": None,
                "depth": None,
                "heads": None,
                "kv_heads": None,
                "hidden": None,
                "norm": "rms",
                "positions": "rotary",
                "rotary_theta": 1e4,
                "activation": "swiglu",
                "qk_norm": False,
                "bias": False,
                "tie_embeddings": False,
                "dtype": "float32",
                "attention": "auto",  # cuDNN where it can be, "own" elsewhere; or "xla"
                "remat": "none",  # or "dots", "projections", "offload", "full": see docs/running.md
                "unroll": 1,
            },
            "data": {
                "name": "text",
                # The source of Python's standard library, or a .txt, .jsonl or .bin file.
                "path": "stdlib",
                "field": "text",  # of a .jsonl
                "tokenizer": "bytes",
                "vocab": None,  # of a .bin
                "context": 128,
                "heldout": 0.125,
                "undecodable": "error",  # bytes that are not UTF-8; or "replace"
                "seed": 0,  # of the order of the training examples
            },
            # Sequences, or with "rule": "sqrt_tokens" those at 1e6 tokens; in how many parts, one
            # after the other, a step takes them.
            "batch": {"size": 4, "grad_accumulation": 1, "rule": "constant"},
            # Tokens of a device whose logits are in memory at once; none: by rule, 0: all.
            "task": {"name": "language_modeling", "chunk": None},
            "optim": {
                "optimizer": {
                    "name": "adamw",
                    "b1": 0.9,
                    "b2": 0.98,
                    "eps": 1e-8,
                    "weight_decay": 0.01,
                },
                "schedule": {"name": "cosine", "final": 0.05},
                "warmup": {"unit": "fraction", "amount": 0.1},
                "lr": 0.2,  # divided by the width
                "lr_rule": "inverse_width",
                # The base shape at which these numbers hold, and the rule by which they follow a
                # model's own: "mup", "complete_p", or "spectral" for Muon.
                "transfer": {"rule": "none", "width": None, "depth": None, "head_size": None},
                # The run at which these numbers hold, and the rule by which they follow tokens and
                # batch: "power_lines", "complete_p", "marin" or "token_horizon".
                "horizon_rule": {"rule": "none", "tokens": None, "batch": None},
                "recipe": None,  # the file that the rules "fitted" of learning rate and batch read
                "clip": 1.0,  # of the global gradient norm
                "ema": None,  # decay of a moving average of the parameters, which is evaluated
                "skip": None,  # or standard deviations that a loss may exceed its mean
                # By path: [["blocks/.*", {"lr": 0.1}], ["embed/.*", "frozen"]].
                "paths": None,
            },
            # Another run to start from: its "params", its whole "state", or its "shape" alone,
            # which is new parameters in a model of the same fields.
            "init": {"run": None, "step": None, "what": "params"},
            "horizon": {"unit": "tokens", "amount": 8e5},
            # What a mesh does not divide is an error, or lies whole on every device ("replicate").
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "indivisible": "error"},
            # `sets`: others that are evaluated too, [{"name": "val", "path": "val.bin"}], each in a
            # column loss/NAME; `headline`: the one that the run is measured by.
            "eval": {
                "examples": 1024,
                "batch": 64,
                "every": 200,
                "sets": None,
                "headline": None,
            },
            # Every so many steps, and minutes; the `keep` latest are kept, and the best by a metric
            # of the evaluations ("loss"). What the disk refuses ends the run ("continue": not).
            "save": {
                "every": 500,
                "every_minutes": None,
                "keep": 2,
                "best": None,
                "asynchronous": False,  # whether training goes on while a state is written
                "on_error": "stop",
            },
            "log": {"every": 10, "trackers": []},
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
