"""EfficientNet-EdgeTPU-L on ImageNet: full convolutions early, ReLU, no squeeze-excite.

    python main.py --config=configs/edgetpu_l.py --workdir=runs/edgetpu_l

Quoted, not measured here: top-1 80.62 %, from tensorflow/tpu models/official/efficientnet/edgetpu/README.md, which trains with 1,001
classes (a background class that is never a label). 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_edgetpu_l'
    config.normalisation = 'lite'
    config.interpolation = 'bilinear'
    return config
