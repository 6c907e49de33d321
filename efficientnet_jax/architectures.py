"""Architectures as data: one row a stage, one dataclass a model. Standard library only.

The rows are those of the authors' code; models, counters, studies and the search all walk `Architecture.blocks()`.
Sources: tensorflow/tpu models/official/efficientnet (efficientnet_builder.py, lite/, edgetpu/), models/official/mnasnet
(mnasnet_models.py); MobileNetV2 arXiv 1801.04381 table 2; MobileNetV1 arXiv 1704.04861 table 1; ResNet arXiv 1512.03385 table 1.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from efficientnet_jax.scaling import round_filters, round_repeats


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of equal blocks before width and depth scaling; only the first block has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int  # expanded filters as a multiple of the block's input filters
    filters: int  # output
    se: float | None = 0.25  # squeeze-and-excitation filters as a part of the block's INPUT filters (before expansion)
    op: str = 'mbconv'  # a key of OPS
    skip: bool | str = True  # a shortcut where stride is 1 and the filters stay the same: True identity, 'pool' 3x3 average, False none
    expand_from: int | None = None  # filters that the first block's expansion multiplies, where they are not its input's


OPS = {
    'mbconv': 'expand 1x1 (absent when expand is 1), depthwise kxk with the stride, squeeze-excite, project 1x1 without activation',
    'conv': 'full kxk convolution with the stride, squeeze-excite (MnasNet space)',
    'fused': 'full 3x3 convolution to the expanded filters at stride 1, then project 1x1 with the stride (EfficientNet-EdgeTPU)',
    'separable': 'depthwise kxk with the stride, 1x1 convolution, activation after both (MobileNetV1)',
    'bottleneck': '1x1, kxk with the stride, 1x1 to expand times the inner filters, projected shortcut, activation after the sum (ResNet v1.5)',
}


SKIPS = (True, False, 'pool')


@dataclasses.dataclass(frozen=True)
class Block:
    """One block after scaling, with exact filter counts. A model builds it, a counter counts it."""

    name: str  # stage and block from 1, for example 'stage3_block2'
    op: str
    kernel: int
    stride: int
    in_filters: int
    expand_filters: int
    out_filters: int
    se_filters: int | None
    residual: bool | str  # 'pool': the shortcut is average-pooled, 3x3 with stride 1


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A whole network. width, depth and resolution are applied when `blocks()` unrolls the stages."""

    name: str
    stages: tuple[Stage, ...]
    width: float = 1.0
    depth: float = 1.0
    resolution: int = 224  # pixels, the side of the square input
    dropout: float = 0.2  # before the classifier
    drop_path: float = 0.2  # rate towards the last block; block i of n has drop_path * i / n
    activation: str = 'swish'
    stem: int = 32  # filters before width scaling
    stem_kernel: int = 3
    stem_pool: bool = False  # 3x3 max pooling with stride 2 after the stem
    head: int | None = 1280  # filters of the last 1x1 convolution before width scaling; None: pooled features go to the classifier
    fixed_stem_and_head: bool = False  # Lite: stem, head and the repeats of the first and last stage are not scaled
    depth_rounding: str = 'ceil'  # 'ceil' as released, or 'round'
    divisor: int = 8  # filters are multiples of this after width scaling
    padding: str = 'same'  # 'same' is TensorFlow's; 'symmetric' is PyTorch's k // 2 on each side
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3

    @property
    def stem_filters(self) -> int:
        """Channels of the stem, rounded as the family rounds them."""
        return self.stem if self.fixed_stem_and_head else round_filters(self.stem, self.width, self.divisor)

    @property
    def head_filters(self) -> int | None:
        """Channels of the convolution before the pooling, rounded likewise; None where there is none."""
        if self.head is None or self.fixed_stem_and_head:
            return self.head
        return round_filters(self.head, self.width, self.divisor)

    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order, after width and depth scaling."""
        blocks = []
        in_filters = self.stem_filters
        for s, stage in enumerate(self.stages):
            out_filters = round_filters(stage.filters, self.width, self.divisor)
            at_the_ends = s in (0, len(self.stages) - 1)
            fixed = self.fixed_stem_and_head and at_the_ends
            repeats = stage.repeats if fixed else round_repeats(stage.repeats, self.depth, self.depth_rounding)
            for b in range(repeats):
                stride = stage.stride if b == 0 else 1
                if stage.op == 'bottleneck':  # the inner filters are rounded, and the output is a multiple of them
                    expand_filters = round_filters(stage.filters // stage.expand, self.width, self.divisor)
                    out_filters = expand_filters * stage.expand
                elif stage.op == 'conv':
                    expand_filters = out_filters  # what squeeze-excite sees
                elif b == 0 and stage.expand_from is not None:
                    expand_filters = round_filters(stage.expand_from, self.width, self.divisor) * stage.expand
                else:
                    expand_filters = in_filters * stage.expand
                blocks.append(
                    Block(
                        name=f'stage{s + 1}_block{b + 1}',
                        op=stage.op,
                        kernel=stage.kernel,
                        stride=stride,
                        in_filters=in_filters,
                        expand_filters=expand_filters,
                        out_filters=out_filters,
                        se_filters=max(1, int(in_filters * stage.se)) if stage.se else None,
                        residual=stage.op == 'bottleneck' or (stride == 1 and in_filters == out_filters and stage.skip),
                    )
                )
                in_filters = out_filters
        return tuple(blocks)


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


def names() -> tuple[str, ...]:
    """All model names."""
    return tuple(ARCHITECTURES)


def stages(rows: Iterable[Iterable[Any]]) -> tuple[Stage, ...]:
    """Stages from rows of plain values, the fields of Stage in order (config.stages). Raises ValueError with the row that is wrong."""
    made = []
    for row in rows:
        try:
            stage = Stage(*row)
        except TypeError:
            raise ValueError(
                f'stages: {tuple(row)} must be {", ".join(f.name for f in dataclasses.fields(Stage))}; the last four may be left out.'
            ) from None
        if stage.op not in OPS:
            raise ValueError(f'stages: op={stage.op!r} in {tuple(row)} must be one of {", ".join(OPS)}.')
        if stage.skip not in SKIPS:
            raise ValueError(f'stages: skip={stage.skip!r} in {tuple(row)} must be one of {", ".join(map(repr, SKIPS))}.')
        if min(stage.repeats, stage.kernel, stage.stride, stage.expand, stage.filters) < 1 or stage.kernel % 2 == 0 or stage.stride > 2:
            raise ValueError(f'stages: {tuple(row)} must have positive numbers, an odd kernel and a stride of 1 or 2.')
        made.append(stage)
    if not made:
        raise ValueError('stages=() must have at least one row; None takes the stages of model.')
    return tuple(made)


def get(name: str) -> Architecture:
    """The architecture of that name. Raises ValueError with near names."""
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.5) or names()
        raise ValueError(f'model={name!r} is not an architecture; near names: {", ".join(near)}. All: architectures.names().')
    return ARCHITECTURES[name]
