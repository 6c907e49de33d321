"""MobileNetV2 on ImageNet with the EfficientNet recipe, as in the scaling study (arXiv 1905.11946, table 3).

    python main.py --config=configs/mobilenet_v2.py --workdir=runs/mobilenet_v2

Quoted, not measured here: top-1 72.0 % (the same table). 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'mobilenet_v2'
    return config
