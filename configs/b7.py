"""EfficientNet-B7 on ImageNet with the published recipe.

    python main.py --config=configs/b7.py --workdir=runs/b7

Quoted, not measured here: top-1 84.7 % with RandAugment 2/28 (84.3 with AutoAugment),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b7'
    config.remat = 'blocks'
    config.augment.policy = 'randaugment'
    config.augment.magnitude = 28.0
    return config
