"""AutoAugment's and RandAugment's operations inside tf.data, one image at a time. augment_device.py has the same for batches.

Semantics, and where they are odd on purpose: policies.py. Sums and quotients are exact integers where that is possible. Where a real
number is rounded, EPSILON is added first: values that are integers but for the last bit of float32 then fall on the same side everywhere.
"""

import functools

from efficientnet_jax.data.augment import policies

EPSILON = 2.0**-10


def apply(image, ops):
    """uint8 tensor [R, R, 3], float32 [layers, 4] from policies.draw -> uint8 [R, R, 3]."""
    for layer in range(ops.shape[0]):
        image = _one_operation()(image, ops[layer])
    return image


@functools.cache
def _one_operation():
    """Returns the TensorFlow function that applies one operation; traced once for each shape and not for each layer and stream."""
    import tensorflow as tf

    def one_operation(image, op):
        branches = [functools.partial(operation, image, op[1], op[2:]) for operation in OPERATIONS]
        return tf.ensure_shape(tf.switch_case(tf.cast(op[0], tf.int32), branches), image.shape)

    return tf.function(one_operation, autograph=False)


def _identity(image, argument, centre):
    return image


def _auto_contrast(image, argument, centre):
    import tensorflow as tf

    low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float32)
    high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float32)
    stretched = (tf.cast(image, tf.float32) - low) * 255 / tf.maximum(high - low, 1)
    return tf.where(high > low, tf.cast(stretched + EPSILON, tf.uint8), image)


def _equalize(image, argument, centre):
    import tensorflow as tf

    values = tf.cast(image, tf.int32)
    histogram = tf.reshape(tf.math.bincount(tf.reshape(values + [0, 256, 512], [-1]), minlength=768, maxlength=768), [3, 256])
    last = tf.reduce_max(tf.where(histogram > 0, tf.range(256), 0), axis=1)  # [3], the brightest value of each channel
    step = (tf.reduce_sum(histogram, axis=1) - tf.gather(histogram, last, batch_dims=1)) // 255
    step = step[:, None]
    below = tf.cumsum(histogram, axis=1, exclusive=True)  # [3, 256], pixels darker than each value
    lut = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    lut = tf.where(tf.range(256) > 0, lut, 0)
    lut = tf.where(step > 0, lut, tf.range(256)[None])
    return tf.gather(tf.reshape(tf.cast(lut, tf.uint8), [-1]), values + [0, 256, 512])


def _invert(image, argument, centre):
    return 255 - image


def _posterize(image, argument, centre):
    import tensorflow as tf

    shift = tf.cast(8 - argument, tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def _solarize(image, argument, centre):
    import tensorflow as tf

    return tf.where(image < tf.cast(argument, tf.uint8), image, 255 - image)


def _solarize_add(image, argument, centre):
    import tensorflow as tf

    brighter = tf.minimum(tf.cast(image, tf.int32) + tf.cast(argument, tf.int32), 255)
    return tf.where(image < 128, tf.cast(brighter, tf.uint8), image)


def _blend(degenerate, image, factor):
    """degenerate + factor * (image - degenerate), clipped and cut off; factor 0 gives the degenerate, 1 the image."""
    import tensorflow as tf

    mixed = degenerate + factor * (tf.cast(image, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(mixed, 0, 255) + EPSILON, tf.uint8)


def _color(image, argument, centre):
    import tensorflow as tf

    # The luma of ITU-R 601 in Pillow's fixed point.
    luma = tf.reduce_sum(tf.cast(image, tf.int32) * [19595, 38470, 7471], axis=2, keepdims=True) + 32768
    return _blend(tf.cast(luma // 65536, tf.float32), image, argument)


def _contrast(image, argument, centre):
    return _blend(min(255.0, float(image.shape[0] * image.shape[1] // 256)), image, argument)


def _brightness(image, argument, centre):
    return _blend(0.0, image, argument)


def _sharpness(image, argument, centre):
    import tensorflow as tf

    values = tf.cast(image, tf.int32)
    rows = values[:-2] + values[1:-1] + values[2:]
    smooth = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]) // 13  # the border keeps its values
    inner = _blend(tf.cast(smooth, tf.float32), image[1:-1, 1:-1], argument)
    middle = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], middle, image[-1:]], axis=0)


def _affine(image, matrix):
    """Output pixel (x, y) shows input pixel round(a x + b y + c), round(d x + e y + f); grey where there is none. matrix: six scalars."""
    import tensorflow as tf

    a, b, c, d, e, f = matrix
    transform = tf.stack([tf.cast(number, tf.float32) for number in (a, b, c + EPSILON, d, e, f + EPSILON, 0, 0)])
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=image.shape[:2],
        fill_value=float(policies.FILL),
        interpolation='NEAREST',
        fill_mode='CONSTANT',
    )
    return moved[0]


def _rotate(image, argument, centre):
    """About the image's middle."""
    import tensorflow as tf

    radians = argument * (3.141592653589793 / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    bottom, right = image.shape[0] - 1, image.shape[1] - 1
    x = (right - (cos * right - sin * bottom)) / 2
    y = (bottom - (sin * right + cos * bottom)) / 2
    return _affine(image, (cos, -sin, x, sin, cos, y))


def _shear_x(image, argument, centre):
    return _affine(image, (1, argument, 0, 0, 1, 0))


def _shear_y(image, argument, centre):
    return _affine(image, (1, 0, 0, argument, 1, 0))


def _translate_x(image, argument, centre):
    return _affine(image, (1, 0, argument, 0, 1, 0))


def _translate_y(image, argument, centre):
    return _affine(image, (1, 0, 0, 0, 1, argument))


def _cutout(image, argument, centre):
    """A grey square of side 2 * argument around a pixel, cut off at the image's border."""
    import tensorflow as tf

    height, width = image.shape[:2]
    half = tf.cast(argument, tf.int32)
    y, x = tf.cast(centre[0] * height, tf.int32), tf.cast(centre[1] * width, tf.int32)
    rows, columns = tf.range(height)[:, None, None], tf.range(width)[None, :, None]
    inside = (rows >= y - half) & (rows < y + half) & (columns >= x - half) & (columns < x + half)
    return tf.where(inside, tf.constant(policies.FILL, tf.uint8), image)


OPERATIONS = (
    _identity,
    _auto_contrast,
    _equalize,
    _invert,
    _rotate,
    _posterize,
    _solarize,
    _color,
    _contrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _cutout,
    _solarize_add,
)  # fmt: skip; in the order of policies.OPS
