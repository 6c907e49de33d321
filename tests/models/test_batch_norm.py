"""Batch norm against flax.linen.BatchNorm and ten lines of NumPy."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficientnet_jax.models import batch_norm
from efficientnet_jax.models.batch_norm import BatchNorm

ACTIVATIONS = {'swish': nn.swish, 'relu': nn.relu, 'relu6': nn.relu6, None: lambda x: x}
PARAMS = {'scale': jnp.linspace(0.5, 2, 6), 'bias': jnp.linspace(-1, 1, 6)}
STATS = {'mean': jnp.linspace(-0.5, 0.5, 6), 'var': jnp.linspace(1, 3, 6)}


def images(shape=(8, 3, 4, 6), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) * 3 + 1, dtype)


def ours(x, params=PARAMS, train=True, **fields):
    variables = {'params': params, 'batch_stats': STATS}
    y, updated = BatchNorm(**fields).apply(variables, x, train=train, mutable=['batch_stats'])
    return y, updated['batch_stats']


def flax_norm(x, params, activation, group):
    """flax.linen.BatchNorm, mapped over groups of images, running averages averaged over groups."""
    module = nn.BatchNorm(use_running_average=False, momentum=0.99, epsilon=1e-3)
    groups = x.reshape(-1, group, *x.shape[1:])
    y, updated = jax.vmap(lambda x: module.apply({'params': params, 'batch_stats': STATS}, x, mutable=['batch_stats']))(groups)
    return ACTIVATIONS[activation](y.reshape(x.shape)), jax.tree.map(lambda v: v.mean(0), updated['batch_stats'])


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('group', [None, 8, 2])
def test_equals_flax_with_gradients(activation, group):
    x, weights = images(), jnp.cos(images())

    def losses(norm):
        def loss(params, x):
            y, stats = norm(params, x)
            return jnp.sum(y * weights), (y, stats)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(PARAMS, x)

    actual = losses(lambda params, x: ours(x, params, activation=activation, group=group))
    wanted = losses(lambda params, x: flax_norm(x, params, activation, group or len(x)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, wanted)


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('group', [None, 2])
@pytest.mark.parametrize('activation', ['swish', None])
def test_means_per_image_with_gradients(platform, activation, group, monkeypatch):
    """As means taken of the result, in the form of each platform."""
    if platform == 'tpu':
        monkeypatch.setattr(batch_norm.lax, 'platform_dependent', lambda *x, tpu, default: tpu(*x))
    x, weights = images(), jnp.cos(images())

    def loss(params, x, squeeze):
        module = BatchNorm(activation=activation, group=group)
        y, _ = module.apply({'params': params, 'batch_stats': STATS}, x, train=True, squeeze=squeeze, mutable=['batch_stats'])
        y, means = y if squeeze else (y, y.mean((1, 2)))
        return jnp.sum(y * weights) + jnp.sum(jnp.sin(5 * means)), means

    actual, wanted = (jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(PARAMS, x, squeeze) for squeeze in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, wanted)
    evaluated, means = ours(x, train=False, activation=activation)[0], _evaluated_means(x, activation)
    np.testing.assert_allclose(evaluated.mean((1, 2)), means, rtol=1e-5, atol=1e-5)


def _evaluated_means(x, activation):
    return BatchNorm(activation=activation).apply({'params': PARAMS, 'batch_stats': STATS}, x, train=False, squeeze=True)[1]


def test_equals_numpy():
    x = images()
    y, stats = ours(x, activation='swish', group=4)
    x, scale, bias = np.asarray(x, np.float64), np.asarray(PARAMS['scale']), np.asarray(PARAMS['bias'])
    groups = x.reshape(2, 4, 3, 4, 6)
    mean = groups.mean((1, 2, 3), keepdims=True)
    var = groups.var((1, 2, 3), keepdims=True)  # the biased one
    z = ((groups - mean) / np.sqrt(var + 1e-3) * scale + bias).reshape(x.shape)
    np.testing.assert_allclose(y, z / (1 + np.exp(-z)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats['mean'], 0.99 * STATS['mean'] + 0.01 * mean.mean(0).ravel(), rtol=1e-5)
    np.testing.assert_allclose(stats['var'], 0.99 * STATS['var'] + 0.01 * var.mean(0).ravel(), rtol=1e-5)


def test_evaluation_uses_running_averages_and_changes_nothing():
    x = images()
    y, stats = ours(x, train=False, activation='relu')
    z = (x - STATS['mean'].reshape(1, 1, 1, 6)) / jnp.sqrt(STATS['var'] + 1e-3).reshape(1, 1, 1, 6)
    z = z * PARAMS['scale'].reshape(1, 1, 1, 6) + PARAMS['bias'].reshape(1, 1, 1, 6)
    np.testing.assert_allclose(y, jnp.maximum(z, 0), rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats, STATS)


def test_initial_variables():
    variables = BatchNorm().init(jax.random.key(0), images(), train=True)
    assert jax.tree.map(lambda v: (v.shape, v.dtype.name, float(v[0])), variables) == {
        'params': {'scale': ((6,), 'float32', 1.0), 'bias': ((6,), 'float32', 0.0)},
        'batch_stats': {'mean': ((6,), 'float32', 0.0), 'var': ((6,), 'float32', 1.0)},
    }


def test_bfloat16_has_float32_statistics():
    x = images((64, 3, 4, 6), jnp.bfloat16)
    y, stats = ours(x, activation='swish')
    exact, exact_stats = ours(x.astype(jnp.float32), activation='swish')
    assert y.dtype == jnp.bfloat16
    assert stats['mean'].dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, exact_stats)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)
    assert ours(x, dtype=jnp.float32)[0].dtype == jnp.float32


def test_constant_input_gives_zero_variance_not_nan():
    y, stats = ours(jnp.full((8, 2, 2, 6), 1e3))
    assert np.isfinite(y).all()
    assert (stats['var'] >= 0).all()


@pytest.mark.parametrize(('group', 'count'), [(2, 0), (None, 1)])
def test_groups_on_a_device_need_no_collective(group, count):
    mesh = Mesh(np.array(jax.devices()), ('data',))
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    x = jax.device_put(images((16, 3, 4, 6)), sharding)
    compiled = jax.jit(lambda x: ours(x, group=group)[0], in_shardings=sharding, out_shardings=sharding).lower(x).compile()
    assert len(re.findall(r'(all-gather|all-to-all|collective-permute)(?:-start)?\(', compiled.as_text())) == 0
    assert min(1, len(re.findall(r'all-reduce(?:-start)?\(', compiled.as_text()))) == count


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'group': 3}, 'a batch of 8 images must be a multiple of group=3 .* nearest: 6 or 9'),
        ({'group': 16}, 'nearest: 16'),
        ({'activation': 'gelu'}, "activation='gelu' must be one of"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        ours(images(), **fields)


@pytest.mark.parametrize('twice', [True, False])
def test_with_a_convolution_before(twice):
    """Values and gradients as of the two one after the other; lowered for TPU, `twice` keeps the two gradients' inputs apart."""
    x, kernel = images(), jax.random.normal(jax.random.key(5), (6, 6))
    module = BatchNorm(activation='swish', group=2)
    variables = {'params': PARAMS, 'batch_stats': STATS}

    def together(x, kernel):
        return module.apply(variables, x, train=True, convolution=jnp.matmul, kernel=kernel, twice=twice, mutable=['batch_stats'])[0]

    def apart(x, kernel):
        return module.apply(variables, x @ kernel, train=True, mutable=['batch_stats'])[0]

    def gradients(f):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), (0, 1)))

    np.testing.assert_allclose(together(x, kernel), apart(x, kernel), atol=1e-5)
    for own, stock in zip(gradients(together)(x, kernel), gradients(apart)(x, kernel), strict=True):
        np.testing.assert_allclose(own, stock, atol=1e-4 * float(jnp.abs(stock).max()))
    text = gradients(together).trace(x, kernel).lower(lowering_platforms=('tpu',)).as_text()
    assert ('optimization_barrier' in text) == twice
