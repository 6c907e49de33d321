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

ROWS = 8  # of the output that _gather_by_products makes at a time: bounds its memory to 5 MB an image at 224 px


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

    def layer(i, image):
        return lax.switch(ops[i, 0].astype(jnp.int32), OPERATIONS, image, ops[i, 1], ops[i, 2:])

    return lax.fori_loop(0, ops.shape[0], layer, image)


def _identity(image, argument, centre):
    return image


def _auto_contrast(image, argument, centre):
    low = jnp.min(image, axis=(0, 1), keepdims=True).astype(jnp.float32)  # [1, 1, 3]
    span = jnp.max(image, axis=(0, 1), keepdims=True).astype(jnp.float32) - low
    stretched = (image.astype(jnp.float32) - low) * 255 / jnp.maximum(span, 1)
    return jnp.where(span > 0, (stretched + EPSILON).astype(jnp.uint8), image)


def _equalize(image, argument, centre):
    planes = jnp.moveaxis(image, 2, 0).reshape(3, -1)  # [3, H * W]
    histogram = lax.platform_dependent(planes, tpu=_count_by_products, default=_count_by_scatter)  # int32 [3, 256]
    value = jnp.arange(256).reshape(1, 256)
    last = jnp.max(jnp.where(histogram > 0, value, 0), axis=1, keepdims=True)  # the brightest value of each channel
    step = (planes.shape[1] - jnp.sum(jnp.where(value == last, histogram, 0), axis=1, keepdims=True)) // 255
    below = jnp.cumsum(histogram, axis=1) - histogram
    table = jnp.where(value > 0, jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255), 0)
    table = jnp.where(step > 0, table, value).astype(jnp.uint8)
    planes = lax.platform_dependent(table, planes, tpu=_look_up_by_products, default=_look_up_by_gather)
    return jnp.moveaxis(planes.reshape(3, *image.shape[:2]), 0, 2)


def _count_by_scatter(planes):
    return jax.vmap(functools.partial(jnp.bincount, length=256))(planes).astype(jnp.int32)


def _count_by_products(planes):
    """uint8 [3, P] -> int32 [3, 256]. The values as 16 x 16: a matrix product of one-hot rows, which a TPU does far faster than scatter."""
    high, low = _nibbles(planes)
    return jnp.einsum('cph,cpl->chl', high, low, preferred_element_type=jnp.float32).reshape(3, 256).astype(jnp.int32)


def _look_up_by_gather(table, planes):
    return jnp.take_along_axis(table, planes.astype(jnp.int32), axis=1)


def _look_up_by_products(table, planes):
    """uint8 [3, 256], uint8 [3, P] -> uint8 [3, P]. Exact: every sum has one term, and bfloat16 holds the integers up to 256."""
    high, low = _nibbles(planes)
    rows = jnp.einsum('cph,chl->cpl', high, table.astype(jnp.bfloat16).reshape(3, 16, 16), preferred_element_type=jnp.float32)
    return jnp.sum(rows * low, axis=2).astype(jnp.uint8)


def _nibbles(planes):
    return (jax.nn.one_hot(part, 16, dtype=jnp.bfloat16) for part in (planes >> 4, planes & 15))  # each [3, P, 16]


def _invert(image, argument, centre):
    return 255 - image


def _posterize(image, argument, centre):
    shift = (8 - argument).astype(jnp.uint8)
    return (image >> shift) << shift


def _solarize(image, argument, centre):
    return jnp.where(image < argument.astype(jnp.uint8), image, 255 - image)


def _solarize_add(image, argument, centre):
    brighter = jnp.minimum(image.astype(jnp.int32) + argument.astype(jnp.int32), 255)
    return jnp.where(image < 128, brighter.astype(jnp.uint8), image)


def _blend(degenerate, image, factor):
    """degenerate + factor * (image - degenerate), clipped and cut off."""
    mixed = degenerate + factor * (image.astype(jnp.float32) - degenerate)
    return (jnp.clip(mixed, 0, 255) + EPSILON).astype(jnp.uint8)


def _color(image, argument, centre):
    r, g, b = (image[..., c : c + 1].astype(jnp.int32) for c in range(3))
    luma = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
    return _blend(luma.astype(jnp.float32), image, argument)


def _contrast(image, argument, centre):
    return _blend(jnp.float32(min(255, image.shape[0] * image.shape[1] // 256)), image, argument)


def _brightness(image, argument, centre):
    return _blend(jnp.float32(0), image, argument)


def _sharpness(image, argument, centre):
    values = image.astype(jnp.int32)
    rows = values[:-2] + values[1:-1] + values[2:]
    smooth = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]) // 13
    inner = _blend(smooth.astype(jnp.float32), image[1:-1, 1:-1], argument)
    return image.at[1:-1, 1:-1].set(inner)  # the border keeps its values


def _rotate(image, argument, centre):
    height, width = image.shape[:2]
    radians = argument * (jnp.pi / 180)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    bottom, right = height - 1, width - 1
    left = (right - (cos * right - sin * bottom)) / 2
    top = (bottom - (sin * right + cos * bottom)) / 2
    y, x = (lax.broadcasted_iota(jnp.float32, (height, width), axis) for axis in (0, 1))
    source_x = jnp.floor(cos * x - sin * y + left + 0.5 + EPSILON).astype(jnp.int32)
    source_y = jnp.floor(sin * x + cos * y + top + 0.5 + EPSILON).astype(jnp.int32)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    moved = lax.platform_dependent(image, source_y, source_x, tpu=_gather_by_products, default=_gather)
    return jnp.where(inside[..., None], moved, jnp.uint8(FILL))


def _gather(image, y, x):
    """uint8 [H, W, 3], int32 [H, W] twice -> uint8 [H, W, 3], image[y, x]; anything where those lie outside."""
    return image.at[y, x].get(mode='clip')


def _gather_by_products(image, y, x):
    """As _gather. A TPU fetches scattered pixels one by one, but picks columns, then rows, by one-hot products at the speed of its matrix unit."""
    height, width, _ = image.shape
    columns = jnp.moveaxis(image, 1, 0).reshape(width, height * 3).astype(jnp.bfloat16)  # [X, (Y, c)]
    blocks = -(-height // ROWS)
    padding = ((0, blocks * ROWS - height), (0, 0))

    def block(places):
        y, x = (place.reshape(-1) for place in places)  # [P], P = ROWS * W
        picked = jax.nn.one_hot(x, width, dtype=jnp.bfloat16) @ columns  # [P, (Y, c)]
        kept = jax.nn.one_hot(y, height, dtype=jnp.bfloat16)[:, :, None] * picked.reshape(-1, height, 3)
        return jnp.sum(kept, axis=1).astype(jnp.uint8).reshape(ROWS, width, 3)

    places = tuple(jnp.pad(place, padding).reshape(blocks, ROWS, width) for place in (y, x))
    return lax.map(block, places).reshape(blocks * ROWS, width, 3)[:height]


def _shifted(image, shift):
    """uint8 [A, B, 3], int32 [A] -> image[a, b + shift[a]], grey outside. Log-many conditional rolls: a TPU has no cheap gather."""
    width = image.shape[1]
    wrapped = shift % width
    for bit in range(max(1, (width - 1).bit_length())):
        image = jnp.where((wrapped >> bit & 1)[:, None, None] == 1, jnp.roll(image, -(1 << bit), axis=1), image)
    source = lax.broadcasted_iota(jnp.int32, image.shape[:2], 1) + shift[:, None]
    return jnp.where(((source >= 0) & (source < width))[..., None], image, jnp.uint8(FILL))


def _shifts(slope, offset, count):
    return jnp.floor(slope * jnp.arange(count, dtype=jnp.float32) + offset + 0.5 + EPSILON).astype(jnp.int32)


def _shear_x(image, argument, centre):
    return _shifted(image, _shifts(argument, 0, image.shape[0]))


def _shear_y(image, argument, centre):
    return _transposed(_shear_x, image, argument)


def _translate_x(image, argument, centre):
    return _shifted(image, _shifts(0, argument, image.shape[0]))


def _translate_y(image, argument, centre):
    return _transposed(_translate_x, image, argument)


def _transposed(operation, image, argument):
    return operation(image.transpose(1, 0, 2), argument, None).transpose(1, 0, 2)


def _cutout(image, argument, centre):
    height, width = image.shape[:2]
    half = argument.astype(jnp.int32)
    rows = lax.broadcasted_iota(jnp.int32, (height, width, 1), 0) - (centre[0] * height).astype(jnp.int32)
    columns = lax.broadcasted_iota(jnp.int32, (height, width, 1), 1) - (centre[1] * width).astype(jnp.int32)
    inside = (rows >= -half) & (rows < half) & (columns >= -half) & (columns < half)
    return jnp.where(inside, jnp.uint8(FILL), image)


# In the order of data.policies.OPS.
OPERATIONS = (
    _identity, _auto_contrast, _equalize, _invert, _rotate, _posterize, _solarize, _color, _contrast, _brightness, _sharpness,
    _shear_x, _shear_y, _translate_x, _translate_y, _cutout, _solarize_add,
)  # fmt: skip
