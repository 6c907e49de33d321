"""Models: parameter counts of all, initialisation, endpoints, precision, drop path, and equality with the stock formulation."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax import architectures, counting, models
from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.models import mbconvnet

SMALL = Architecture(
    'small', (Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 3, 16), Stage(1, 3, 2, 2, 16, None, 'fused'), Stage(2, 3, 1, 2, 24)), stem=8, head=32
)
CONVS = Architecture(
    'convs',
    (Stage(2, 3, 1, 1, 8, 0.25, 'conv', 'pool'), Stage(2, 5, 2, 1, 16, None, 'conv', False), Stage(2, 3, 1, 2, 16, skip='pool')),
    stem=8,
    head=32,
)


def shapes(module, resolution):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, resolution, resolution, 3)), train=False))


@pytest.fixture(scope='module')
def small():
    module = models.build(SMALL, 5)
    return module, jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 33, 33, 3)))


@pytest.mark.parametrize('name', architectures.names())
def test_parameters_and_statistics_are_those_counted(name):
    architecture = architectures.get(name)
    variables = shapes(models.build(name), architecture.resolution)
    assert sum(x.size for x in jax.tree.leaves(variables['params'])) == counting.count(architecture)[0]
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_regular_convolutions_and_pooled_shortcuts():
    module = models.build(CONVS, 5)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = jax.jit(module.init)(jax.random.key(0), images)
    params = variables['params']
    assert sum(x.size for x in jax.tree.leaves(params)) == counting.count(CONVS, num_classes=5)[0]
    assert params['stage2_block1']['conv']['kernel'].shape == (5, 5, 8, 16) and set(params['stage1_block2']) == {'conv', 'se'}
    ends = jax.jit(functools.partial(module.apply, features=True))(variables, images)
    x, y = np.asarray(ends['stage3_block1']), np.asarray(ends['stage3_block2'])  # [2, 4, 4, 16]
    block = dataclasses.replace(CONVS.blocks()[-1], residual=False)
    weights = {name: collection['stage3_block2'] for name, collection in variables.items()}
    inside = mbconvnet.BlockModule(block, CONVS, 0.0).apply(weights, ends['stage3_block1'], False)
    near = [(slice(max(0, i - 1), i + 2), slice(max(0, j - 1), j + 2)) for i in range(4) for j in range(4)]
    pooled = np.stack([x[:, rows, columns].mean((1, 2)) for rows, columns in near], 1).reshape(x.shape)
    np.testing.assert_allclose(y - inside, pooled, rtol=1e-4, atol=1e-5)


def test_parameter_tree_reads_like_the_architecture():
    params = shapes(models.build('efficientnet_b0'), 224)['params']
    assert list(params)[-2:] == ['stage7_block1', 'stem'] and {'head', 'classifier'} < set(params)
    assert set(params['stage3_block2']) == {'expand', 'depthwise', 'se', 'project'}
    assert params['stage3_block2']['depthwise']['kernel'].shape == (5, 5, 1, 240)
    assert params['stage3_block2']['se']['reduce']['kernel'].shape == (240, 10)


def test_endpoints():
    module = models.build('efficientnet_b0')
    variables = shapes(module, 224)
    ends = jax.eval_shape(lambda v: module.apply(v, jnp.zeros((2, 224, 224, 3)), features=True), variables)
    assert [ends[f'reduction_{i}'].shape[1:] for i in range(1, 6)] == [
        (112, 112, 16),
        (56, 56, 24),
        (28, 28, 40),
        (14, 14, 112),
        (7, 7, 320),
    ]
    assert ends['pooled'].shape == (2, 1280) and ends['logits'].dtype == jnp.float32


def test_initialisation_is_the_references():
    key = jax.random.key(0)
    for k in (3, 5):
        std = float(jnp.std(mbconvnet.depthwise_init(key, (k, k, 1, 4000))))
        assert std == pytest.approx(np.sqrt(2 / k**2), rel=0.02)
        std = float(jnp.std(mbconvnet.conv_init(key, (k, k, 64, 256))))
        assert std == pytest.approx(np.sqrt(2 / (k * k * 256)), rel=0.02)
    weights = mbconvnet.dense_init(1.0)(key, (500, 100))
    assert float(jnp.abs(weights).max()) == pytest.approx(0.1, rel=0.01)
    assert not mbconvnet.dense_init(0.0)(key, (5, 5), jnp.float32).any()


def test_bfloat16_keeps_float32_parameters_and_logits(small):
    module, variables = small
    images = jax.random.normal(jax.random.key(1), (4, 33, 33, 3))
    half = jax.jit(dataclasses.replace(module, dtype=jnp.bfloat16).apply)(variables, images)
    full = jax.jit(module.apply)(variables, images)
    assert half.dtype == full.dtype == jnp.float32
    assert float(jnp.abs(half - full).max()) < 0.05 * float(jnp.std(full)) + 0.02


def test_equals_the_stock_formulation(small, monkeypatch):
    """Logits and gradients against lax convolutions and flax's BatchNorm, on odd sizes, with the stream of dropout shared."""
    module, variables = small
    images = jax.random.normal(jax.random.key(1), (6, 33, 33, 3))

    def loss(params):
        logits, _ = module.apply(
            variables | {'params': params}, images, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(2)}
        )
        return jnp.sum(jnp.sin(logits)), logits

    own = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])

    def conv(x, kernel, *, stride=1, padding='same', images_per_chip=None):
        groups = x.shape[-1] // kernel.shape[2]
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), 'SAME', feature_group_count=groups, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    class StockNorm(nn.Module):
        momentum: float
        epsilon: float
        dtype: object
        group: int | None
        activation: str | None

        @nn.compact
        def __call__(self, x, *, train, squeeze, convolution, kernel, twice):
            x = convolution(x, kernel)
            scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
            bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
            mean, var = jnp.mean(x, (0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
            z = (x - mean) / jnp.sqrt(var + self.epsilon) * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
            y = mbconvnet.ACTIVATIONS[self.activation](z)
            return (y, jnp.mean(y, (1, 2))) if squeeze else y

    monkeypatch.setattr(mbconvnet, 'depthwise_conv', conv)
    monkeypatch.setattr(mbconvnet, 'pointwise_conv', conv)
    monkeypatch.setattr(mbconvnet, 'BatchNorm', StockNorm)
    stock = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    np.testing.assert_allclose(own[1], stock[1], atol=1e-4)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(stock[0])))
    for a, b in zip(jax.tree.leaves(own[0]), jax.tree.leaves(stock[0]), strict=True):
        assert float(jnp.abs(a - b).max()) < 1e-4 * norm


def test_data_shards_reach_the_depthwise_convolutions(small):
    """128 images on each of 2 chips: a program lowered for TPU has groups of 8 channels; else single channels."""
    module, variables = small
    images = jax.ShapeDtypeStruct((256, 33, 33, 3), jnp.float32)
    for data_shards, groups in ((None, 24), (2, 3), (4, 24)):
        apply = jax.jit(dataclasses.replace(module, data_shards=data_shards).apply)
        text = apply.trace(variables, images).lower(lowering_platforms=('tpu',)).as_text()
        assert f'feature_group_count = {groups} ' in text


def test_drop_path_is_per_sample_and_off_in_evaluation(small):
    _, variables = small
    module = models.build(dataclasses.replace(SMALL, drop_path=0.9, dropout=0.0), 5)
    image = jax.random.normal(jax.random.key(1), (1, 33, 33, 3))
    same = jnp.repeat(image, 16, 0)
    evaluated = jax.jit(module.apply)(variables, same)
    np.testing.assert_allclose(evaluated, jnp.broadcast_to(evaluated[:1], evaluated.shape), rtol=1e-5, atol=1e-7)
    block = mbconvnet.BlockModule(SMALL.blocks()[-1], SMALL, 0.5)
    x = jnp.repeat(jax.random.normal(jax.random.key(3), (1, 5, 5, 24)), 64, 0)
    weights = block.init({'params': jax.random.key(0), 'dropout': jax.random.key(0)}, x, False)
    y, _ = block.apply(weights, x, True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(4)})
    kept = np.asarray(jnp.abs(y - x).max((1, 2, 3)) > 1e-6)
    assert 10 < kept.sum() < 54  # half of 64, one draw each


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: models.build('efficientnet_b0', num_classes=0), 'num_classes=0 must be at least 1'),
        (lambda: models.build('b0'), "model='b0' is not an architecture"),
        (lambda: shapes_of_bad_images(), r'images has shape \(1, 3, 8, 8\); it must be \[N, H, W, 3\]'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def shapes_of_bad_images():
    module = models.build(SMALL)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 3, 8, 8))))
