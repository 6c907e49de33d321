"""Augmentation on the accelerator, as part of the jitted train step.

`apply_ops` has the operations of data/augment_host.py, value for value. `mix` and `erase` work on normalised images and draw from each example's own
seed. Nothing here depends on how many devices share the batch.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from efficientnet_jax.data.augment_host import EPSILON
from efficientnet_jax.data.policies import FILL


def apply_ops(images, ops, mesh=None):
    """uint8 [N, H, W, 3], float32 [N, layers, 4] from data.policies.draw -> uint8 [N, H, W, 3].

    mesh: the mesh whose axis 'data' the batch is divided over, None on one device.
    On TPU and CPU the images go one by one through the operation that they drew; on GPU, where small kernels are waste, the batch goes through all
    of them and keeps what was drawn.
    """
    one_by_one = functools.partial(lax.map, lambda example: _one_image(*example))
    at_once = jax.vmap(_one_image)

    def local(images, ops):
        return lax.platform_dependent(images, ops, cuda=at_once, rocm=at_once, default=lambda *x: one_by_one(x))

    if mesh is None:
        return local(images, ops)
    spec = PartitionSpec('data')
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)(images, ops)


def _one_image(image, ops):
    """uint8 [H, W, 3], float32 [layers, 4] -> uint8 [H, W, 3]."""

    def layer(i, planes):
        return lax.switch(ops[i, 0].astype(jnp.int32), OPERATIONS, planes, ops[i, 1], ops[i, 2:])

    planes = image.transpose(2, 0, 1).astype(jnp.int32)  # in between int32 [3, H, W]: a TPU has no 8-bit arithmetic, and likes W last
    return lax.fori_loop(0, ops.shape[0], layer, planes).astype(jnp.uint8).transpose(1, 2, 0)


def _identity(x, argument, centre):
    return x


def _auto_contrast(x, argument, centre):
    low = jnp.min(x, axis=(1, 2), keepdims=True)  # [3, 1, 1]
    span = jnp.max(x, axis=(1, 2), keepdims=True) - low
    stretched = ((x - low) * 255).astype(jnp.float32) / jnp.maximum(span, 1).astype(jnp.float32)
    return jnp.where(span > 0, (stretched + EPSILON).astype(jnp.int32), x)


def _equalize(x, argument, centre):
    values = x.reshape(3, -1)  # [3, H * W]
    histogram = lax.platform_dependent(values, tpu=_count_by_products, default=_count_by_scatter)  # int32 [3, 256]
    value = jnp.arange(256).reshape(1, 256)
    last = jnp.max(jnp.where(histogram > 0, value, 0), axis=1, keepdims=True)  # the brightest value of each channel
    step = (values.shape[1] - jnp.sum(jnp.where(value == last, histogram, 0), axis=1, keepdims=True)) // 255
    below = jnp.cumsum(histogram, axis=1) - histogram
    table = jnp.where(value > 0, jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255), 0)
    table = jnp.where(step > 0, table, value)
    return lax.platform_dependent(table, values, tpu=_look_up_by_products, default=_look_up_by_gather).reshape(x.shape)


def _count_by_scatter(values):
    return jax.vmap(functools.partial(jnp.bincount, length=256))(values).astype(jnp.int32)


def _count_by_products(values):
    """int32 [3, P] -> int32 [3, 256]. The values as 16 x 16: a matrix product of one-hot rows, which a TPU does far faster than scatter."""
    high, low = _nibbles(values)
    return jnp.einsum('chp,clp->chl', high, low, preferred_element_type=jnp.float32).reshape(3, 256).astype(jnp.int32)


def _look_up_by_gather(table, values):
    return jnp.take_along_axis(table, values, axis=1)


def _look_up_by_products(table, values):
    """int32 [3, 256], int32 [3, P] -> int32 [3, P]. Exact: every sum has one term, and bfloat16 holds the integers up to 256."""
    high, low = _nibbles(values)
    columns = jnp.einsum('chl,chp->clp', table.astype(jnp.bfloat16).reshape(3, 16, 16), high, preferred_element_type=jnp.float32)
    return jnp.sum(columns * low, axis=1).astype(jnp.int32)


def _nibbles(values):
    return (jax.nn.one_hot(part, 16, dtype=jnp.bfloat16, axis=1) for part in (values >> 4, values & 15))  # each [3, 16, P]


def _invert(x, argument, centre):
    return 255 - x


def _posterize(x, argument, centre):
    shift = (8 - argument).astype(jnp.int32)
    return (x >> shift) << shift


def _solarize(x, argument, centre):
    return jnp.where(x < argument.astype(jnp.int32), x, 255 - x)


def _solarize_add(x, argument, centre):
    return jnp.where(x < 128, jnp.minimum(x + argument.astype(jnp.int32), 255), x)


def _blend(degenerate, x, factor):
    """degenerate + factor * (x - degenerate), clipped and cut off."""
    mixed = degenerate + factor * (x.astype(jnp.float32) - degenerate)
    return (jnp.clip(mixed, 0, 255) + EPSILON).astype(jnp.int32)


def _color(x, argument, centre):
    luma = (19595 * x[:1] + 38470 * x[1:2] + 7471 * x[2:] + 32768) >> 16
    return _blend(luma.astype(jnp.float32), x, argument)


def _contrast(x, argument, centre):
    return _blend(jnp.float32(min(255, x.shape[1] * x.shape[2] // 256)), x, argument)


def _brightness(x, argument, centre):
    return _blend(jnp.float32(0), x, argument)


def _sharpness(x, argument, centre):
    rows = jnp.roll(x, 1, axis=1) + x + jnp.roll(x, -1, axis=1)
    smooth = (jnp.roll(rows, 1, axis=2) + rows + jnp.roll(rows, -1, axis=2) + 4 * x) // 13
    y, column = _places(x)
    border = (y == 0) | (y == x.shape[1] - 1) | (column == 0) | (column == x.shape[2] - 1)
    return jnp.where(border, x, _blend(smooth.astype(jnp.float32), x, argument))  # the border keeps its values


def _places(x):
    """[3, H, W] -> row and column of each pixel, int32 [1, H, W]."""
    return (lax.broadcasted_iota(jnp.int32, (1, *x.shape[1:]), axis) for axis in (1, 2))


def _moved(x, move, source_y, source_x):
    """int32 [3, H, W] -> the same with each pixel from (source_y, source_x), int32 [1, H, W], grey where that lies outside.

    move: int32 [H, W] -> [H, W], which fetches the pixels; the three values travel as one word.
    """
    word = move(x[0] << 16 | x[1] << 8 | x[2])
    inside = (source_x >= 0) & (source_x < x.shape[2]) & (source_y >= 0) & (source_y < x.shape[1])
    return jnp.where(inside, jnp.stack([word >> 16, word >> 8 & 255, word & 255]), FILL)


def _rounded(real):
    return jnp.floor(real + 0.5 + EPSILON).astype(jnp.int32)


def _rotate(x, argument, centre):
    radians = argument * (jnp.pi / 180)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    bottom, right = x.shape[1] - 1, x.shape[2] - 1
    left = (right - (cos * right - sin * bottom)) / 2
    top = (bottom - (sin * right + cos * bottom)) / 2
    row, column = (place.astype(jnp.float32) for place in _places(x))
    source_x = _rounded(cos * column - sin * row + left)
    source_y = _rounded(sin * column + cos * row + top)
    place = jnp.clip(source_y * x.shape[2] + source_x, 0, x.shape[1] * x.shape[2] - 1)[0]
    return _moved(x, lambda word: word.reshape(-1)[place], source_y, source_x)


def _shifted(x, shift):
    """int32 [3, H, W], int32 [H] -> x[:, a, b + shift[a]], grey outside. Rolls by powers of two: a TPU has no cheap gather."""
    width = x.shape[2]
    wrapped = shift % width

    def move(word):
        for bit in range((width - 1).bit_length()):
            word = jnp.where((wrapped >> bit & 1)[:, None] == 1, jnp.roll(word, -(1 << bit), axis=1), word)
        return word

    row, column = _places(x)
    return _moved(x, move, row, column + shift[None, :, None])


def _shear_x(x, argument, centre):
    return _shifted(x, _rounded(argument * jnp.arange(x.shape[1], dtype=jnp.float32)))


def _translate_x(x, argument, centre):
    return _shifted(x, jnp.broadcast_to(_rounded(argument), x.shape[1:2]))


def _shear_y(x, argument, centre):
    return _shear_x(x.transpose(0, 2, 1), argument, centre).transpose(0, 2, 1)


def _translate_y(x, argument, centre):
    return _translate_x(x.transpose(0, 2, 1), argument, centre).transpose(0, 2, 1)


def _cutout(x, argument, centre):
    half = argument.astype(jnp.int32)
    row, column = _places(x)
    y = row - (centre[0] * x.shape[1]).astype(jnp.int32)
    x_ = column - (centre[1] * x.shape[2]).astype(jnp.int32)
    return jnp.where((y >= -half) & (y < half) & (x_ >= -half) & (x_ < half), FILL, x)


# In the order of data.policies.OPS.
OPERATIONS = (
    _identity, _auto_contrast, _equalize, _invert, _rotate, _posterize, _solarize, _color, _contrast, _brightness, _sharpness,
    _shear_x, _shear_y, _translate_x, _translate_y, _cutout, _solarize_add,
)  # fmt: skip
