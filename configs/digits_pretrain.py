"""The digit network on another collection of digits: scikit-learn's, 8 x 8, made as large as those
of cnn_digits. configs/digits_few.py starts from it."""

from configs import cnn_digits


def get_config():
    config = cnn_digits.get_config()
    config.name = "digits_pretrain"
    config.data.update(path="digits", resize=28)
    config.eval.every = 100
    return config
