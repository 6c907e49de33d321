"""EfficientNet-B6 on ImageNet with the published recipe.

    python main.py --config=configs/b6.py --workdir=runs/b6

Quoted, not measured here: top-1 84.0 % with AutoAugment,
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b6'
    config.remat = 'blocks'
    config.augment.policy = 'autoaugment'
    return config
