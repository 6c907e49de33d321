"""Batch norm over groups of images, fused with the activation that follows.

Statistics are taken over `group` images, counted in images and not in chips, so a result does not change with the slice
it is trained on. The backward pass keeps only x and the statistics: the normalised value and the slope of the
activation are recomputed, which is cheaper than reading them back.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

ACTIVATIONS = {'swish': jax.nn.silu, 'relu': jax.nn.relu, 'relu6': jax.nn.relu6, None: lambda x: x}


class BatchNorm(nn.Module):
    """y = activation((x - mean) / sqrt(var + epsilon) * scale + bias), per channel, the last axis.

    Training takes the statistics of each group of images and moves the running averages towards their mean over groups;
    evaluation uses the running averages. Statistics are float32 whatever the dtype of x. The variance is the biased
    one, E[x^2] - E[x]^2 clipped at 0, in the running average too (as in TensorFlow and flax, not PyTorch).

    Attributes:
        momentum: share of the running average kept at each step.
        epsilon: added to the variance.
        group: images per group of statistics; None: all images of the batch, on all devices.
        activation: 'swish', 'relu', 'relu6' or None.
        dtype: of the result; None: that of x.
        scale_init: initialiser of `scale`.

    Raises:
        ValueError: when N is not a multiple of `group`, or the activation's name is unknown.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    group: int | None = None
    activation: str | None = None
    dtype: jnp.dtype | None = None
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x, *, train: bool):  # [N, ..., C] -> [N, ..., C]
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation={self.activation!r} must be one of {list(ACTIVATIONS)}.')
        channels = x.shape[-1]
        scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        dtype = self.dtype or x.dtype
        if not train:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            offset = bias - mean.value * factor
            z = x.astype(jnp.float32) * _last(factor, x) + _last(offset, x)
            return ACTIVATIONS[self.activation](z).astype(dtype)
        grouped = x.reshape(*_groups(x.shape[0], self.group), *x.shape[1:])
        y, group_mean, group_var = _normalise(grouped, scale, bias, self.epsilon, self.activation, dtype)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * group_mean.mean(axis=0)
            var.value = self.momentum * var.value + (1 - self.momentum) * group_var.mean(axis=0)
        return y.reshape(x.shape)


def _groups(n, group):
    """(number of groups, images per group)."""
    if group is None:
        return 1, n
    if n % group:
        low = n // group * group
        near = f'{low} or {low + group}' if low else f'{group}'
        raise ValueError(f'a batch of {n} images must be a multiple of group={group} (images per batch-norm group); nearest: {near}.')
    return n // group, group


def _last(v, x):
    """[C] or [G, C] with the axes that let it broadcast against x [(G, N,) ..., C]."""
    return v.reshape(v.shape[:-1] + (1,) * (x.ndim - v.ndim) + v.shape[-1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalise(x, scale, bias, epsilon, activation, dtype):
    """x [G, N, ..., C] -> (y as x, mean [G, C], var [G, C]); mean and var carry no gradient of their own."""
    return _normalise_fwd(x, scale, bias, epsilon, activation, dtype)[0]


def _normalise_fwd(x, scale, bias, epsilon, activation, dtype):
    axes = tuple(range(1, x.ndim - 1))
    x32 = x.astype(jnp.float32)
    mean = x32.mean(axes)
    var = jnp.maximum(jnp.square(x32).mean(axes) - jnp.square(mean), 0.0)
    # Rematerialisation keeps them: they are small, and to take them again costs a pass over x and two all-reduces.
    mean, var = checkpoint_name(mean, 'statistics'), checkpoint_name(var, 'statistics')
    factor = scale[None] * lax.rsqrt(var + epsilon)
    z = x32 * _last(factor, x) + _last(bias[None] - mean * factor, x)
    return (ACTIVATIONS[activation](z).astype(dtype), mean, var), (x, mean, var, scale, bias)


def _normalise_bwd(epsilon, activation, dtype, residuals, cotangents):
    x, mean, var, scale, bias = residuals
    axes = tuple(range(1, x.ndim - 1))
    count = x.size // (x.shape[0] * x.shape[-1])
    inverse = lax.rsqrt(var + epsilon)
    factor = scale[None] * inverse
    x32 = x.astype(jnp.float32)
    _, slope = jax.vjp(ACTIVATIONS[activation], x32 * _last(factor, x) + _last(bias[None] - mean * factor, x))
    (dz,) = slope(cotangents[0].astype(jnp.float32))
    # Sums of dz and of dz * x, not of dz times the normalised x, which XLA's CPU backend would write to memory first.
    dbias = dz.sum(axes)
    dscale = ((dz * x32).sum(axes) - mean * dbias) * inverse
    tilt = -factor * inverse * dscale / count
    dx = dz * _last(factor, x) + x32 * _last(tilt, x) - _last(factor * dbias / count + tilt * mean, x)
    return dx.astype(x.dtype), dscale.sum(0), dbias.sum(0)


_normalise.defvjp(_normalise_fwd, _normalise_bwd)
