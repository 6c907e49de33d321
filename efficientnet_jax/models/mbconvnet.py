"""MBConvNet: one Linen module for EfficientNet, Lite, EdgeTPU, MnasNet, MobileNet and ResNet, built by a loop over `Architecture.blocks()`.

The native flavour is the authors' (tensorflow/tpu models/official/efficientnet/efficientnet_model.py): TensorFlow 'SAME' padding,
batch norm momentum 0.99 and epsilon 1e-3, convolutions without bias, untruncated He fan-out initialisation.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from efficientnet_jax.architectures import Architecture, Block
from efficientnet_jax.errors import UserError
from efficientnet_jax.models.batch_norm import ACTIVATIONS, BatchNorm
from efficientnet_jax.models.depthwise import depthwise_conv
from efficientnet_jax.models.pointwise import pointwise_conv

# What of a block is kept from the forward pass, beside its input, and so not recomputed in the backward pass.
REMAT = {
    'activations': jax.checkpoint_policies.save_only_these_names('statistics', 'convolution'),  # recomputes what is elementwise
    'blocks': jax.checkpoint_policies.save_only_these_names('statistics'),  # recomputes all of it
}

# Untruncated normal with variance 2 / (k * k * out), the reference's conv_kernel_initializer.
conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def dense_init(scale: float):
    """`scale` times the reference, which draws from U(-1, 1) / sqrt(num_classes); 0 gives zeros."""
    return nn.initializers.variance_scaling(scale**2 / 3, 'fan_out', 'uniform') if scale else nn.initializers.zeros


def depthwise_init(key, shape, dtype=jnp.float32):
    """Untruncated normal with std sqrt(2 / k^2): the reference's fan-out of a [k, k, C, 1] kernel.

    The usual 'fan_out' of JAX's [k, k, 1, C] layout would take C outputs and come out sqrt(C) too small.
    """
    return np.sqrt(2.0 / (shape[0] * shape[1])).astype(np.float32) * jax.random.normal(key, shape, dtype)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, activation. [N, H, W, I] -> [N, ceil(H/stride), ceil(W/stride), filters].

    twice: as BatchNorm's. On a TPU it pays where the result is larger than x and the gradient is not a broadcast one.
    """

    filters: int
    kernel: int
    stride: int
    architecture: Architecture
    activation: str | None
    depthwise: bool = False
    group: int | None = None
    dtype: Any = jnp.float32
    freeze_batch_norm: bool = False
    data_shards: int | None = None
    twice: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool, squeeze: bool = False):
        """With `squeeze` a pair, as BatchNorm's."""
        k, in_filters = self.kernel, x.shape[-1]
        shape = (k, k, 1 if self.depthwise else in_filters, self.filters)
        kernel = self.param('kernel', depthwise_init if self.depthwise else conv_init, shape).astype(self.dtype)
        convolution = functools.partial(
            convolve, stride=self.stride, padding=self.architecture.padding, depthwise=self.depthwise, data_shards=self.data_shards
        )
        norm = BatchNorm(
            momentum=self.architecture.bn_momentum,
            epsilon=self.architecture.bn_epsilon,
            dtype=self.dtype,
            group=self.group,
            activation=self.activation,
            name='bn',
        )
        train = train and not self.freeze_batch_norm
        x = x.astype(self.dtype)
        return norm(x, train=train, squeeze=squeeze, convolution=convolution, kernel=kernel, twice=self.twice)


def convolve(x, kernel, stride: int, padding: str, depthwise: bool, data_shards: int | None):
    """[N, H, W, I] -> [N, ceil(H/stride), ceil(W/stride), O] by the best formulation for the kernel."""
    if depthwise:
        known = data_shards is not None and isinstance(x.shape[0], int)  # a symbolic batch, for export, is not
        images_per_chip = x.shape[0] / data_shards if known else None
        return depthwise_conv(x, kernel, stride=stride, padding=padding, images_per_chip=images_per_chip)
    if kernel.shape[0] == 1 and stride == 1:
        return pointwise_conv(x, kernel)
    return dense_conv(x, kernel, stride=stride, padding=padding)


def dense_conv(x, kernel, *, stride: int, padding: str):
    """[N, H, W, I], [k, k, I, O] -> [N, ceil(H/stride), ceil(W/stride), O] with TensorFlow 'same' or PyTorch 'symmetric' padding."""
    half = kernel.shape[0] // 2
    pads = 'SAME' if padding == 'same' else ((half, half), (half, half))
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means. [N, H, W, C] -> [N, H, W, C]. Both layers have a bias."""

    filters: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, means):
        """means: of x over height and width, [N, C]."""
        gate = means.astype(self.dtype)
        gate = nn.Dense(self.filters, kernel_init=conv_init, dtype=self.dtype, name='reduce')(gate)
        gate = nn.Dense(x.shape[-1], kernel_init=conv_init, dtype=self.dtype, name='expand')(ACTIVATIONS[self.activation](gate))
        return _gated(x, nn.sigmoid(gate))


@jax.custom_vjp
def _gated(x, gate):
    """x [N, H, W, C] times gate [N, C], whose gradient is summed in float32: in that form a TPU fuses it with batch norm's sums."""
    return x * gate[:, None, None, :]


def _gated_bwd(residuals, dy):
    x, gate = residuals
    return _gated(dy, gate), jnp.sum(dy.astype(jnp.float32) * x.astype(jnp.float32), axis=(1, 2)).astype(gate.dtype)


_gated.defvjp(lambda x, gate: (_gated(x, gate), (x, gate)), _gated_bwd)


class BlockModule(nn.Module):
    """One block of any operator. [N, H, W, in_filters] -> [N, ceil(H/stride), ceil(W/stride), out_filters]."""

    block: Block
    architecture: Architecture
    drop_path: float
    group: int | None = None
    dtype: Any = jnp.float32
    freeze_batch_norm: bool = False
    data_shards: int | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        block, activation = self.block, self.architecture.activation

        def conv(name, filters, kernel=1, stride=1, activation=activation, depthwise=False, twice=False):
            settings = (self.group, self.dtype, self.freeze_batch_norm, self.data_shards, twice)
            return ConvBN(filters, kernel, stride, self.architecture, activation, depthwise, *settings, name=name)

        shortcut = x
        if block.op == 'fused':
            x = conv('expand', block.expand_filters, kernel=3)(x, train=train)
            x = conv('project', block.out_filters, stride=block.stride, activation=None)(x, train=train)
        elif block.op == 'bottleneck':
            if block.stride != 1 or block.in_filters != block.out_filters:
                shortcut = conv('shortcut', block.out_filters, stride=block.stride, activation=None)(x, train=train)
            x = conv('expand', block.expand_filters)(x, train=train)
            x = conv('conv', block.expand_filters, block.kernel, block.stride)(x, train=train)
            x = conv('project', block.out_filters, activation=None)(x, train=train)
        elif block.op == 'conv':
            squeeze = block.se_filters is not None
            x = conv('conv', block.out_filters, block.kernel, block.stride)(x, train=train, squeeze=squeeze)
            if block.se_filters is not None:
                x = SqueezeExcite(block.se_filters, activation, self.dtype, name='se')(*x)
        else:
            if block.expand_filters != block.in_filters:
                x = conv('expand', block.expand_filters, twice=True)(x, train=train)
            squeeze = block.se_filters is not None
            x = conv('depthwise', block.expand_filters, block.kernel, block.stride, depthwise=True)(x, train=train, squeeze=squeeze)
            if block.se_filters is not None:
                x = SqueezeExcite(block.se_filters, activation, self.dtype, name='se')(*x)
            x = conv('project', block.out_filters, activation=activation if block.op == 'separable' else None)(x, train=train)
        if not block.residual:
            return x
        if train and self.drop_path > 0:
            keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.drop_path, (x.shape[0], 1, 1, 1))
            x = x * (keep / (1 - self.drop_path)).astype(x.dtype)
        x = x + (nn.avg_pool(shortcut, (3, 3), padding='SAME', count_include_pad=False) if block.residual == 'pool' else shortcut)
        return ACTIVATIONS[activation](x) if block.op == 'bottleneck' else x


class MBConvNet(nn.Module):
    """A whole network.

    Attributes:
      architecture: rows to build.
      num_classes: width of the classifier.
      dtype: compute dtype; parameters and batch statistics are float32 whatever it is, and so are the logits.
      batch_norm_group: images that share batch-norm statistics in training; None is the whole global batch.
      remat: a key of REMAT, what the backward pass recomputes of each block; None: nothing.
      classifier_init_scale: times the published initial range of the classifier, 1/sqrt(num_classes).
      freeze_batch_norm: training normalises with the running statistics and leaves them as they are.
      data_shards: chips that divide the batch, for the choice of formulations; None: unknown. The function is the same.
    """

    architecture: Architecture
    num_classes: int = 1000
    dtype: Any = jnp.float32
    batch_norm_group: int | None = None
    remat: str | None = None
    classifier_init_scale: float = 1.0
    freeze_batch_norm: bool = False
    data_shards: int | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, features: bool = False) -> jax.Array | dict[str, jax.Array]:
        """Normalised images [N, H, W, 3] -> logits [N, num_classes] float32, or with `features` a dict of endpoints.

        Training needs the rng stream 'dropout' (dropout and drop path) and mutable 'batch_stats'.
        Endpoints: stem, one per block by its name, reduction_1..5 (last output before each halving), features (input of the
        head), head_1x1, pooled [N, C], logits.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f'images has shape {images.shape}; it must be [N, H, W, 3], normalised, channels last.')
        a = self.architecture
        block_module = BlockModule if self.remat is None else nn.remat(BlockModule, static_argnums=(2,), policy=REMAT[self.remat])
        settings = (self.batch_norm_group, self.dtype, self.freeze_batch_norm, self.data_shards)
        ends = {}

        def conv(name, filters, kernel, stride):
            return ConvBN(filters, kernel, stride, a, a.activation, False, *settings, name=name)

        x = ends['stem'] = conv('stem', a.stem_filters, a.stem_kernel, 2)(images.astype(self.dtype), train=train)
        reductions = 0
        if a.stem_pool:
            reductions, ends['reduction_1'] = 1, x
            pads = 'SAME' if a.padding == 'same' else ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), (2, 2), pads)
        blocks = a.blocks()
        for i, block in enumerate(blocks):
            rate = a.drop_path * i / len(blocks)
            x = block_module(block, a, rate, *settings, name=block.name)(x, train)
            ends[block.name] = x
            if i + 1 == len(blocks) or blocks[i + 1].stride > 1:
                reductions += 1
                ends[f'reduction_{reductions}'] = x
        ends['features'] = x
        if a.head_filters is not None:
            x = ends['head_1x1'] = conv('head', a.head_filters, 1, 1)(x, train=train)
        x = ends['pooled'] = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if a.dropout > 0:
            x = nn.Dropout(a.dropout, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, kernel_init=dense_init(self.classifier_init_scale), dtype=jnp.float32, name='classifier')(x)
        ends['logits'] = x
        return ends if features else x
