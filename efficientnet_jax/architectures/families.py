"""The rows of every family, and all models by name.

Sources: tensorflow/tpu models/official/efficientnet (efficientnet_builder.py, lite/, edgetpu/), models/official/mnasnet
(mnasnet_models.py); MobileNetV2 arXiv 1801.04381 table 2; MobileNetV1 arXiv 1704.04861 table 1; ResNet arXiv 1512.03385 table 1.
"""

from __future__ import annotations

import dataclasses

from efficientnet_jax.architectures.rows import Architecture, Stage

_B0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_LITE0 = tuple(dataclasses.replace(stage, se=None) for stage in _B0)
_EDGETPU_S = (
    Stage(1, 3, 1, 4, 24, None, 'fused', skip=False, expand_from=24),  # the row says i24 although the stem has 32
    Stage(2, 3, 2, 8, 32, None, 'fused'),
    Stage(4, 3, 2, 8, 48, None, 'fused'),
    Stage(5, 5, 2, 8, 96, None),
    Stage(4, 5, 1, 8, 144, None),
    Stage(2, 5, 2, 8, 192, None),
)
_MNASNET_A1 = (
    Stage(1, 3, 1, 1, 16, None, skip=False),
    Stage(2, 3, 2, 6, 24, None),
    Stage(3, 5, 2, 3, 40),
    Stage(4, 3, 2, 6, 80, None),
    Stage(2, 3, 1, 6, 112),
    Stage(3, 5, 2, 6, 160),
    Stage(1, 3, 1, 6, 320, None),
)
_MNASNET_B1 = (
    Stage(1, 3, 1, 1, 16, None, skip=False),
    Stage(3, 3, 2, 3, 24, None),
    Stage(3, 5, 2, 3, 40, None),
    Stage(3, 5, 2, 6, 80, None),
    Stage(2, 3, 1, 6, 96, None),
    Stage(4, 5, 2, 6, 192, None),
    Stage(1, 3, 1, 6, 320, None, skip=False),
)
_MNASNET_SMALL = (
    Stage(1, 3, 1, 1, 8, None),
    Stage(1, 3, 2, 3, 16, None),
    Stage(2, 3, 2, 6, 16, None),
    Stage(4, 5, 2, 6, 32),
    Stage(3, 3, 1, 6, 32),
    Stage(3, 5, 2, 6, 88),
    Stage(1, 3, 1, 6, 144, None),
)
_MOBILENET_V2 = (
    Stage(1, 3, 1, 1, 16, None),
    Stage(2, 3, 2, 6, 24, None),
    Stage(3, 3, 2, 6, 32, None),
    Stage(4, 3, 2, 6, 64, None),
    Stage(3, 3, 1, 6, 96, None),
    Stage(3, 3, 2, 6, 160, None),
    Stage(1, 3, 1, 6, 320, None),
)
_MOBILENET_V1 = (
    Stage(1, 3, 1, 1, 64, None, 'separable', skip=False),
    Stage(2, 3, 2, 1, 128, None, 'separable', skip=False),
    Stage(2, 3, 2, 1, 256, None, 'separable', skip=False),
    Stage(6, 3, 2, 1, 512, None, 'separable', skip=False),
    Stage(2, 3, 2, 1, 1024, None, 'separable', skip=False),
)
_RESNET50 = (
    Stage(3, 3, 1, 4, 256, None, 'bottleneck'),
    Stage(4, 3, 2, 4, 512, None, 'bottleneck'),
    Stage(6, 3, 2, 4, 1024, None, 'bottleneck'),
    Stage(3, 3, 2, 4, 2048, None, 'bottleneck'),
)

# name: (width, depth, resolution, dropout), efficientnet_builder.py: efficientnet_params; L2 at two resolutions as in NoisyStudent.
_EFFICIENTNETS = {
    'efficientnet_b0': (1.0, 1.0, 224, 0.2),
    'efficientnet_b1': (1.0, 1.1, 240, 0.2),
    'efficientnet_b2': (1.1, 1.2, 260, 0.3),
    'efficientnet_b3': (1.2, 1.4, 300, 0.3),
    'efficientnet_b4': (1.4, 1.8, 380, 0.4),
    'efficientnet_b5': (1.6, 2.2, 456, 0.4),
    'efficientnet_b6': (1.8, 2.6, 528, 0.5),
    'efficientnet_b7': (2.0, 3.1, 600, 0.5),
    'efficientnet_b8': (2.2, 3.6, 672, 0.5),
    'efficientnet_l2': (4.3, 5.3, 800, 0.5),
    'efficientnet_l2_475': (4.3, 5.3, 475, 0.5),
}
# lite/efficientnet_lite_builder.py
_LITES = {
    'efficientnet_lite0': (1.0, 1.0, 224, 0.2),
    'efficientnet_lite1': (1.0, 1.1, 240, 0.2),
    'efficientnet_lite2': (1.1, 1.2, 260, 0.3),
    'efficientnet_lite3': (1.2, 1.4, 280, 0.3),
    'efficientnet_lite4': (1.4, 1.8, 300, 0.3),
}
# edgetpu/efficientnet_edgetpu_builder.py
_EDGETPUS = {
    'efficientnet_edgetpu_s': (1.0, 1.0, 224, 0.2),
    'efficientnet_edgetpu_m': (1.0, 1.1, 240, 0.2),
    'efficientnet_edgetpu_l': (1.2, 1.4, 300, 0.3),
}

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        *(Architecture(name, _B0, *row) for name, row in _EFFICIENTNETS.items()),
        *(Architecture(name, _LITE0, *row, activation='relu6', fixed_stem_and_head=True) for name, row in _LITES.items()),
        *(Architecture(name, _EDGETPU_S, *row, activation='relu') for name, row in _EDGETPUS.items()),
        Architecture('mnasnet_a1', _MNASNET_A1, activation='relu', drop_path=0.0),
        Architecture('mnasnet_b1', _MNASNET_B1, activation='relu', drop_path=0.0),
        Architecture('mnasnet_small', _MNASNET_SMALL, activation='relu', drop_path=0.0, stem=8),
        Architecture('mobilenet_v1', _MOBILENET_V1, activation='relu6', drop_path=0.0, head=None),
        Architecture('mobilenet_v2', _MOBILENET_V2, activation='relu6', drop_path=0.0),
        Architecture(
            'resnet50', _RESNET50, activation='relu', dropout=0.0, drop_path=0.0, stem=64, stem_kernel=7, stem_pool=True, head=None,
            bn_momentum=0.9, bn_epsilon=1e-5,
        ),
    )
}  # fmt: skip
