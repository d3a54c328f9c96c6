"""Which package of the standard library is this from? As text_classes, from a masked model.

    python -m experiments.train --config=configs/lm_masked.py --workdir=runs/masked
    python -m experiments.sweep --config=configs/text_masked.py --config.init.run=runs/masked \\
        --workdir=runs/masked_classes
"""

from configs import lm_masked, text_classes
from configs.text_classes import sweep

__all__ = ["get_config", "sweep"]  # the same sweep: from the masked model, and from nothing


def get_config():
    config = text_classes.get_config()
    config.name = "text_masked"
    config.model = lm_masked.get_config().model
    return config
