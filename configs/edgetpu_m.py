"""EfficientNet-EdgeTPU-M on ImageNet: full convolutions early, ReLU, no squeeze-excite.

    python main.py --config=configs/edgetpu_m.py --workdir=runs/edgetpu_m

Quoted, not measured here: top-1 78.69 %, from tensorflow/tpu models/official/efficientnet/edgetpu/README.md, which trains with 1,001
classes (a background class that is never a label). 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_edgetpu_m'
    config.normalisation = 'lite'
    config.interpolation = 'bilinear'
    return config
