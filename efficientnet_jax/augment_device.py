"""Augmentation on the accelerator, batched, as part of the jitted train step.

`apply_ops` has the operations of data/augment_host.py, value for value. There are no branches: each operation is a setting of a few kernels that every
image goes through (a tone curve, a blend, an equalisation, an affine map, a grey square), and the settings of the operations that an image did not draw
leave it as it is. `mix` and `erase` work on normalised images. What is applied was drawn on the host (data/policies.py), per example, so that the
result is the same on any number of devices.
"""

import jax
import jax.numpy as jnp

from efficientnet_jax.data.augment_host import EPSILON
from efficientnet_jax.data.policies import FILL, NUMBER


def apply_ops(images, ops):
    """uint8 [N, H, W, 3], float32 [N, layers, 4] from data.policies.draw -> uint8 [N, H, W, 3]."""
    for layer in range(ops.shape[1]):
        images = _one_layer(images, ops[:, layer])
    return images


def mix(images, mixes):
    """Mixup and CutMix. float [N, H, W, 3], N even, float32 [N, 5] from data.policies.draw_mix -> float [N, H, W, 3].

    The partner is the other image of each pair (2 i, 2 i + 1), which is on the same device: the order of examples is random already.
    """
    weight = mixes[:, 0][:, None, None, None].astype(images.dtype)
    partners = partner(images)
    return jnp.where(_inside(mixes[:, 1:], images), partners, weight * images + (1 - weight) * partners)


def own_share(mixes, resolution):
    """float32 [N, 5] -> float32 [N], the part of each mixed image that is its own, and so the weight of its own label."""
    top, bottom, left, right = mixes[:, 1], mixes[:, 2], mixes[:, 3], mixes[:, 4]
    return mixes[:, 0] * (1 - (bottom - top) * (right - left) / resolution**2)


def partner(x):
    """[N, ...] -> [N, ...], each pair's two elements swapped."""
    return jnp.flip(x.reshape(x.shape[0] // 2, 2, *x.shape[1:]), axis=1).reshape(x.shape)


def erase(images, boxes, key):
    """Random erasing. Normalised float [N, H, W, 3], float32 [N, 4] from data.policies.draw_erase -> the same with noise N(0, 1) in the boxes."""
    noise = jax.random.normal(key, images.shape, images.dtype)
    return jnp.where(_inside(boxes, images), noise, images)


def _inside(boxes, images):
    """[N, 4] top, bottom, left, right -> bool [N, H, W, 1]."""
    top, bottom, left, right = (boxes[:, i][:, None, None, None] for i in range(4))
    rows = jnp.arange(images.shape[1], dtype=jnp.float32).reshape(1, -1, 1, 1)
    columns = jnp.arange(images.shape[2], dtype=jnp.float32).reshape(1, 1, -1, 1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _one_layer(images, ops):
    op = ops[:, 0].astype(jnp.int32)[:, None, None, None]  # [N, 1, 1, 1], as everything per image below
    argument = ops[:, 1][:, None, None, None]
    images = _tone(images, op, argument)
    images = _equalize(images, op)
    images = _affine(images, op, argument)
    return _cutout(images, op, argument, ops[:, 2:])


def _is(op, *names):
    return jnp.isin(op, jnp.array([NUMBER[name] for name in names]))


def _tone(images, op, argument):
    """What changes values and not places, but for Equalize: integer curves first, then one blend."""
    x = images.astype(jnp.int32)
    whole = argument.astype(jnp.int32)
    threshold = jnp.where(_is(op, 'Solarize'), whole, jnp.where(_is(op, 'Invert'), 0, 256))
    x = jnp.where(x < threshold, x, 255 - x)
    x = jnp.where(x < 128, jnp.minimum(x + jnp.where(_is(op, 'SolarizeAdd'), whole, 0), 255), x)
    shift = jnp.where(_is(op, 'Posterize'), 8 - whole, 0)
    x = (x >> shift) << shift
    low = jnp.min(x, axis=(1, 2), keepdims=True)  # [N, 1, 1, 3]
    span = jnp.max(x, axis=(1, 2), keepdims=True) - low
    stretched = jnp.floor((x - low).astype(jnp.float32) * 255 / jnp.maximum(span, 1).astype(jnp.float32) + EPSILON).astype(jnp.int32)
    x = jnp.where(_is(op, 'AutoContrast') & (span > 0), stretched, x)

    blends = _is(op, 'Color', 'Contrast', 'Brightness', 'Sharpness')
    grey = min(255, images.shape[1] * images.shape[2] // 256)
    luma = (x[..., :1] * 19595 + x[..., 1:2] * 38470 + x[..., 2:] * 7471 + 32768) >> 16
    degenerate = jnp.where(_is(op, 'Contrast'), grey, 0)
    degenerate = jnp.where(_is(op, 'Color'), luma, degenerate)
    degenerate = jnp.where(_is(op, 'Sharpness'), _smooth(x), degenerate).astype(jnp.float32)
    mixed = degenerate + jnp.where(blends, argument, 1) * (x.astype(jnp.float32) - degenerate)
    mixed = jnp.floor(jnp.clip(mixed, 0, 255) + EPSILON).astype(jnp.int32)
    return jnp.where(blends, mixed, x).astype(jnp.uint8)


def _smooth(x):
    """int32 [N, H, W, 3] -> the 3x3 mean with weight 5 in the middle, cut off; the border keeps its values."""
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    inner = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]) // 13
    middle = jnp.concatenate([x[:, 1:-1, :1], inner, x[:, 1:-1, -1:]], axis=2)
    return jnp.concatenate([x[:, :1], middle, x[:, -1:]], axis=1)


def _equalize(images, op):
    """The 256 values as 16 x 16: counting and looking up are then small exact matrix products, which accelerators do faster than scatter."""
    n, height, width, _ = images.shape
    x = jnp.moveaxis(images, 3, 1).reshape(n, 3, height * width)
    high = jax.nn.one_hot(x >> 4, 16, dtype=jnp.bfloat16)  # [N, 3, H * W, 16]
    low = jax.nn.one_hot(x & 15, 16, dtype=jnp.bfloat16)
    histogram = jnp.einsum('ncph,ncpl->nchl', high, low, preferred_element_type=jnp.float32).reshape(n, 3, 256).astype(jnp.int32)
    value = jnp.arange(256).reshape(1, 1, 256)
    last = jnp.max(jnp.where(histogram > 0, value, 0), axis=2, keepdims=True)
    step = (height * width - jnp.sum(jnp.where(value == last, histogram, 0), axis=2, keepdims=True)) // 255
    below = jnp.cumsum(histogram, axis=2) - histogram
    lut = jnp.where(value > 0, jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255), 0)
    lut = jnp.where((step > 0) & _is(op, 'Equalize')[..., 0], lut, value).astype(jnp.bfloat16).reshape(n, 3, 16, 16)
    rows = jnp.einsum('ncph,nchl->ncpl', high, lut, preferred_element_type=jnp.bfloat16)  # exact: one term, and integers up to 256 fit
    return jnp.moveaxis(jnp.sum(rows * low, axis=-1).astype(jnp.uint8).reshape(n, 3, height, width), 1, 3)


def _matrix(op, argument, height, width):
    """Returns the six numbers, each [N, 1, 1, 1], by which output (x, y) shows input (a x + b y + c, d x + e y + f)."""
    zero, one = jnp.zeros_like(argument), jnp.ones_like(argument)
    radians = jnp.where(_is(op, 'Rotate'), argument, 0) * (jnp.pi / 180)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    bottom, right = height - 1, width - 1
    x = (right - (cos * right - sin * bottom)) / 2
    y = (bottom - (sin * right + cos * bottom)) / 2
    b = jnp.where(_is(op, 'ShearX'), argument, -sin)
    c = jnp.where(_is(op, 'TranslateX'), argument, jnp.where(_is(op, 'Rotate'), x, zero))
    d = jnp.where(_is(op, 'ShearY'), argument, sin)
    f = jnp.where(_is(op, 'TranslateY'), argument, jnp.where(_is(op, 'Rotate'), y, zero))
    return cos * one, b, c + EPSILON, d, cos * one, f + EPSILON


def _affine(images, op, argument):
    n, height, width, _ = images.shape
    a, b, c, d, e, f = (number[:, 0] for number in _matrix(op, argument, height, width))  # [N, 1, 1]
    y = jnp.arange(height, dtype=jnp.float32).reshape(1, height, 1)
    x = jnp.arange(width, dtype=jnp.float32).reshape(1, 1, width)
    source_x = jnp.floor(a * x + b * y + c + 0.5).astype(jnp.int32)  # [N, H, W]
    source_y = jnp.floor(d * x + e * y + f + 0.5).astype(jnp.int32)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    place = jnp.where(inside, source_y * width + source_x, 0).reshape(n, height * width, 1)
    moved = jnp.take_along_axis(images.reshape(n, height * width, 3), place, axis=1).reshape(images.shape)
    return jnp.where(inside[..., None], moved, jnp.uint8(FILL))


def _cutout(images, op, argument, centre):
    height, width = images.shape[1:3]
    half = jnp.where(_is(op, 'Cutout'), argument, 0).astype(jnp.int32)
    y = jnp.floor(centre[:, 0] * height).astype(jnp.int32)[:, None, None, None]
    x = jnp.floor(centre[:, 1] * width).astype(jnp.int32)[:, None, None, None]
    rows = jnp.arange(height).reshape(1, height, 1, 1)
    columns = jnp.arange(width).reshape(1, 1, width, 1)
    inside = (rows >= y - half) & (rows < y + half) & (columns >= x - half) & (columns < x + half)
    return jnp.where(inside, jnp.uint8(FILL), images)
