"""A GPT-2-shaped transformer: LayerNorm, learned positions, GELU, tied head, no biases.

At its default it has 123,200 parameters, exactly as many as nanoGPT (bias=False) and nanodo have at
width 64, 2 layers, context 128 and vocabulary 256.
"""

from configs import lm_transformer


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_gpt2"
    config.size = None
    config.model.update(
        width=64,
        depth=2,
        heads=4,
        kv_heads=4,
        hidden=256,
        norm="layer",
        positions="learned",
        activation="gelu",
        tie_embeddings=True,
        unroll=4,  # less time for a step on CPU, more to compile
    )
    return config
