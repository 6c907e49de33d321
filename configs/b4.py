"""EfficientNet-B4 on ImageNet with the published recipe.

    python main.py --config=configs/b4.py --workdir=runs/b4

Quoted, not measured here: top-1 82.9 % with AutoAugment (82.5 without),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b4'
    config.augment.policy = 'autoaugment'
    return config
