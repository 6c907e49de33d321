"""Batch norm over groups of images, fused with the activation that follows.

Statistics are taken over `group` images, counted in images and not in chips, so a result does not change with the slice
it is trained on. The backward pass keeps only x and the statistics (and, with the convolution, its input and kernel): the
normalised value and the slope of the activation are recomputed, which is cheaper than reading them back.

The convolution before can be given too. With `twice`, on a TPU, each of its two gradients then computes the gradient of its
result for itself, fused with the reading: it is never written to memory (benchmarks/records/tpu_step.md).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from efficientnet_jax.errors import UserError

ACTIVATIONS = {'swish': jax.nn.silu, 'relu': jax.nn.relu, 'relu6': jax.nn.relu6, None: lambda x: x}


class BatchNorm(nn.Module):
    """y = activation((x - mean) / sqrt(var + epsilon) * scale + bias), per channel, the last axis.

    Training takes the statistics of each group of images and moves the running averages towards their mean over groups;
    evaluation uses the running averages. Statistics are float32 whatever the dtype of x. The variance is the biased
    one, E[x^2] - E[x]^2 clipped at 0, in the running average too, as in flax and in the reference's TPU class (utils.py:
    TpuBatchNormalization, fused=False). TensorFlow's fused op and PyTorch keep the unbiased one in the running average.

    Attributes:
        momentum: share of the running average kept at each step.
        epsilon: added to the variance.
        group: images per group of statistics; None: all images of the batch, on all devices.
        activation: 'swish', 'relu', 'relu6' or None.
        dtype: of the result; None: that of x.
        scale_init: initialiser of `scale`.

    Raises:
        UserError: when N is not a multiple of `group`, or the activation's name is unknown.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    group: int | None = None
    activation: str | None = None
    dtype: jnp.dtype | None = None
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x, *, train: bool, squeeze: bool = False, convolution: Callable | None = None, kernel=None, twice: bool = False):
        """[N, ..., C] -> [N, ..., C], or with `squeeze` a pair: that and its means over an image's positions, float32 [N, C].

        convolution: a function of x and `kernel` whose result is normalised in place of x.
        twice: on a TPU, compute the gradient of that result once for x and once for `kernel`, in place of writing it to memory.
        """
        if self.activation not in ACTIVATIONS:
            raise UserError(f'activation={self.activation!r} must be one of {list(ACTIVATIONS)}.')
        convolution = convolution or _no_convolution
        channels = jax.eval_shape(convolution, x, kernel).shape[-1]
        scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        dtype = self.dtype or x.dtype
        if not train:
            x = convolution(x, kernel)
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            offset = bias - mean.value * factor
            z = x.astype(jnp.float32) * _last(factor, x) + _last(offset, x)
            y = ACTIVATIONS[self.activation](z).astype(dtype)
            return (y, _image_means(y)) if squeeze else y
        form = _Form(convolution, _groups(x.shape[0], self.group), self.epsilon, self.activation, dtype, squeeze, twice)
        y, image_means, group_mean, group_var = _normalise(form, x, kernel, scale, bias)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * group_mean.mean(axis=0)
            var.value = self.momentum * var.value + (1 - self.momentum) * group_var.mean(axis=0)
        return (y, image_means) if squeeze else y


class _Form(NamedTuple):
    """What `_normalise` is to compute, beside its arrays."""

    convolution: Callable
    groups: tuple[int, int]  # number of groups, images per group
    epsilon: float
    activation: str | None
    dtype: jnp.dtype
    squeeze: bool
    twice: bool


def _no_convolution(x, kernel):
    return x


def _image_means(y):
    """[(G,) N, ..., C] of rank 4 (5) -> float32 [(G,) N, C]."""
    return jnp.mean(y, axis=(-3, -2), dtype=jnp.float32)


def _groups(n, group):
    """(number of groups, images per group)."""
    if group is None:
        return 1, n
    if n % group:
        low = n // group * group
        near = f'{low} or {low + group}' if low else f'{group}'
        raise UserError(f'a batch of {n} images must be a multiple of group={group} (images per batch-norm group); nearest: {near}.')
    return n // group, group


def _last(v, x):
    """[C] or [G, C] with the axes that let it broadcast against x [(G, N,) ..., C]."""
    return v.reshape(v.shape[:-1] + (1,) * (x.ndim - v.ndim) + v.shape[-1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(form, x, kernel, scale, bias):
    """x [N, ..., I] -> (y [N, ..., C], its means per image [N, C] if `squeeze` else None, mean [G, C], var [G, C]).

    mean and var carry no gradient of their own.
    """
    return _normalise_fwd(form, x, kernel, scale, bias)[0]


def _normalise_fwd(form, x, kernel, scale, bias):
    z = form.convolution(x, kernel)
    z = checkpoint_name(z, 'convolution').reshape(*form.groups, *z.shape[1:])
    axes = tuple(range(1, z.ndim - 1))
    z32 = z.astype(jnp.float32)
    mean = z32.mean(axes)
    var = jnp.maximum(jnp.square(z32).mean(axes) - jnp.square(mean), 0.0)
    # Rematerialisation keeps them: they are small, and to take them again costs a pass over z and two all-reduces.
    mean, var = checkpoint_name(mean, 'statistics'), checkpoint_name(var, 'statistics')
    factor = scale[None] * lax.rsqrt(var + form.epsilon)
    y = ACTIVATIONS[form.activation](z32 * _last(factor, z) + _last(bias[None] - mean * factor, z)).astype(form.dtype)
    means = _image_means(y).reshape(x.shape[0], -1) if form.squeeze else None
    return (y.reshape(x.shape[0], *y.shape[2:]), means, mean, var), (x, kernel, z, mean, var, scale, bias)


def _normalise_bwd(form, residuals, cotangents):
    x, kernel, z, mean, var, scale, bias = residuals
    dy = cotangents[0].reshape(z.shape)
    count = z.size // (z.shape[0] * z.shape[-1])
    inverse = lax.rsqrt(var + form.epsilon)
    factor = scale[None] * inverse
    offset = bias[None] - mean * factor
    dmeans = cotangents[1].reshape(*form.groups, -1) / (count // z.shape[1]) if form.squeeze else None

    def through(z, dy):
        dy = dy.astype(jnp.float32)
        return _through_activation(form.activation, z, factor, offset, dy + _per_image(dmeans, z) if form.squeeze else dy)

    if form.squeeze:
        sums = functools.partial(_sums_by_image, form.activation)
        total, product = lax.platform_dependent(z, factor, offset, dy, dmeans, tpu=sums, default=lambda *_: _sums(through(z, dy), z))
    else:
        total, product = _sums(through(z, dy), z)
    dscale = (product - mean * total) * inverse
    tilt = -factor * inverse * dscale / count
    offset_dz = factor * total / count + tilt * mean

    def gradient(z, dy):
        """Of the convolution's result."""
        dz = through(z, dy) * _last(factor, z) + z.astype(jnp.float32) * _last(tilt, z) - _last(offset_dz, z)
        return dz.astype(z.dtype).reshape(x.shape[0], *z.shape[2:])

    _, transposed = jax.vjp(form.convolution, x, kernel)
    dx, dkernel = transposed(gradient(z, dy))
    if form.twice:
        _, dkernel = transposed(gradient(*_apart(z, dy)))
    return dx, dkernel, dscale.sum(0), total.sum(0)


def _apart(*arrays):
    """The same arrays, but what is computed of them is not merged with what is computed of the originals, on a TPU."""
    return lax.platform_dependent(*arrays, tpu=lambda *arrays: lax.optimization_barrier(arrays), default=lambda *arrays: arrays)


def _through_activation(activation, x, factor, offset, dy):
    """dy times the slope of the activation at the normalised x, float32."""
    _, slope = jax.vjp(ACTIVATIONS[activation], x.astype(jnp.float32) * _last(factor, x) + _last(offset, x))
    return slope(dy)[0]


def _sums(dz, x):
    """[G, N, ..., C] -> the sums of dz and of dz * x over a group, [G, C].

    Not of dz times the normalised x, which XLA's CPU backend would write to memory first.
    """
    axes = tuple(range(1, x.ndim - 1))
    return dz.sum(axes), (dz * x.astype(jnp.float32)).sum(axes)


def _sums_by_image(activation, x, factor, offset, dy, dmeans):
    """As `_sums`, but from sums over each image that need dy and not dmeans.

    dmeans comes from the sum of dy * y over each image through squeeze and excitation, so `_sums` must read dy and x once more after
    that sum. These sums do not wait for it: a TPU takes them all as the convolution before writes dy.
    """
    x32, axes = x.astype(jnp.float32), tuple(range(2, x.ndim - 1))
    slope = _through_activation(activation, x, factor, offset, jnp.ones_like(x32))
    dz = dy.astype(jnp.float32) * slope
    total, product, slopes, slope_products = (v.sum(axes) for v in (dz, dz * x32, slope, slope * x32))  # [G, N, C]
    return (total + dmeans * slopes).sum(1), (product + dmeans * slope_products).sum(1)


def _per_image(v, x):
    """[G, N, C] with the axes that let it broadcast against x [G, N, ..., C]."""
    return v.reshape(*v.shape[:2], *(1,) * (x.ndim - 3), v.shape[-1])


_normalise.defvjp(_normalise_fwd, _normalise_bwd)
