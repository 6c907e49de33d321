"""The jaxpr counter against the counter of rows, to the unit, and against arithmetic."""

import functools

import jax
import jax.numpy as jnp
import pytest

from efficientnet_jax import architectures, counting, models, scaling
from efficientnet_jax.tpu import jaxpr_count

FAST = ('efficientnet_b0', 'efficientnet_edgetpu_s', 'mnasnet_small', 'mobilenet_v1', 'mobilenet_v2', 'resnet50')
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in architectures.names()]


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def grouped_conv(stride, groups):
    return functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def by_rows(architecture):
    return (*counting.count(architecture), sum(row.activations for row in counting.layers(architecture)))


@pytest.mark.parametrize('name', CASES)
def test_all_models_agree_with_their_rows(name):
    architecture = architectures.get(name)
    side = architecture.resolution
    assert jaxpr_count.count_module(models.build(name), (1, side, side, 3), train=False) == by_rows(architecture)


@pytest.mark.slow
def test_a_scaled_model_agrees_at_an_odd_resolution():
    architecture = scaling.scale(architectures.get('mnasnet_small'), depth=1.4, width=1.2, resolution=1.3)
    assert architecture.resolution == 291
    assert jaxpr_count.count_module(models.build(architecture), (1, 291, 291, 3), train=False) == by_rows(architecture)


def test_a_batch_counts_each_image():
    count = jaxpr_count.count_module(models.build('mnasnet_small'), (4, 224, 224, 3), train=False)
    params, macs, activations = by_rows(architectures.get('mnasnet_small'))
    assert count == (params, 4 * macs, 4 * activations)


def test_products_and_convolutions():
    assert jaxpr_count.count(lambda a, b: a @ b, shaped(2, 3), shaped(3, 5)) == (30, 10)
    assert jaxpr_count.count(lambda a, b: jnp.einsum('nij,njk->nik', a, b), shaped(7, 2, 3), shaped(7, 3, 5)) == (210, 70)
    assert jaxpr_count.count(grouped_conv(stride=2, groups=4), shaped(2, 9, 9, 8), shaped(3, 3, 2, 12)) == (
        2 * 25 * 12 * 9 * 2,
        2 * 25 * 12,
    )


def test_control_flow():
    def scan(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=5)[0]

    def choose(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    square = shaped(3, 3)
    assert jaxpr_count.count(scan, square) == (5 * 27, 5 * 9)
    assert jaxpr_count.count(choose, square) == (27, 9)
    assert jaxpr_count.count(jax.checkpoint(jax.jit(lambda x: x @ x)), square) == (27, 9)
    assert jaxpr_count.count(jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), square, square).macs == 3 * 27
    with pytest.raises(ValueError, match='a while loop with convolutions or matrix products cannot be counted'):
        jaxpr_count.count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), square)


def test_xla_counts_something_else():
    """Without the taps on padding: of a 5x5 kernel on 7x7 pixels, 29 of 35 per row and per column meet the image."""
    x, kernel = shaped(1, 7, 7, 8), shaped(5, 5, 1, 8)
    conv = grouped_conv(stride=1, groups=8)
    assert jaxpr_count.count(conv, x, kernel).macs == 8 * 35 * 35
    inside = jaxpr_count.xla_flops(conv, x, kernel)
    assert inside == 2 * 8 * 29 * 29 and inside / (2 * 8 * 35 * 35) == pytest.approx(0.687, abs=0.001)
