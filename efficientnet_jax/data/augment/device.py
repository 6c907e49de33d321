"""Augmentation on the accelerator, as part of the jitted train step.

`apply_ops` has the operations of data/augment/host.py, value for value. `mix` and `erase` work on normalised images. What is applied was
drawn on the host (data/augment/policies.py), per example, so that the result is the same on any number of devices.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from efficientnet_jax.data.augment.host import EPSILON
from efficientnet_jax.data.augment.policies import FILL


def apply_ops(images, ops, mesh=None):
    """uint8 [N, H, W, 3], float32 [N, layers, 4] from data.policies.draw -> uint8 [N, H, W, 3].

    mesh: the mesh over whose axis 'data' the batch is divided; None on one device.
    On TPU and CPU the images go one by one through the operations that they drew. On a GPU, where small kernels are waste, the whole batch
    goes through every operation and each image keeps what it drew.
    """
    one_by_one = functools.partial(lax.map, lambda example: _one_image(*example))
    at_once = jax.vmap(_one_image)

    def local(images, ops):
        return lax.platform_dependent(images, ops, cuda=at_once, rocm=at_once, default=lambda *x: one_by_one(x))

    if mesh is None:
        return local(images, ops)
    spec = PartitionSpec('data')
    return jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)(images, ops)


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
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x) // 13
    y, column = _places(x)
    border = (y == 0) | (y == x.shape[1] - 1) | (column == 0) | (column == x.shape[2] - 1)
    return jnp.where(border, x, _blend(smooth.astype(jnp.float32), x, argument))  # the border keeps its values


def _places(x):
    """[3, H, W] -> row and column of each pixel, int32 [1, H, W]."""
    return (lax.broadcasted_iota(jnp.int32, (1, *x.shape[1:]), axis) for axis in (1, 2))


def _packed(x):
    """int32 [3, H, W] -> int32 [H, W]: the three values of a pixel travel as one word."""
    return x[0] << 16 | x[1] << 8 | x[2]


def _unpacked(word):
    return jnp.stack([word >> 16, word >> 8 & 255, word & 255])


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
    inside = (source_x >= 0) & (source_x <= right) & (source_y >= 0) & (source_y <= bottom)
    place = jnp.where(inside, source_y * x.shape[2] + source_x, 0)[0]
    return jnp.where(inside, _unpacked(_packed(x).reshape(-1)[place]), FILL)


def _shifted(x, shift):
    """int32 [3, H, W], int32 [H] -> x[:, a, b + shift[a]], grey outside.

    Log-many choices between the row and the row a power of two further on, because a TPU has no cheap gather.
    """
    width = x.shape[2]
    bits = (2 * width).bit_length()
    grey = FILL << 16 | FILL << 8 | FILL
    word = jnp.pad(_packed(x), ((0, 0), (width, (1 << bits) - 1 - width)), constant_values=grey)
    start = jnp.clip(shift, -width, width) + width
    for bit in reversed(range(bits)):
        rest = width + (1 << bit) - 1
        further = word[:, 1 << bit :][:, :rest]
        word = jnp.where((start >> bit & 1)[:, None] == 1, further, word[:, :rest])
    return _unpacked(word)


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
    down = row - (centre[0] * x.shape[1]).astype(jnp.int32)
    across = column - (centre[1] * x.shape[2]).astype(jnp.int32)
    return jnp.where((down >= -half) & (down < half) & (across >= -half) & (across < half), FILL, x)


# In the order of data.policies.OPS.
OPERATIONS = (
    _identity, _auto_contrast, _equalize, _invert, _rotate, _posterize, _solarize, _color, _contrast, _brightness, _sharpness,
    _shear_x, _shear_y, _translate_x, _translate_y, _cutout, _solarize_add,
)  # fmt: skip
