"""Exact parameters, multiply-adds and activations of an architecture, from its rows. Standard library only.

Convention of the EfficientNet paper and of torchvision: a multiply-add is one multiplication in a convolution or dense layer,
counted on the output grid with padding included; squeeze-excite and classifier count, batch norm and activations do not.
Parameters: convolutions, batch-norm scale and bias, squeeze-excite and classifier with biases; no running statistics.
Activations: output elements of all convolutions and of the classifier (Dollar et al. 2021, arXiv 2103.06877).
"""

from __future__ import annotations

import typing

from efficientnet_jax.architectures import Architecture, Block
from efficientnet_jax.errors import UserError


class Layer(typing.NamedTuple):
    """One convolution or dense layer with its batch norm. Counts are per image."""

    name: str
    params: int
    macs: int
    activations: int


def count(architecture: Architecture, resolution: int | None = None, num_classes: int = 1000) -> tuple[int, int]:
    """(parameters, multiply-adds) as exact integers, at `resolution` pixels or the architecture's own."""
    rows = layers(architecture, resolution, num_classes)
    return sum(row.params for row in rows), sum(row.macs for row in rows)


def layers(architecture: Architecture, resolution: int | None = None, num_classes: int = 1000) -> list[Layer]:
    """All layers in order of execution. Raises UserError for a resolution below 1 pixel."""
    side = architecture.resolution if resolution is None else resolution
    if side < 1:
        raise UserError(f'resolution={side} must be at least 1 pixel.')
    side = _down(side, 2)
    filters = architecture.stem_filters
    rows = [_conv('stem', architecture.stem_kernel, 3, filters, side)]
    if architecture.stem_pool:
        side = _down(side, 2)
    for block in architecture.blocks():
        rows += _block(block, side)
        side = _down(side, block.stride)
        filters = block.out_filters
    if architecture.head_filters is not None:
        rows.append(_conv('head', 1, filters, architecture.head_filters, side))
        filters = architecture.head_filters
    rows.append(Layer('classifier', filters * num_classes + num_classes, filters * num_classes, num_classes))
    return rows


def _block(block: Block, side: int) -> list[Layer]:
    """Layers of one block whose input is `side` pixels wide."""
    out_side = _down(side, block.stride)
    i, e, o, k = block.in_filters, block.expand_filters, block.out_filters, block.kernel

    def name(part: str) -> str:
        return f'{block.name}/{part}'

    if block.op == 'bottleneck':
        rows = [_conv(name('expand'), 1, i, e, side), _conv(name('conv'), k, e, e, out_side), _conv(name('project'), 1, e, o, out_side)]
        if block.stride != 1 or i != o:
            rows.append(_conv(name('shortcut'), 1, i, o, out_side))
        return rows
    if block.op == 'fused':
        return [_conv(name('expand'), 3, i, e, side), _conv(name('project'), 1, e, o, out_side)]
    if block.op == 'conv':
        rows = [_conv(name('conv'), k, i, o, out_side)]
    else:
        rows = [_conv(name('expand'), 1, i, e, side)] if e != i else []
        rows.append(_conv(name('depthwise'), k, 1, e, out_side))
    if block.se_filters is not None:
        s = block.se_filters
        rows.append(Layer(name('se'), e * s + s + s * e + e, 2 * e * s, s + e))
    if block.op != 'conv':
        rows.append(_conv(name('project'), 1, e, o, out_side))
    return rows


def _conv(name: str, kernel: int, in_filters: int, out_filters: int, out_side: int) -> Layer:
    """A square convolution without bias and its batch norm (scale and bias); in_filters is 1 for depthwise."""
    weights = kernel * kernel * in_filters * out_filters
    grid = out_side * out_side
    return Layer(name, weights + 2 * out_filters, weights * grid, out_filters * grid)


def _down(side: int, stride: int) -> int:
    """Output side of a padded convolution: ceil(side / stride), with either padding flavour and an odd kernel."""
    return -(-side // stride)
