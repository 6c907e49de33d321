"""What every accepted file looks like is what Pillow makes of it, with TensorFlow and without."""

import subprocess
import sys

import numpy as np
import pytest

from efficientnet_jax.data import decode, pixels
from efficientnet_jax.data.preprocess import Preprocess
from tests.data.image_files import WITHOUT_EXIF, WRITTEN, encode, modes, photo, pillow_rgb, turned

SIZE = (24, 32)  # of the small pictures; the network's resolution of a square crop of the same side leaves pixels as they are


def in_tensorflow(encoded, side):
    """The top left square of a file, not resized, through the graph of training and evaluation."""
    import tensorflow as tf

    from efficientnet_jax.data import formats

    header = tf.constant(formats.read_header(encoded), tf.int32)
    return decode.image(tf.constant(encoded), header, lambda _: tf.constant([0, 0, side, side]), side, 'bilinear').numpy()


def cases(kinds, orientations, seeds):
    for kind in kinds:
        for mode, options in WRITTEN[kind]:
            for orientation in (1,) if kind in WITHOUT_EXIF else orientations:
                for seed in seeds:
                    yield kind, mode, options, orientation, seed


def compare(kind, mode, options, orientation, seed):
    """Asserts that a file of this form is Pillow's picture, by both routes."""
    image = modes(photo(*SIZE, seed=seed))[mode]
    encoded, expected = (encode(image, kind, **options),) * 2 if kind in WITHOUT_EXIF else turned(image, kind, orientation, **options)
    if kind in WITHOUT_EXIF:
        expected = pillow_rgb(encoded)
    assert expected.shape[:2] == (SIZE if orientation < 5 else SIZE[::-1])
    np.testing.assert_array_equal(pixels.upright(encoded), expected)
    side = min(SIZE)
    difference = np.abs(in_tensorflow(encoded, side).astype(int) - expected[:side, :side])
    assert difference.mean() < 2 if kind == 'JPEG' else difference.max() == 0, (kind, mode, options, orientation, seed, difference.mean())


@pytest.mark.parametrize('kind', WRITTEN)
def test_every_format_orientation_and_colour_mode_is_pillows_picture(kind):
    for case in cases([kind], (1, 3, 6), (0,)):
        compare(*case)


@pytest.mark.slow
def test_a_thousand_files_of_all_formats_orientations_and_colour_modes():
    every = list(cases(WRITTEN, range(1, 9), range(4)))
    assert len(every) >= 1000
    for case in every:
        compare(*case)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF', 'AVIF'])
def test_of_an_animation_the_first_frame(kind):
    frames = [modes(photo(*SIZE, seed=seed))['RGBA' if kind == 'WEBP' else 'RGB'] for seed in range(3)]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels.upright(encoded), pillow_rgb(encoded))
    np.testing.assert_array_equal(in_tensorflow(encoded, 24), pillow_rgb(encoded)[:24, :24])


@pytest.mark.parametrize('crop', [None, 32, 0.875])
@pytest.mark.parametrize('interpolation', decode.INTERPOLATIONS)
@pytest.mark.parametrize('size', [(90, 120), (20, 31)])
def test_numpy_resizes_as_tensorflow(interpolation, crop, size):
    preprocess = Preprocess(48, crop, interpolation)
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        difference = np.abs(preprocess.to_uint8(noise).astype(int) - preprocess._cut(noise))
        assert difference.max() <= 1 and difference.mean() < 0.01


def test_the_evaluation_window_is_the_same_without_tensorflow(monkeypatch):
    import tensorflow as tf

    windows = []
    monkeypatch.setattr(pixels, 'resize', lambda image, *_: windows.append(image[0, 0].tolist() + list(image.shape[:2])))
    for crop in (None, 0, 32, 0.875, 1.0, 0.123):
        preprocess = Preprocess(224, crop)
        for height, width in ((1, 1), (375, 500), (31, 900), (224, 256), (257, 255)):
            image = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing='ij'), 2)
            preprocess._cut(image)
            assert windows.pop() == preprocess.window(tf.constant([height, width])).numpy().tolist()


WITHOUT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'tensorflow' else find(name, *rest)
sys.modules['tensorflow'] = None
import numpy as np
from efficientnet_jax.data.preprocess import Preprocess
files = [open(path, 'rb').read() for path in sys.argv[2:]]
np.save(sys.argv[1], [Preprocess(16, 0.9, 'bicubic').to_uint8(file) for file in files])
try:
    Preprocess(16).to_uint8(files[0][:200], 'cut.jpg')
except ValueError as error:
    assert 'cut.jpg is not a readable image: 200 bytes' in str(error), error
else:
    raise AssertionError('a cut file was read')
"""


def test_preprocess_reads_files_without_tensorflow(tmp_path):
    files = []
    for i, kind in enumerate(('JPEG', 'PNG', 'WEBP', 'TIFF')):
        files.append(tmp_path / f'{i}.{kind}')
        files[-1].write_bytes(encode(photo(seed=i), kind))
    done = subprocess.run([sys.executable, '-c', WITHOUT, str(tmp_path / 'out.npy'), *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for found, file in zip(np.load(tmp_path / 'out.npy'), files, strict=True):
        difference = np.abs(found.astype(int) - Preprocess(16, 0.9, 'bicubic').to_uint8(file.read_bytes()))
        assert difference.mean() < 2 if file.suffix == '.JPEG' else difference.max() <= 1
