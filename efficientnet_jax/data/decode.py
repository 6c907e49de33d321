"""Image files to uint8 pixels: a Python side that recognises and mends odd files, a tf.data side that decodes, crops and resizes."""

import io
import struct

import numpy as np

INTERPOLATIONS = ('bicubic', 'bilinear', 'bicubic_antialias', 'bilinear_antialias', 'bicubic_tf1')
_NATIVE = (b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF8', b'BM')  # JPEG, PNG, GIF, BMP: what tf.io.decode_image takes
_ORIENTATION_TAG = 0x0112


def mend(encoded, name='image'):
    """Returns image-file bytes that TensorFlow decodes as a person would see the picture; almost always the very same bytes.

    EXIF-rotated JPEGs, 16-bit PNGs and formats that TensorFlow does not know (WebP, TIFF) are decoded with Pillow and rewritten as BMP.
    Raises ValueError naming `name` and what was seen when the bytes are empty or no image.
    """
    if encoded.startswith(_NATIVE[0]) and exif_orientation(encoded) == 1:
        return encoded
    if encoded.startswith(_NATIVE[1:]) and not (encoded.startswith(_NATIVE[1]) and encoded[24:25] == b'\x10'):
        return encoded
    out = io.BytesIO()
    _pillow_rgb(encoded, name).save(out, 'BMP')
    return out.getvalue()


def exif_orientation(encoded):
    """Returns the EXIF orientation 1..8 of a JPEG file's bytes; 1 where there is none or it is nonsense."""
    position = 2
    while encoded[position : position + 1] == b'\xff' and len(encoded) >= position + 4:
        marker, length = struct.unpack('>BH', encoded[position + 1 : position + 4])
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
    (start,) = struct.unpack(order + 'I', tiff[4:8])
    count = int.from_bytes(tiff[start : start + 2], 'little' if order == '<' else 'big')
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if len(tiff) < entry + 12:
            break
        tag, _, _, value = struct.unpack(order + 'HHIH', tiff[entry : entry + 10])
        if tag == _ORIENTATION_TAG:
            return value if 1 <= value <= 8 else 1
    return 1


def _pillow_rgb(encoded, name):
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
        if image.mode.startswith('I'):  # 16-bit grey, which convert('RGB') would clip at 255
            return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert('RGB')
        return image.convert('RGB')
    except (UnidentifiedImageError, OSError, SyntaxError) as e:
        raise ValueError(f'{name} is not a readable image: {describe(encoded)}. {e}') from e


def describe(encoded):
    """Returns what a person wants to know about bytes that do not decode."""
    if not encoded:
        return '0 bytes'
    kinds = dict(zip(_NATIVE, ('JPEG', 'PNG', 'GIF', 'BMP'), strict=True))
    kind = next((kind for magic, kind in kinds.items() if encoded.startswith(magic)), None)
    return f'{len(encoded):,} bytes ' + (f'that begin like a {kind} file' if kind else f'beginning {encoded[:8]!r}')


def is_jpeg(encoded):
    """Scalar string tensor -> bool tensor."""
    import tensorflow as tf

    return tf.strings.substr(encoded, 0, 3) == _NATIVE[0]


def image_size(encoded):
    """Scalar string tensor -> int32 [2], height and width. Reads only the header of a JPEG."""
    import tensorflow as tf

    return tf.cond(
        is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(tf.io.decode_image(encoded, channels=3, expand_animations=False))[:2],
    )


def decode_window(encoded, window):
    """Scalar string tensor and int32 [y, x, height, width] -> uint8 [height, width, 3], decoding no more of a JPEG than it must."""
    import tensorflow as tf

    def whole():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.image.crop_to_bounding_box(image, window[0], window[1], window[2], window[3])

    image = tf.cond(is_jpeg(encoded), lambda: tf.io.decode_and_crop_jpeg(encoded, window, channels=3), whole)
    return tf.ensure_shape(image, [None, None, 3])


def resize(image, resolution, interpolation):
    """[h, w, 3] uint8 tensor -> uint8 [resolution, resolution, 3], rounded.

    'bicubic' and 'bilinear' sample at pixel centres without low-pass, as tf.image.resize does; '*_antialias' low-pass when shrinking, as Pillow
    and timm do; 'bicubic_tf1' is tf.compat.v1.image.resize_bicubic, corner-aligned grid and all, with which the published weights were trained.
    """
    import tensorflow as tf

    size = [resolution, resolution]
    batch = image[None]
    if interpolation == 'bicubic':
        out = tf.raw_ops.ResizeBicubic(images=batch, size=size, half_pixel_centers=True)
    elif interpolation == 'bicubic_tf1':
        out = tf.raw_ops.ResizeBicubic(images=batch, size=size)
    elif interpolation == 'bilinear':
        out = tf.raw_ops.ResizeBilinear(images=batch, size=size, half_pixel_centers=True)
    else:
        out = tf.image.resize(batch, size, method=interpolation.removesuffix('_antialias'), antialias=True)
    return tf.saturate_cast(tf.round(out[0]), tf.uint8)


def check_interpolation(interpolation):
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f'interpolation={interpolation!r} must be one of {", ".join(INTERPOLATIONS)}.')
