"""Which package of the standard library is this from? A language model, fine-tuned with a new head.

    python -m experiments.train --config=configs/lm_transformer.py --config.size=1e5 \\
        --workdir=runs/lm
    python -m experiments.sweep --config=configs/text_classes.py --config.init.run=runs/lm \\
        --workdir=runs/classes

The sweep trains on few and on many examples, from the language model and, the same network, from
nothing; its report compares them. The files that are held out are held out of the language model.
"""

from configs import lm_transformer
from research.config import grid


def get_config():
    config = lm_transformer.get_config()
    config.name = "text_classes"
    config.size = 1e5  # none with --config.init.run: the model is that run's
    config.data = {
        "name": "text_classes",
        # Also a folder with one folder or file for each class, or a .jsonl with both fields.
        "path": "stdlib",
        "field": "text",
        "label_field": "label",
        "classes": 8,  # those with most text
        "examples": 1024,
        "context": 128,
        "heldout": 0.125,
        "tokenizer": "bytes",
        "undecodable": "error",
        "seed": 0,
    }
    config.batch.size = 32
    config.task = {"name": "classification"}
    config.optim.lr, config.optim.lr_rule = 1e-3, "constant"
    config.horizon = {"unit": "examples", "amount": 4e3}
    config.eval.update(every=0, examples=1024)
    config.save.every = 0
    return config


def sweep(config):
    return grid.product(starts(config), grid.values("data.examples", EXAMPLES), grid.seeds(2))


EXAMPLES = (64, 256, 1024)


def starts(config):
    """From the parameters of `init.run`, and from new ones in the same network."""
    if config["init"]["run"] is None:
        return [{}]
    return [{"size": None, "init.what": what} for what in ("params", "shape")]
