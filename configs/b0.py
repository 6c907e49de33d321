"""EfficientNet-B0 on ImageNet with the published recipe.

    python main.py --config=configs/b0.py --workdir=runs/b0

Quoted, not measured here: top-1 77.1 % with AutoAugment (76.7 without),
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b0'
    config.augment.policy = 'autoaugment'
    return config
