"""A residual network with group normalisation on 5,000 handwritten digits."""

from configs import cnn_digits


def get_config():
    config = cnn_digits.get_config()
    config.name = "resnet_digits"
    config.model = {"name": "resnet", "width": 8, "depth": 1}  # depth: blocks in each of 3 stages
    config.optim.optimizer = {
        "name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8,
        "weight_decay": 0.05,
    }
    config.optim.lr = 5e-3
    config.horizon.amount = 6.0  # epochs
    return config
