"""Image files to uint8 pixels: a Python side that recognises odd files, a TensorFlow side that decodes, turns, crops and resizes.

TensorFlow decodes JPEG (also grey, CMYK and YCCK), PNG (also 16-bit, palette, alpha, which is dropped), GIF (first frame), WebP and
BMP, but knows nothing of EXIF orientation: `mend` reads it and the functions below take it.
"""

import functools
import io
import struct

import numpy as np

from efficientnet_jax.errors import UserError

INTERPOLATIONS = ('bicubic', 'bilinear', 'bicubic_antialias', 'bilinear_antialias', 'bicubic_tf1')
_JPEG = b'\xff\xd8\xff'
_MAGIC = {_JPEG: 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG', b'GIF8': 'GIF', b'RIFF': 'WebP', b'BM': 'BMP'}
_ORIENTATION_TAG = 0x0112
_HEADER = struct.Struct('>BH')


def mend(encoded, name='image'):
    """Image-file bytes -> (bytes that TensorFlow decodes, EXIF orientation 1..8); almost always the very same bytes.

    Formats that TensorFlow does not know or decodes wrongly (TIFF, BMP with a palette) are decoded with Pillow and rewritten as PNG.
    Raises UserError with `name` and what was seen when the bytes are empty or no image.
    """
    if encoded.startswith(_JPEG):
        return encoded, exif_orientation(encoded)
    palette_bmp = encoded.startswith(b'BM') and encoded[28:29] < b'\x18'  # bits per pixel below 24
    if encoded.startswith(tuple(_MAGIC)) and not palette_bmp:
        return encoded, 1
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
        if image.mode.startswith('I'):  # 16-bit grey, which convert('RGB') would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        out = io.BytesIO()
        image.convert('RGB').save(out, 'PNG', compress_level=1)
    except (OSError, SyntaxError) as e:  # Pillow's "cannot identify" is an OSError, its broken chunks are SyntaxErrors
        raise UserError(unreadable(encoded, name)) from e
    return out.getvalue(), 1


def exif_orientation(encoded):
    """Returns the EXIF orientation 1..8 of a JPEG file's bytes; 1 where there is none or it is nonsense."""
    position = 2
    while len(encoded) >= position + 4 and encoded[position] == 0xFF:
        marker, length = _HEADER.unpack_from(encoded, position + 1)
        if marker == 0xDA:  # start of scan: the headers are over
            break
        if marker == 0xE1 and encoded[position + 4 : position + 10] == b'Exif\x00\x00':
            return _tiff_orientation(encoded[position + 10 : position + 2 + length])
        position += 2 + length
    return 1


def _tiff_orientation(tiff):
    order = {b'II': '<', b'MM': '>'}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + 'I', tiff, 4)
    count = int.from_bytes(tiff[start : start + 2], 'little' if order == '<' else 'big')
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if len(tiff) < entry + 12:
            break
        tag, _, _, value = struct.unpack_from(order + 'HHIH', tiff, entry)
        if tag == _ORIENTATION_TAG:
            return value if 1 <= value <= 8 else 1
    return 1


def unreadable(encoded, name):
    """Returns the message for bytes that do not decode: what they are called and what was seen."""
    if not encoded:
        return f'{name} is not a readable image: it is empty (0 bytes).'
    kind = next((kind for magic, kind in _MAGIC.items() if encoded.startswith(magic)), None)
    seen = f'a truncated or damaged {kind} file' if kind else f'not an image that is known here, it begins with {encoded[:8]!r}'
    return f'{name} is not a readable image: {len(encoded):,} bytes, {seen}.'


def image_size(encoded, orientation=1):
    """Scalar string tensor -> int32 tensor [height, width] of the upright image. Reads only the header of a JPEG."""
    import tensorflow as tf

    size = tf.cond(
        _is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(tf.io.decode_image(encoded, channels=3, expand_animations=False))[:2],
    )
    return tf.where(orientation >= 5, size[::-1], size)


def decode_window(encoded, size, window, orientation=1):
    """Scalar string, its upright [height, width], window [y, x, height, width] of it -> uint8 [height, width, 3].

    Decodes no more of a JPEG than it must.
    """
    import tensorflow as tf

    def plain_jpeg():
        # The accurate DCT costs no more and gives the pixels that Pillow gives; TensorFlow's default differs by 1 on average, 7 at most.
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method='INTEGER_ACCURATE')

    def whole():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.image.crop_to_bounding_box(image, window[0], window[1], window[2], window[3])

    def jpeg():
        stored = _stored_window(size, window, orientation)
        return _upright(tf.io.decode_and_crop_jpeg(encoded, stored, channels=3, dct_method='INTEGER_ACCURATE'), orientation)

    is_jpeg = _is_jpeg(encoded)
    odd = functools.partial(tf.cond, is_jpeg, jpeg, whole)
    return tf.ensure_shape(tf.cond(is_jpeg & (orientation == 1), plain_jpeg, odd), [None, None, 3])


def _is_jpeg(encoded):
    import tensorflow as tf

    return tf.strings.substr(encoded, 0, len(_JPEG)) == _JPEG


def _flips(orientation):
    """EXIF orientation -> (transposed, then mirrored left-right, then mirrored upside-down), bool tensors: from stored to upright."""
    import tensorflow as tf

    return orientation >= 5, tf.reduce_any(orientation == [2, 3, 6, 7]), tf.reduce_any(orientation == [3, 4, 7, 8])


def _upright(image, orientation):
    import tensorflow as tf

    def turn():
        transposed, left_right, up_down = _flips(orientation)
        turned = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        turned = tf.cond(left_right, lambda: turned[:, ::-1], lambda: turned)
        return tf.cond(up_down, lambda: turned[::-1], lambda: turned)

    return tf.cond(orientation == 1, lambda: image, turn)


def _stored_window(size, window, orientation):
    """The window of the upright image -> the same window in the file's own rows and columns."""
    import tensorflow as tf

    transposed, left_right, up_down = _flips(orientation)
    y, x, height, width = tf.unstack(window)
    x = tf.where(left_right, size[1] - x - width, x)
    y = tf.where(up_down, size[0] - y - height, y)
    return tf.where(transposed, tf.stack([x, y, width, height]), tf.stack([y, x, height, width]))


def resize(image, resolution, interpolation):
    """[h, w, 3] uint8 tensor -> uint8 [resolution, resolution, 3], rounded.

    'bicubic' and 'bilinear' sample at pixel centres without low-pass, as tf.image.resize does. '*_antialias' low-pass when shrinking,
    as Pillow and timm do. 'bicubic_tf1' is tf.compat.v1.image.resize_bicubic, whose grid starts at the corner and whose cubic has
    a = -0.75: the published weights were trained with it.
    """
    import tensorflow as tf

    size = [resolution, resolution]
    batch = tf.cast(image, tf.float32)[None]  # the same numbers as from uint8, in half the time
    if interpolation == 'bicubic':
        out = tf.raw_ops.ResizeBicubic(images=batch, size=size, half_pixel_centers=True)
    elif interpolation == 'bicubic_tf1':
        out = tf.raw_ops.ResizeBicubic(images=batch, size=size)
    elif interpolation == 'bilinear':
        out = tf.raw_ops.ResizeBilinear(images=batch, size=size, half_pixel_centers=True)
    else:
        out = tf.image.resize(batch, size, method=interpolation.removesuffix('_antialias'), antialias=True)
    return tf.cast(tf.clip_by_value(out[0], 0, 255) + 0.5, tf.uint8)  # truncation after + 0.5 rounds


def check_interpolation(interpolation):
    """Raises UserError, listing the names, for an interpolation that does not exist."""
    if interpolation not in INTERPOLATIONS:
        raise UserError(f'interpolation={interpolation!r} must be one of {", ".join(INTERPOLATIONS)}.')
