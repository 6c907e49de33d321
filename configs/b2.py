"""EfficientNet-B2 on ImageNet with the published recipe.

    python main.py --config=configs/b2.py --workdir=runs/b2

Quoted, not measured here: top-1 80.1 % with AutoAugment (79.8 without),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b2'
    config.augment.policy = 'autoaugment'
    return config
