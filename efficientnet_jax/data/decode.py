"""Image files to uint8 pixels inside tf.data: decode once, turn, crop and resize, by the route that the file's Header says.

TensorFlow decodes JPEG (also grey, CMYK and YCCK), of which it can decode a part, and PNG (also 16-bit, palette, alpha, which is dropped).
All else Pillow decodes, called from the graph: GIF, BMP, WebP, TIFF, AVIF, and PNG that may be turned.
"""

import numpy as np

from efficientnet_jax.data import formats, pixels
from efficientnet_jax.errors import UserError

INTERPOLATIONS = ('bicubic', 'bilinear', 'bicubic_antialias', 'bilinear_antialias', 'bicubic_tf1')


def image(encoded, header, window_of, resolution, interpolation):
    """Part of an image file, resized: uint8 tensor [resolution, resolution, 3].

    encoded: scalar string. header: int32 [4], formats.Header. window_of: function of the upright image's int32 tensor [height, width]
    -> int32 [y, x, height, width] in it. Raises InvalidArgumentError, or UnknownError from Pillow, for what does not decode.
    """
    import tensorflow as tf

    route, height, width, orientation = tf.unstack(header, num=4)

    def plain():
        return _part_of_jpeg(encoded, window_of(tf.stack([height, width])))

    def odd():
        branches = [  # in the order of the routes; _pillow's result has no static shape
            plain,
            lambda: _turned_jpeg(encoded, tf.stack([height, width]), window_of, orientation),
            lambda: _part(tf.io.decode_png(encoded, channels=3), window_of),
            lambda: _part(tf.ensure_shape(tf.numpy_function(_pillow, [encoded], tf.uint8), [None, None, 3]), window_of),
        ]
        return resize(tf.switch_case(route, branches), resolution, interpolation, maybe_large=True)

    return tf.ensure_shape(
        tf.cond(route == formats.PLAIN_JPEG, lambda: resize(plain(), resolution, interpolation), odd), [resolution, resolution, 3]
    )


def _part_of_jpeg(encoded, window):
    import tensorflow as tf

    # The accurate DCT costs no more and gives the pixels that Pillow gives; TensorFlow's default differs by 1 on average, 7 at most.
    return tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method='INTEGER_ACCURATE')


def _turned_jpeg(encoded, stored_size, window_of, orientation):
    import tensorflow as tf

    size = tf.where(orientation >= 5, stored_size[::-1], stored_size)
    part = _part_of_jpeg(encoded, _stored_window(size, window_of(size), orientation))
    return tf.cond(orientation == 1, lambda: part, lambda: _upright(part, orientation))


def _part(image, window_of):
    import tensorflow as tf

    window = window_of(tf.shape(image)[:2])
    return tf.image.crop_to_bounding_box(image, window[0], window[1], window[2], window[3])


def _pillow(encoded):
    try:
        return pixels.upright(np.asarray(encoded, object).item())  # bytes in a graph, an array of one object in eager code
    except Exception as error:  # Pillow's readers raise every kind there is; TensorFlow knows what a ValueError is
        raise UserError(f'{type(error).__name__}: {error}') from error


def _flips(orientation):
    """EXIF orientation -> (transposed, then mirrored left-right, then mirrored upside-down), bool tensors: from stored to upright."""
    import tensorflow as tf

    return orientation >= 5, tf.reduce_any(orientation == [2, 3, 6, 7]), tf.reduce_any(orientation == [3, 4, 7, 8])


def _upright(image, orientation):
    import tensorflow as tf

    transposed, left_right, up_down = _flips(orientation)
    turned = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    turned = tf.cond(left_right, lambda: turned[:, ::-1], lambda: turned)
    return tf.cond(up_down, lambda: turned[::-1], lambda: turned)


def _stored_window(size, window, orientation):
    """The window of the upright image -> the same window in the file's own rows and columns."""
    import tensorflow as tf

    transposed, left_right, up_down = _flips(orientation)
    y, x, height, width = tf.unstack(window)
    x = tf.where(left_right, size[1] - x - width, x)
    y = tf.where(up_down, size[0] - y - height, y)
    return tf.where(transposed, tf.stack([x, y, width, height]), tf.stack([y, x, height, width]))


def resize(image, resolution, interpolation, maybe_large=False):
    """[h, w, 3] uint8 tensor -> uint8 [resolution, resolution, 3], rounded.

    'bicubic' and 'bilinear' sample at pixel centres without low-pass, as tf.image.resize does. '*_antialias' low-pass when shrinking,
    as Pillow and timm do. 'bicubic_tf1' is tf.compat.v1.image.resize_bicubic, whose grid starts at the corner and whose cubic has
    a = -0.75: the published weights were trained with it.
    maybe_large: beyond formats.PLAIN_PIXELS no float32 copy of the image is made; the numbers are the same.
    """
    import tensorflow as tf

    def from_float():
        return _resize(tf.cast(image, tf.float32)[None], resolution, interpolation)  # the same numbers as from uint8, in half the time

    if maybe_large:
        large = tf.size(image) > 3 * formats.PLAIN_PIXELS
        out = tf.cond(large, lambda: _resize(image[None], resolution, interpolation), from_float)
    else:
        out = from_float()
    return tf.cast(tf.clip_by_value(out, 0, 255) + 0.5, tf.uint8)  # truncation after + 0.5 rounds


def _resize(batch, resolution, interpolation):
    """[1, h, w, 3] uint8 or float32 -> float32 [resolution, resolution, 3]."""
    import tensorflow as tf

    size = [resolution, resolution]
    if interpolation == 'bicubic':
        out = tf.raw_ops.ResizeBicubic(images=batch, size=size, half_pixel_centers=True)
    elif interpolation == 'bicubic_tf1':
        out = tf.raw_ops.ResizeBicubic(images=batch, size=size)
    elif interpolation == 'bilinear':
        out = tf.raw_ops.ResizeBilinear(images=batch, size=size, half_pixel_centers=True)
    else:
        out = tf.image.resize(batch, size, method=interpolation.removesuffix('_antialias'), antialias=True)
    return out[0]


def check_interpolation(interpolation):
    """Raises UserError, listing the names, for an interpolation that does not exist."""
    if interpolation not in INTERPOLATIONS:
        raise UserError(f'interpolation={interpolation!r} must be one of {", ".join(INTERPOLATIONS)}.')
