"""Depthwise convolution against lax.conv_general_dilated: values, gradients, transformations, collectives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficientnet_jax.models import depthwise
from efficientnet_jax.models.depthwise import depthwise_conv
from efficientnet_jax.models.pointwise import pointwise_conv


def reference(x, kernel, stride, padding):
    half = kernel.shape[0] // 2
    pads = 'SAME' if padding == 'same' else ((half, half), (half, half))
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=x.shape[-1])


def arrays(n, height, width, channels, k, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, height, width, channels))
    kernel = rng.normal(size=(k, k, 1, channels))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


CASES = [
    # k, stride, padding, height, width
    (1, 1, 'same', 4, 5),
    (3, 1, 'same', 8, 8),
    (3, 2, 'same', 8, 8),
    (3, 2, 'same', 7, 9),
    (3, 2, 'symmetric', 8, 7),
    (5, 1, 'symmetric', 30, 6),
    (5, 2, 'same', 32, 10),
    (5, 2, 'same', 1, 2),
    (5, 2, 'symmetric', 7, 7),
    (7, 2, 'symmetric', 5, 4),
    (7, 1, 'same', 2, 3),
]


@pytest.fixture(params=['sharded form', 'whole batch', 'chunks'])
def cpu_form(request, monkeypatch):
    """The three formulations on CPU: for many devices; for one device, whole; for one device, two images at a time."""
    monkeypatch.setattr(depthwise, '_one_device', lambda: request.param != 'sharded form')
    if request.param == 'chunks':
        monkeypatch.setattr(depthwise, '_chunk', lambda x: 2)


@pytest.mark.parametrize(('k', 'stride', 'padding', 'height', 'width'), CASES)
def test_equals_convolution_with_gradients(k, stride, padding, height, width, cpu_form):
    x, kernel = arrays(4, height, width, 3, k)
    expected, pull = jax.vjp(lambda x, kernel: reference(x, kernel, stride, padding), x, kernel)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)

    @jax.jit
    def value_and_gradients(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: depthwise_conv(x, kernel, stride=stride, padding=padding), x, kernel)
        return y, pull(weights)

    y, gradients = value_and_gradients(x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(gradients, pull(weights), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('k', 'stride', 'padding', 'size'), [(3, 1, 'same', 12), (5, 1, 'same', 7), (5, 2, 'symmetric', 13), (3, 2, 'same', 14)]
)
def test_tpu_form_for_the_batch_in_lanes(k, stride, padding, size):
    """What a chip with a multiple of 128 images runs, here on CPU."""
    x, kernel = arrays(2, size, size, 24, k)
    expected, pull = jax.vjp(lambda x, kernel: reference(x, kernel, stride, padding), x, kernel)
    pads = (depthwise._pads(size, k, stride, padding),) * 2
    np.testing.assert_allclose(depthwise._lanes(x, kernel, stride, pads), expected, rtol=1e-5, atol=1e-5)
    gradients = depthwise._lanes_bwd(x, kernel, jnp.cos(expected), stride, pads)
    for actual, wanted in zip(gradients, pull(jnp.cos(expected)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_images_per_chip_chooses_the_tpu_form():
    """128 images a chip: groups of 8 channels in a program lowered for TPU; else, and on other platforms, of 1."""
    x, kernel = arrays(128, 14, 14, 24, 3)
    for images_per_chip, tpu_groups in ((None, 24), (100, 24), (128, 3)):
        lowered = jax.jit(functools.partial(depthwise_conv, images_per_chip=images_per_chip)).trace(x, kernel)
        assert f'feature_group_count = {tpu_groups}' in lowered.lower(lowering_platforms=('tpu',)).as_text()
        assert 'feature_group_count = 24' in lowered.lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(dtype):
    x, kernel = arrays(2, 8, 8, 4, 3, dtype)
    exact, pull = jax.vjp(lambda x, kernel: reference(x, kernel, 1, 'same'), x.astype(jnp.float32), kernel.astype(jnp.float32))
    y, pull_half = jax.vjp(depthwise_conv, x, kernel)
    gradients = pull_half(jnp.ones_like(y))
    assert {y.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(dtype)}
    for actual, wanted in zip((y, *gradients), (exact, *pull(jnp.ones_like(exact))), strict=True):
        np.testing.assert_allclose(actual.astype(jnp.float32), wanted, rtol=1e-2, atol=1e-2)


def test_remat_vmap_and_shapes():
    x, kernel = arrays(2, 6, 6, 3, 3)
    plain = jax.grad(lambda kernel: jnp.sum(depthwise_conv(x, kernel) ** 2))(kernel)
    remat = jax.grad(lambda kernel: jnp.sum(jax.checkpoint(depthwise_conv)(x, kernel) ** 2))(kernel)
    np.testing.assert_allclose(remat, plain, rtol=1e-5, atol=1e-5)
    stacked = jax.vmap(jax.grad(lambda kernel: jnp.sum(depthwise_conv(x, kernel, stride=2) ** 2)))(jnp.stack([kernel, 2 * kernel]))
    np.testing.assert_allclose(stacked[1], 2 * stacked[0], rtol=1e-4, atol=1e-5)
    shape = jax.eval_shape(lambda x, kernel: depthwise_conv(x, kernel, stride=2), x, kernel).shape
    assert shape == (2, 3, 3, 3)


def test_exports_with_a_symbolic_batch_for_every_platform():
    x, kernel = arrays(3, 6, 6, 4, 3)
    (n,) = export.symbolic_shape('n')
    spec = jax.ShapeDtypeStruct((n, 6, 6, 4), jnp.float32)

    def network(x):
        return pointwise_conv(depthwise_conv(x, kernel, stride=2), jnp.ones((1, 1, 4, 2)))

    exported = export.export(jax.jit(network), platforms=['cpu', 'tpu', 'cuda'])(spec)
    np.testing.assert_allclose(exported.call(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('axes', 'allowed'), [((8, 1), {'all-reduce'}), ((1, 4), {'all-reduce', 'collective-permute'})])
@pytest.mark.parametrize(('k', 'stride'), [(3, 1), (5, 2)])
def test_sharded_without_all_gather(axes, allowed, k, stride):
    """Batch shards meet in the kernel gradient alone; height shards exchange rows."""
    x, kernel = arrays(8, 32, 8, 4, k)
    mesh = Mesh(np.array(jax.devices()[: axes[0] * axes[1]]).reshape(axes), ('data', 'spatial'))
    sharding = NamedSharding(mesh, PartitionSpec('data', 'spatial'))
    whole = NamedSharding(mesh, PartitionSpec())

    def step(x, kernel):
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(depthwise_conv(x, kernel, stride=stride))), argnums=(0, 1))(x, kernel)

    compiled = jax.jit(step, in_shardings=(sharding, whole), out_shardings=(sharding, whole)).lower(x, kernel).compile()
    kinds = set(re.findall(r'(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(', compiled.as_text()))
    assert kinds <= allowed
    assert 'all-reduce' in kinds
    for actual, wanted in zip(compiled(jax.device_put(x, sharding), jax.device_put(kernel, whole)), step(x, kernel), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_chunks_follow_the_cache(monkeypatch):
    monkeypatch.setattr(depthwise, '_one_device', lambda: True)
    monkeypatch.setattr(depthwise.os, 'cpu_count', lambda: 2)
    sizes = {(16, 112, 112, 32): 2, (16, 112, 112, 96): 2, (16, 28, 28, 240): 4, (100, 16, 16, 32): None, (1, 380, 380, 48): None}
    chunks = {}
    for shape in sizes:
        jax.eval_shape(lambda x: chunks.update({x.shape: depthwise._chunk(x)}), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert chunks == sizes


@pytest.mark.parametrize(
    ('kernel', 'options', 'message'),
    [
        ((3, 3, 1, 5), {}, r'kernel shape \(3, 3, 1, 5\) must be \[k, k, 1, 4\]'),
        ((4, 4, 1, 4), {}, r'k one of 1, 3, 5, 7'),
        ((3, 3, 1, 4), {'stride': 3}, 'stride=3 must be 1 or 2'),
        ((3, 3, 1, 4), {'padding': 'valid'}, "padding='valid' must be 'same' or 'symmetric'"),
    ],
)
def test_errors(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.ones((1, 4, 4, 4)), jnp.ones(kernel), **options)


def test_pointwise_equals_convolution_with_gradients():
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(2, 5, 3, 4)), jnp.float32), jnp.asarray(rng.normal(size=(1, 1, 4, 6)), jnp.float32)
    numbers = ('NHWC', 'HWIO', 'NHWC')
    expected, pull = jax.vjp(lambda x, kernel: lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=numbers), x, kernel)
    y, pull_product = jax.vjp(jax.jit(pointwise_conv), x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(pull_product(jnp.cos(y)), pull(jnp.cos(y)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r'kernel shape \(1, 1, 3, 6\) must be \[1, 1, 4, O\]'):
        pointwise_conv(x, jnp.ones((1, 1, 3, 6)))
