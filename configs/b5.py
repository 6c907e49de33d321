"""EfficientNet-B5 on ImageNet with the published recipe.

    python main.py --config=configs/b5.py --workdir=runs/b5

Quoted, not measured here: top-1 83.7 % with RandAugment 2/17 (83.6 with AutoAugment, 83.1 without),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b5'
    config.augment.policy = 'randaugment'
    config.augment.magnitude = 17.0
    return config
