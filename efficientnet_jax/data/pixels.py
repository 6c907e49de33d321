"""Pixels without TensorFlow: Pillow decodes and turns, NumPy resizes with the weights of TensorFlow's kernels.

tf.data calls `upright` for the formats that TensorFlow does not decode, or not as Pillow does. Where TensorFlow is not installed,
preprocess.py uses the whole module; the result is within 1 grey level of TensorFlow's (tests/data/test_pixels.py).
"""

from __future__ import annotations

import numpy as np

from efficientnet_jax.data import formats

_TABLE = 1024  # steps of a pixel that TensorFlow's bicubic kernels know (tensorflow/core/kernels/image/resize_bicubic_op.cc, kTableSize)


def upright(encoded: bytes) -> np.ndarray:
    """An image file's bytes -> uint8 [height, width, 3], turned by its orientation, alpha dropped. Raises what Pillow raises.

    The pixels are those of ImageOps.exif_transpose(image).convert('RGB'), but for 16-bit grey, which convert would cut at 255.
    """
    from PIL import Image

    turns = Image.Transpose
    by_orientation = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE, 6: turns.ROTATE_270,
        7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }  # fmt: skip
    image: Image.Image = formats.open_image(encoded)
    image.load()
    turn = by_orientation.get(formats.orientation_of(image))
    if image.mode.startswith('I'):
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    if image.mode != 'RGB':
        image = image.convert('RGB')
    return np.asarray(image if turn is None else image.transpose(turn))


def resize(pixels: np.ndarray, resolution: int, interpolation: str) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [resolution, resolution, 3], rounded; interpolation as in decode.resize."""
    if interpolation.endswith('_antialias'):
        from PIL import Image

        method = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}[interpolation.removesuffix('_antialias')]
        channels = [Image.fromarray(channel) for channel in pixels.astype(np.float32).transpose(2, 0, 1)]  # of uint8 it rounds twice
        result = np.stack([np.asarray(channel.resize((resolution, resolution), method)) for channel in channels], 2)
        return _rounded(result)
    weights = {'bicubic': _bicubic, 'bilinear': _bilinear, 'bicubic_tf1': _bicubic_tf1}[interpolation]
    rows = _combine(pixels, *weights(pixels.shape[0], resolution))  # [R, w, 3]
    result = _combine(rows.transpose(1, 0, 2), *weights(pixels.shape[1], resolution)).transpose(1, 0, 2)
    return _rounded(result)


def _rounded(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _combine(pixels: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[n, m, 3], and for each of R outputs the index and weight [R, k] of what it is made of -> float32 [R, m, 3]."""
    return sum(weight[:, k, None, None] * pixels[index[:, k]].astype(np.float32) for k in range(index.shape[1]))


def _bicubic(size: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, a = -0.5; taps outside the image have no weight, and the others are scaled to sum to 1."""
    index, offset = _taps((np.arange(resolution, dtype=np.float32) + np.float32(0.5)) * _scale(size, resolution) - np.float32(0.5))
    weight = np.where((index >= 0) & (index < size), _cubic(offset, -0.5), np.float32(0))
    return np.clip(index, 0, size - 1), weight / weight.sum(1, keepdims=True)


def _bicubic_tf1(size: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid from the corner, a = -0.75; taps outside the image repeat its border."""
    index, offset = _taps(np.arange(resolution, dtype=np.float32) * _scale(size, resolution))
    return np.clip(index, 0, size - 1), _cubic(offset, -0.75)


def _bilinear(size: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    place = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) * _scale(size, resolution) - np.float32(0.5)
    low = np.floor(place)
    index = np.stack([np.maximum(low, 0), np.minimum(np.ceil(place), size - 1)], 1).astype(np.int64)
    return index, np.stack([1 - (place - low), place - low], 1).astype(np.float32)


def _scale(size: int, resolution: int) -> np.float32:
    return np.float32(size) / np.float32(resolution)


def _taps(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 places [R] -> the four pixels around each [R, 4] and how far it is beyond the second, in steps of the table [R]."""
    low = np.floor(place)
    return low.astype(np.int64)[:, None] + np.arange(-1, 3), np.rint((place - low) * _TABLE)


def _cubic(offset: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic (IEEE ASSP 29(6), 1981) at the four taps: float32 [R, 4]."""
    x = (offset / _TABLE)[:, None] + np.array([1, 0, -1, -2])
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far).astype(np.float32)
