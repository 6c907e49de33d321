"""The data types of an architecture: a Stage is a row, blocks() unrolls the rows of an Architecture into exact Blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from efficientnet_jax.architectures.rounding import round_filters, round_repeats
from efficientnet_jax.errors import UserError


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


def stages(rows: Iterable[Iterable[Any]]) -> tuple[Stage, ...]:
    """Stages from rows of plain values, the fields of Stage in order (config.stages). Raises UserError with the row that is wrong."""
    made = []
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise UserError(f'stages: {_short(row)} must be a row ({FIELDS}).')
        values = tuple(row)
        try:
            stage = Stage(*values)
        except TypeError:
            raise UserError(f'stages: {_short(values)} must be {FIELDS}; the last four may be left out.') from None
        _check(stage, _short(values))
        made.append(stage)
    if not made:
        raise UserError('stages=() must have at least one row; None takes the stages of model.')
    return tuple(made)


FIELDS = ', '.join(field.name for field in dataclasses.fields(Stage))
MOST = {
    'repeats': 1000,
    'kernel': 31,
    'stride': 2,
    'expand': 64,
    'filters': 65536,
    'expand_from': 65536,
}  # as far as a network can be built


def _check(stage: Stage, row: str) -> None:
    """Raises UserError for a value that is out of range, or that the operator would ignore."""
    if stage.op not in OPS:
        raise UserError(f'stages: op={_short(stage.op)} in {row} must be one of {", ".join(OPS)}.')
    if stage.skip not in SKIPS:
        raise UserError(f'stages: skip={_short(stage.skip)} in {row} must be one of {", ".join(map(repr, SKIPS))}.')
    for field, most in MOST.items():
        value = getattr(stage, field)
        if field == 'expand_from' and value is None:
            continue
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f'stages: {field}={_short(value)} in {row} must be a whole number from 1 to {most}.')
    if stage.kernel % 2 == 0:
        raise UserError(f'stages: kernel={stage.kernel} in {row} must be odd.')
    if stage.se is not None and (isinstance(stage.se, bool) or not isinstance(stage.se, int | float) or not 0 <= stage.se <= 1):
        raise UserError(f'stages: se={_short(stage.se)} in {row} must be between 0 and 1, or None.')
    if stage.op == 'fused' and stage.kernel != 3:
        raise UserError(f"stages: kernel={stage.kernel} in {row} must be 3, the only one that op='fused' has; 'conv' takes others.")
    if stage.op in ('fused', 'bottleneck') and stage.se:
        raise UserError(f'stages: se={stage.se} in {row} must be None: op={stage.op!r} has no squeeze-excite.')
    if stage.op == 'bottleneck' and stage.filters % stage.expand:
        raise UserError(f"stages: filters={stage.filters} in {row} must be a multiple of expand={stage.expand} for op='bottleneck'.")


def _short(value: Any) -> str:
    return repr(value)[:200]
