"""A BERT-shaped encoder on the text of lm_transformer: of masked tokens, it sees both sides.

LayerNorm, GELU, biases and a tied head as BERT, but norms before the branches and, as later
encoders, rotary positions. Fine-tuned, it classifies (see text_masked).
"""

from configs import lm_transformer


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_masked"
    config.size = 1e5
    del config.model["attention"]  # of both sides there is one
    config.model.update(
        name="encoder", norm="layer", activation="gelu", bias=True, tie_embeddings=True
    )
    # The share of the tokens that is asked about: of these 80 % are masked and 10 % other tokens.
    config.task = {"name": "masked_language_modeling", "chunk": None, "share": 0.15}
    config.optim.lr = 0.5
    config.horizon.amount = 1.6e6
    return config
