"""A small transformer whose numbers were tuned at width 64 and follow the shape from there: for
experiments.transfer, and for sweeps over sizes.

Heads of one size, so that the check of the width varies the width alone.
"""

from configs import lm_transformer


def get_config():
    config = lm_transformer.get_config()
    config.name = "lm_transfer"
    config.size = None
    config.model.update(width=64, depth=2, heads=4, kv_heads=4, hidden=176)
    config.data.context = 64
    config.batch.size = 16
    config.horizon.amount = 65536.0  # 64 steps: what a check of learning rates can afford
    config.eval.examples = 256
    config.optim.update(lr=0.01, lr_rule="constant", clip=None)
    config.optim.transfer.update(rule="complete_p", width=64, depth=2, head_size=16)
    return config
