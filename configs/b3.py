"""EfficientNet-B3 on ImageNet with the published recipe.

    python main.py --config=configs/b3.py --workdir=runs/b3

Quoted, not measured here: top-1 81.6 % with AutoAugment (81.1 without),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b3'
    config.augment.policy = 'autoaugment'
    return config
