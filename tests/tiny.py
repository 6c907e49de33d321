"""A config of the digits with a network that compiles in seconds, for tests that start whole processes: dropout, drop path and
squeeze-and-excitation are in it, ImageNet accuracy is not."""

from configs import digits
from efficientnet_jax.architectures import ARCHITECTURES, Architecture, Stage

ARCHITECTURES['tiny'] = Architecture('tiny', (Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 2, 16)), stem=8, head=32, bn_momentum=0.9)


def get_config():
    config = digits.get_config()
    config.model = 'tiny'
    config.resolution = 16
    config.batch_size = 32
    config.steps = 24
    config.log_every_steps = 4
    config.eval_every_epochs = 12 * 32 / 1500  # 12 steps
    config.checkpoint_every_epochs = 6 * 32 / 1500  # 6 steps
    return config
