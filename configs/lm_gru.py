"""A GRU on the text of lm_transformer: two layers, untied head."""

from configs import lm_transformer


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_gru"
    config.model = {
        "name": "gru",
        "width": None,
        "depth": None,
        "tied": False,
        "dtype": "float32",
        "unroll": 1,
    }
    return config
