"""A masked supernet: one network that holds weights for every candidate of a space, and one compiled program for all of them.

Which candidate it computes is an array, the candidate's tokens (`Space.tokens`), so the next one needs no compilation. Every block has
its largest size; a candidate takes the first filters and expansions, the middle of the kernel and the first blocks of a stage:

    kernel            the taps around the middle (those of TensorFlow's padding with stride 2 are in the middle of the larger window too)
    filters, expand   masked after batch norm and activation, which make a bias of a zero
    se                its hidden filters are masked as well; the gate is 1 where the candidate has none
    repeats           a block that the candidate lacks hands its input on
    op                'separable' goes past the expansion; 'conv' has weights of its own, and both are computed
    skip              identity, average or nothing is added; drop path has the rate of the block's place in the candidate

So a candidate costs what the largest costs. `slice_weights` cuts out its weights, with which the MBConvNet of the candidate computes
the same. Without tokens a training step draws its candidate, every choice uniformly as `Space.sample` does, with the step's own key.

The running batch statistics are a mixture over candidates and fit none; see supernet_train.calibrated.
Sources: Single Path One-Shot, arXiv 1904.00420 (uniform sampling, statistics); BigNAS, arXiv 2003.11142 (slices); TuNAS, 2008.06120.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from efficientnet_jax import models
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError
from efficientnet_jax.models.batch_norm import ACTIVATIONS, BatchNorm
from efficientnet_jax.models.mbconvnet import REMAT, conv_init, convolve, dense_init, depthwise_init
from efficientnet_jax.search.masks import Active, StageTable, active_blocks, draw, largest, tables
from efficientnet_jax.search.space import Space


class Supernet(nn.Module):
    """All candidates of a space.

    Attributes:
      space: its base has the width, depth, dropout, drop path, activation and batch norm of the candidates.
      num_classes, dtype, batch_norm_group, remat, classifier_init_scale, data_shards: as in MBConvNet.
      largest_share: part of the training steps that train the largest candidate instead of a drawn one.
    """

    space: Space
    num_classes: int = 1000
    dtype: Any = jnp.float32
    batch_norm_group: int | None = None
    remat: str | None = None
    classifier_init_scale: float = 1.0
    data_shards: int | None = None
    largest_share: float = 0.0

    @property
    def architecture(self) -> Architecture:
        """Of the largest candidate."""
        return self.space.decode(largest(self.space))

    @nn.compact
    def __call__(self, images, tokens=None, *, train: bool = False):
        """Normalised images [N, H, W, 3], tokens int32 [choices] -> logits [N, num_classes] float32.

        tokens None: the largest candidate, or in training a drawn one. Training needs the rng stream 'dropout' and mutable 'batch_stats'.
        """
        space, a = self.space, self.architecture
        if tokens is None and train:
            tokens = draw(space, self.make_rng('dropout'), self.largest_share)
        elif tokens is None:
            tokens = jnp.array(space.tokens(largest(space)), jnp.int32)
        blocks = active_blocks(space, tokens)
        settings = (a, self.batch_norm_group, self.dtype, self.data_shards)
        block_module = SuperBlock if self.remat is None else nn.remat(SuperBlock, static_argnums=(3,), policy=REMAT[self.remat])

        def conv(name, filters, kernel, stride):
            return MaskedConvBN(filters, kernel, stride, a.activation, False, *settings, name=name)

        x = conv('stem', a.stem_filters, a.stem_kernel, 2)(images.astype(self.dtype), a.stem_kernel, a.stem_filters, train=train)
        for block in a.blocks():
            table = tables(space)[int(block.name.removeprefix('stage').split('_')[0]) - 1]
            x = block_module(block.stride, table, block.name.endswith('_block1'), *settings, name=block.name)(x, blocks[block.name], train)
        if a.head_filters is not None:
            x = conv('head', a.head_filters, 1, 1)(x, 1, a.head_filters, train=train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if a.dropout > 0:
            x = nn.Dropout(a.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=dense_init(self.classifier_init_scale), dtype=jnp.float32, name='classifier')(x)


class SuperBlock(nn.Module):
    """A block of largest size. [N, H, W, I] -> [N, ceil(H/stride), ceil(W/stride), O], inactive channels zero in and out."""

    stride: int
    table: StageTable
    first: bool  # of its stage
    architecture: Architecture
    group: int | None = None
    dtype: Any = jnp.float32
    data_shards: int | None = None

    @nn.compact
    def __call__(self, x, active: Active, train: bool):
        ops, filters, kernel = self.table.ops, max(self.table.filters), max(self.table.kernels)
        activation = self.architecture.activation
        expand_filters = x.shape[-1] * (max(self.table.expands) if 'mbconv' in ops else 1)
        se_filters = max(map(max, self.table.first_se if self.first else self.table.later_se))

        def conv(name, filters, kernel=1, stride=1, activation=activation, depthwise=False):
            settings = (self.architecture, self.group, self.dtype, self.data_shards)
            return MaskedConvBN(filters, kernel, stride, activation, depthwise, *settings, name=name)

        def squeeze_excite(name, x):
            return MaskedSqueezeExcite(se_filters, activation, self.dtype, name=name)(x, active.se_filters) if se_filters else x

        y = x
        if ops != ('conv',):
            if 'mbconv' in ops:
                y = conv('expand', expand_filters)(x, 1, active.expand_filters, train=train)
                y = jnp.where(active.direct, _fit(x, expand_filters), y)
            y = conv('depthwise', expand_filters, kernel, self.stride, depthwise=True)(y, active.kernel, active.expand_filters, train=train)
            y = squeeze_excite('se', y)
            y = conv('project', filters, activation=None)(y, 1, active.out_filters, train=train)
        if 'conv' in ops:
            z = conv('conv', filters, kernel, self.stride)(x, active.kernel, active.out_filters, train=train)
            y = jnp.where(active.conv, squeeze_excite('conv_se', z), y)
        if self.stride == 1:
            shortcut = _fit(x, filters)
            y = jnp.where(active.residual, self._add(y, shortcut, active, train), y)
        return y if self.first else jnp.where(active.present, y, shortcut)

    def _add(self, y, shortcut, active: Active, train: bool):
        if train and self.architecture.drop_path > 0:
            keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - active.drop_path, (y.shape[0], 1, 1, 1))
            y = y * (keep / (1 - active.drop_path)).astype(y.dtype)
        if 'pool' in self.table.skips:
            average = nn.avg_pool(shortcut, (3, 3), padding='SAME', count_include_pad=False)
            shortcut = jnp.where(active.pooled, average, shortcut)
        return y + shortcut


class MaskedConvBN(nn.Module):
    """As mbconvnet.ConvBN of largest size; a smaller kernel and fewer filters are arguments. Inactive channels come out zero."""

    filters: int
    kernel: int
    stride: int
    activation: str | None
    depthwise: bool
    architecture: Architecture
    group: int | None = None
    dtype: Any = jnp.float32
    data_shards: int | None = None

    @nn.compact
    def __call__(self, x, active_kernel, active_filters, *, train: bool):
        k, in_filters = self.kernel, x.shape[-1]
        shape = (k, k, 1 if self.depthwise else in_filters, self.filters)
        kernel = self.param('kernel', depthwise_init if self.depthwise else conv_init, shape).astype(self.dtype)
        if k > 1:
            tap = jnp.abs(jnp.arange(k) - k // 2) <= active_kernel // 2
            kernel = kernel * (tap[:, None] & tap[None])[:, :, None, None].astype(self.dtype)
        x = convolve(x.astype(self.dtype), kernel, self.stride, self.architecture.padding, self.depthwise, self.data_shards)
        x = BatchNorm(
            momentum=self.architecture.bn_momentum,
            epsilon=self.architecture.bn_epsilon,
            dtype=self.dtype,
            group=self.group,
            activation=self.activation,
            name='bn',
        )(x, train=train)
        return _mask(x, active_filters)


class MaskedSqueezeExcite(nn.Module):
    """As mbconvnet.SqueezeExcite with `active` of its hidden filters; 0 leaves x as it is. Zero channels stay zero."""

    filters: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, active):
        hidden = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)  # [N, C], zero where x is
        hidden = ACTIVATIONS[self.activation](nn.Dense(self.filters, kernel_init=conv_init, dtype=self.dtype, name='reduce')(hidden))
        gate = nn.Dense(x.shape[-1], kernel_init=conv_init, dtype=self.dtype, name='expand')(_mask(hidden, active))
        return jnp.where(active > 0, x * nn.sigmoid(gate)[:, None, None, :], x)


def _mask(x, active):
    """Zeroes the channels from `active` on."""
    on = (jnp.arange(x.shape[-1]) < active).astype(x.dtype)
    return x * on.reshape((1,) * (x.ndim - 1) + on.shape)


def _fit(x, channels: int):
    """x with zeros added or the last channels cut off, [..., channels]."""
    more = channels - x.shape[-1]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, more),)) if more > 0 else x[..., :channels]


def slice_weights(variables, architecture: Architecture):
    """The candidate's part of a supernet's {'params', 'batch_stats'}: variables of models.build(architecture), classes as in the supernet.

    architecture: `Space.decode` of a candidate. Raises UserError for one that is not in the supernet.
    """
    module = models.build(architecture, num_classes=variables['params']['classifier']['bias'].shape[0])
    images = jax.ShapeDtypeStruct((1, architecture.resolution, architecture.resolution, 3), jnp.float32)
    wanted = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), images)

    def cut(path, shape):
        names = [part.key for part in path]
        block = wanted['params'].get(names[1], {})
        source = variables
        try:
            for name in names:
                source = source['conv_se' if name == 'se' and 'conv' in block else name]
        except KeyError:
            raise UserError(f'{"/".join(names)} of {architecture.name} is not in the supernet; was it trained in another space?') from None
        if source.ndim == 4:  # the middle of the kernel
            first = (source.shape[0] - shape.shape[0]) // 2
            source = source[first : first + shape.shape[0], first : first + shape.shape[0]]
        source = source[tuple(slice(size) for size in shape.shape)]
        if source.shape != shape.shape:
            raise UserError(f"{'/'.join(names)} of {architecture.name} has shape {shape.shape}, larger than the supernet's {source.shape}.")
        return source

    return jax.tree_util.tree_map_with_path(cut, wanted)
