"""EfficientNet-Lite1 on ImageNet: no squeeze-excite, ReLU6, for integer arithmetic on phones.

    python main.py --config=configs/lite1.py --workdir=runs/lite1

Quoted, not measured here: top-1 76.7 % in float32, from tensorflow/tpu models/official/efficientnet/lite/README.md. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_lite1'
    config.normalisation = 'lite'
    config.interpolation = 'bilinear'
    return config
