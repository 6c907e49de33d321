"""From an image file to what the network takes; one frozen record that travels with the weights."""

import dataclasses
import importlib.util
from typing import Any

import numpy as np

from efficientnet_jax.data import decode, formats, pixels
from efficientnet_jax.errors import UserError

# Per channel, in units of the 0..255 pixel values. Sources: tensorflow/tpu efficientnet_builder.py (MEAN_RGB, STDDEV_RGB), the AdvProp
# branch of main.py (x * 2 / 255 - 1), lite/efficientnet_lite_builder.py (127, 128).
IMAGENET = {'mean': (0.485 * 255, 0.456 * 255, 0.406 * 255), 'std': (0.229 * 255, 0.224 * 255, 0.225 * 255)}
INCEPTION = {'mean': (127.5, 127.5, 127.5), 'std': (127.5, 127.5, 127.5)}
LITE = {'mean': (127.0, 127.0, 127.0), 'std': (128.0, 128.0, 128.0)}
NORMALISATIONS = {'imagenet': IMAGENET, 'inception': INCEPTION, 'lite': LITE}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Crop, resize and normalise, as at evaluation.

    resolution: side of the square result, pixels.
    crop: what part of the image is used. None: all of it, squeezed to a square. An int p: the centre square of
      min(height, width) * resolution / (resolution + p) pixels; 32 is the official evaluation crop at every size (tensorflow/tpu
      efficientnet/preprocessing.py, CROP_PADDING). A float f, 0 < f <= 1: the centre square of min(height, width) * f (timm's crop_pct).
    interpolation: see decode.resize.
    mean, std: three numbers each, in pixel values 0..255.
    """

    resolution: int
    crop: int | float | None = 32
    interpolation: str = 'bicubic'
    mean: tuple[float, ...] = IMAGENET['mean']
    std: tuple[float, ...] = IMAGENET['std']

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise UserError(f'resolution={self.resolution} must be at least 1 pixel.')
        is_padding = type(self.crop) is int and self.crop >= 0
        is_fraction = isinstance(self.crop, float) and 0 < self.crop <= 1
        if self.crop is not None and not is_padding and not is_fraction:
            raise UserError(f'crop={self.crop!r} must be None, an int (pixels of padding, 32) or a float in (0, 1] (fraction, 0.875).')
        decode.check_interpolation(self.interpolation)
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if len(values) != 3 or (name == 'std' and min(values) <= 0):
                raise UserError(
                    f'{name}={values!r} must be three numbers in pixel values 0..255' + (', above 0.' if name == 'std' else '.')
                )

    def __call__(self, image: bytes | np.ndarray, name: str = 'image', max_pixels: int = formats.MAX_PIXELS) -> np.ndarray:
        """Image-file bytes or uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] array -> float32 [resolution, resolution, 3], normalised.

        max_pixels: a file with more is refused before it is decoded. Uses TensorFlow where it is installed, else Pillow and NumPy.
        Raises UserError that contains `name` for empty, truncated, unreadable or larger input.
        """
        return self.normalise(self.to_uint8(image, name, max_pixels))

    def to_uint8(self, image: bytes | np.ndarray, name: str = 'image', max_pixels: int = formats.MAX_PIXELS) -> np.ndarray:
        """As __call__, without the normalisation: uint8 [resolution, resolution, 3]."""
        light = importlib.util.find_spec('tensorflow') is None
        if isinstance(image, (bytes, bytearray, memoryview)):
            encoded = bytes(image)
            header = formats.read_header(encoded, name, max_pixels)
            try:
                return self._cut(pixels.upright(encoded)) if light else self._in_tensorflow(encoded, header)
            except Exception as error:  # Pillow and TensorFlow raise many kinds for what is damaged
                raise UserError(formats.unreadable(encoded, name, error)) from error
        array = _rgb(np.asarray(image), name)
        if light:
            return self._cut(array)
        import tensorflow as tf

        y, x, height, width = (int(v) for v in self.window(tf.constant(array.shape[:2])))
        return decode.resize(tf.constant(array[y : y + height, x : x + width]), self.resolution, self.interpolation).numpy()

    def _in_tensorflow(self, encoded: bytes, header: formats.Header) -> np.ndarray:
        import tensorflow as tf

        return self.graph(tf.constant(encoded), tf.constant(header, tf.int32)).numpy()

    def _cut(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [resolution, resolution, 3] as `graph` does, in NumPy."""
        if self.crop is not None:
            size = np.array(image.shape[:2])
            side = max(1, int(np.float32(self._fraction()) * np.float32(size.min())))
            y, x = (size - side + 1) // 2
            image = image[y : y + side, x : x + side]
        return pixels.resize(image, self.resolution, self.interpolation)

    def normalise(self, x: Any) -> Any:
        """[..., 3] uint8 or float, NumPy or jax -> float32, (x - mean) / std. Pure arithmetic: the jitted step calls it on the device."""
        shape = (1,) * (x.ndim - 1) + (3,)
        mean = np.asarray(self.mean, np.float32).reshape(shape)
        std = np.asarray(self.std, np.float32).reshape(shape)
        return (x.astype(np.float32) - mean) / std

    def graph(self, encoded: Any, header: Any) -> Any:
        """Scalar string tensor and int32 [4] tensor (formats.Header) -> uint8 tensor [resolution, resolution, 3]; for tf.data."""
        return decode.image(encoded, header, self.window, self.resolution, self.interpolation)

    def window(self, size: Any) -> Any:
        """int32 tensor [height, width] -> int32 tensor [y, x, height, width], the part of the image that is used."""
        import tensorflow as tf

        if self.crop is None:
            return tf.concat([[0, 0], size], 0)
        side = tf.maximum(1, tf.cast(self._fraction() * tf.cast(tf.reduce_min(size), tf.float32), tf.int32))
        return tf.concat([(size - side + 1) // 2, [side, side]], 0)

    def _fraction(self) -> float:
        """Side of the centre square as a part of the shorter side of the image."""
        assert self.crop is not None
        return self.crop if isinstance(self.crop, float) else self.resolution / (self.resolution + self.crop)


def _rgb(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise UserError(
            f'{name}: an array must be uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]; this is {pixels.dtype} {list(pixels.shape)}.'
        )
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
