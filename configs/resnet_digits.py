"""A residual network with group normalization, 174,778 parameters, on digits of half the size."""

from configs import cnn_digits


def get_config():
    config = cnn_digits.get_config()
    config.name = "resnet_digits"
    config.model = {"name": "resnet", "width": 16, "depth": 2}  # depth: blocks in each of 3 stages
    config.data.update(resize=14, shift=1)  # a quarter of the pixels is a quarter of the time
    config.batch.size = 32
    config.optim.update(lr=0.08, lr_rule="inverse_width")  # divided by the width
    config.horizon.amount = 6.0  # epochs
    return config
