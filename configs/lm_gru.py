"""A GRU of two layers on the text of lm_transformer, untied head.

Its steps of time follow each other, so a larger batch is nearly free; its best rate hardly falls
with the width.
"""

from configs import lm_transformer


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_gru"
    config.model = {
        "name": "gru",
        "width": None,
        "depth": None,
        "tie_embeddings": False,
        "dtype": "float32",
        "unroll": 1,
    }
    config.batch.size = 16
    config.optim.update(lr=0.015, lr_rule="constant")
    config.horizon.amount = 6e5
    return config
