"""EfficientNet-B8 on ImageNet with the published recipe.

    python main.py --config=configs/b8.py --workdir=runs/b8

Quoted, not measured here: top-1 85.5 % with AdvProp, which is not implemented here; RandAugment 2/28 is what the authors trained it with besides,
from the README of tensorflow/tpu models/official/efficientnet. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_b8'
    config.remat = 'blocks'
    config.augment.policy = 'randaugment'
    config.augment.magnitude = 28.0
    return config
