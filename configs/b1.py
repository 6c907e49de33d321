"""EfficientNet-B1 on ImageNet with the published recipe.

    python main.py --config=configs/b1.py --workdir=runs/b1

Quoted, not measured here: top-1 79.1 % with AutoAugment (78.7 without),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b1'
    config.augment.policy = 'autoaugment'
    return config
