import numpy as np
import pytest
from PIL import Image

from efficientnet_jax.data import decode, formats
from efficientnet_jax.data.preprocess import IMAGENET, INCEPTION, LITE, Preprocess
from tests.data.image_files import encode, photo, turned

RGB = photo()
GREY = np.asarray(Image.fromarray(RGB).convert('L'))
RGBA = np.dstack([RGB, np.full(RGB.shape[:2], 100, np.uint8)])
WHOLE = Preprocess(resolution=16, crop=None)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_window_of_a_turned_file_is_that_of_the_upright_image(kind, orientation):
    import tensorflow as tf

    options = {'JPEG': {'quality': 100, 'subsampling': 0}, 'PNG': {}, 'WEBP': {'lossless': True}}[kind]
    file, upright = turned(RGB, kind, orientation, **options)
    y, x, height, width = window = [3, 7, 20, 20]
    seen = []

    def window_of(size):
        seen.append(size.numpy().tolist())
        return tf.constant(window)

    header = tf.constant(formats.read_header(file), tf.int32)
    part = decode.image(tf.constant(file), header, window_of, 20, 'bilinear').numpy()
    assert seen == [list(upright.shape[:2])]
    np.testing.assert_array_equal(part, upright[y : y + height, x : x + width])


def test_a_file_is_decoded_once(monkeypatch):
    """As data sets of PNG and WebP would pay for it in every epoch."""
    import tensorflow as tf

    calls = []
    for module, name in ((tf.io, 'decode_png'), (tf.io, 'decode_image'), (decode, '_pillow')):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=original, _n=name, **k: calls.append(_n) or _f(*a, **k))
    WHOLE.to_uint8(encode(RGB, 'PNG'))
    WHOLE.to_uint8(encode(RGB, 'WEBP'))
    assert calls == ['decode_png', '_pillow']


@pytest.mark.parametrize('interpolation', decode.INTERPOLATIONS)
def test_a_large_image_is_resized_to_the_same_numbers_without_a_float_copy(interpolation, monkeypatch):
    expected = Preprocess(16, crop=None, interpolation=interpolation).to_uint8(encode(RGB, 'PNG'))
    monkeypatch.setattr(formats, 'PLAIN_PIXELS', 10)
    for kind in ('PNG', 'BMP'):
        np.testing.assert_array_equal(Preprocess(16, crop=None, interpolation=interpolation).to_uint8(encode(RGB, kind)), expected)


@pytest.mark.parametrize(
    ('encoded', 'message'),
    [
        (b'', r'cat\.jpg is not a readable image: it is empty'),
        (
            b'<html>404</html>',
            r"cat\.jpg is not a readable image: 16 bytes, not an image that is known here, it begins with b'<html>40'\. Known are JPEG, ",
        ),
        (encode(RGB, 'JPEG')[:300], r'cat\.jpg is not a readable image: 300 bytes, a truncated or damaged JPEG file'),
        (encode(RGB, 'PNG')[:300], r'cat\.jpg is not a readable image: 300 bytes, a truncated or damaged PNG file'),
        (encode(RGB, 'TIFF')[:300], r'cat\.jpg is not a readable image: 300 bytes'),
    ],
)
def test_unreadable_input_is_named_and_described(encoded, message):
    with pytest.raises(ValueError, match=message):
        WHOLE(encoded, 'cat.jpg')


@pytest.mark.parametrize('interpolation', ['bicubic_antialias', 'bilinear_antialias'])
def test_antialiased_resize_is_pillows(interpolation):
    pixels = photo(90, 120)
    filters = {'bicubic_antialias': Image.BICUBIC, 'bilinear_antialias': Image.BILINEAR}
    ours = Preprocess(32, crop=None, interpolation=interpolation).to_uint8(pixels)
    pillow = np.asarray(Image.fromarray(pixels).resize((32, 32), filters[interpolation]))
    np.testing.assert_allclose(ours.astype(int), pillow.astype(int), atol=1)


@pytest.mark.parametrize(
    ('interpolation', 'reference'),
    [
        ('bicubic', lambda tf, x: tf.image.resize(x, [32, 32], 'bicubic')),
        ('bilinear', lambda tf, x: tf.image.resize(x, [32, 32], 'bilinear')),
        ('bicubic_tf1', lambda tf, x: tf.compat.v1.image.resize_bicubic(x[None], [32, 32])[0]),
    ],
)
def test_resize_is_tensorflows(interpolation, reference):
    import tensorflow as tf

    pixels = photo(90, 120)
    expected = np.clip(np.round(reference(tf, pixels.astype(np.float32)).numpy()), 0, 255)
    ours = Preprocess(32, crop=None, interpolation=interpolation).to_uint8(pixels)
    np.testing.assert_allclose(ours.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize(
    ('crop', 'resolution', 'height', 'width', 'window'),
    [
        # int(224 / 256 * 375) = 328; offsets (375 - 328 + 1) // 2 and (500 - 328 + 1) // 2: tensorflow/tpu preprocessing.py
        (32, 224, 375, 500, [24, 86, 328, 328]),
        (32, 380, 375, 500, [15, 78, 345, 345]),
        (0.875, 224, 375, 500, [24, 86, 328, 328]),
        (1.0, 224, 375, 500, [0, 63, 375, 375]),
        (None, 224, 375, 500, [0, 0, 375, 500]),
        (32, 224, 1, 1, [0, 0, 1, 1]),
    ],
)
def test_evaluation_window(crop, resolution, height, width, window):
    import tensorflow as tf

    assert Preprocess(resolution, crop=crop).window(tf.constant([height, width])).numpy().tolist() == window


def test_file_and_array_give_the_same_and_are_normalised():
    pixels = photo(70, 90)
    preprocess = Preprocess(32, crop=0.9, **INCEPTION)
    from_file, from_array = preprocess(encode(pixels, 'PNG')), preprocess(pixels)
    np.testing.assert_array_equal(from_file, from_array)
    assert from_file.shape == (32, 32, 3) and from_file.dtype == np.float32
    np.testing.assert_allclose(from_file, preprocess.to_uint8(pixels) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize('pixels', [GREY, GREY[..., None], RGBA])
def test_arrays_of_other_channel_counts(pixels):
    assert WHOLE(pixels).shape == (16, 16, 3)


@pytest.mark.parametrize(('constants', 'low', 'high'), [(IMAGENET, -2.118, 2.640), (INCEPTION, -1, 1), (LITE, -127 / 128, 1)])
def test_normalise_on_numpy_and_jax(constants, low, high):
    import jax.numpy as jnp

    preprocess = Preprocess(8, **constants)
    black_and_white = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    x = preprocess.normalise(black_and_white)
    assert x.dtype == np.float32
    assert abs(x.min() - low) < 1e-3 and abs(x.max() - high) < 1e-3
    on_device = preprocess.normalise(jnp.asarray(black_and_white))
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(x, on_device, rtol=1e-6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'resolution': 0}, 'resolution=0 must be at least 1 pixel'),
        ({'crop': -1}, r'crop=-1 must be None, an int \(pixels of padding, 32\) or a float in \(0, 1\]'),
        ({'crop': 1.5}, 'crop=1.5 must be None'),
        ({'crop': True}, 'crop=True must be None'),
        ({'interpolation': 'lanczos'}, "interpolation='lanczos' must be one of bicubic, bilinear"),
        ({'mean': (1, 2)}, r'mean=\(1, 2\) must be three numbers'),
        ({'std': (0, 1, 1)}, r'std=\(0, 1, 1\) must be three numbers in pixel values 0..255, above 0'),
    ],
)
def test_preprocess_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**{'resolution': 8, **arguments})


@pytest.mark.parametrize(
    'pixels', [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_preprocess_refuses_arrays(pixels):
    with pytest.raises(ValueError, match='photo: an array must be uint8'):
        WHOLE(pixels, 'photo')
