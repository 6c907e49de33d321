import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from efficientnet_jax.data.augment import host, policies
from tests.data import reference_ops
from tests.data.image_files import photo

LEVELS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 28)
IMAGES = {
    'photo': photo(48, 64, seed=3),
    'dark': photo(48, 64, seed=4) // 4 + 30,
    'noise': np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8),
    'flat': np.full((48, 64, 3), 77, np.uint8),
    'two values': np.where(np.arange(48 * 64 * 3).reshape(48, 64, 3) % 5 < 2, 10, 200).astype(np.uint8),
}


def run(image, op, value, centre=(0.3, 0.6)):
    import tensorflow as tf

    ops = np.array([[policies.NUMBER[op], value, *centre]], np.float32)
    return host.apply(tf.constant(image), tf.constant(ops)).numpy()


def assert_close(ours, expected, op):
    """Equal, but for pixels whose source lies on the edge between two, of which float32 may choose the other."""
    assert ours.dtype == expected.dtype == np.uint8
    wrong = np.mean((ours != expected).any(-1))
    assert wrong <= (0.002 if op == 'Rotate' else 0), f'{wrong:.4%} of pixels differ'


@pytest.mark.parametrize('image', IMAGES)
@pytest.mark.parametrize('op', policies.OPS)
def test_operation_at_all_levels(op, image):
    constants = {'cutout': 20, 'translate': 30}
    arguments = {policies.argument(op, level, constants) for level in LEVELS}
    if policies.NUMBER[op] in policies.SIGNED:
        arguments |= {-argument for argument in arguments}
    for value in sorted(arguments):
        for centre in ((0.3, 0.6), (0.0, 0.999)) if op == 'Cutout' else ((0, 0),):
            expected = reference_ops.OPERATIONS[op](IMAGES[image], np.float32(value), centre)
            assert_close(run(IMAGES[image], op, value, centre), expected, op)


def pillow_affine(image, a, b, c, d, e, f):
    # Pillow maps pixel centres, (x + 0.5, y + 0.5), and cuts off; the reference maps (x, y) and rounds.
    data = (a, b, c + 0.5 - (a + b) / 2 + 2**-10, d, e, f + 0.5 - (d + e) / 2 + 2**-10)
    return image.transform(image.size, Image.AFFINE, data, Image.NEAREST, fillcolor=(128, 128, 128))


@pytest.mark.parametrize(
    ('op', 'value', 'pillow', 'tolerance'),
    [
        ('AutoContrast', 0, lambda x, v: ImageOps.autocontrast(x), 1),
        ('Equalize', 0, lambda x, v: ImageOps.equalize(x), 0),
        ('Invert', 0, lambda x, v: ImageOps.invert(x), 0),
        ('Posterize', 3, lambda x, v: ImageOps.posterize(x, v), 0),
        ('Solarize', 100, lambda x, v: ImageOps.solarize(x, v), 0),
        ('Color', 0.1, lambda x, v: ImageEnhance.Color(x).enhance(v), 1),
        ('Color', 1.9, lambda x, v: ImageEnhance.Color(x).enhance(v), 1),
        ('Brightness', 0.46, lambda x, v: ImageEnhance.Brightness(x).enhance(v), 1),
        ('Brightness', 1.9, lambda x, v: ImageEnhance.Brightness(x).enhance(v), 1),
        ('Sharpness', 0.1, lambda x, v: ImageEnhance.Sharpness(x).enhance(v), 1),  # Pillow rounds the smooth image, the reference cuts off
        ('Sharpness', 1.9, lambda x, v: ImageEnhance.Sharpness(x).enhance(v), 1),
        ('ShearX', 0.3, lambda x, v: pillow_affine(x, 1, v, 0, 0, 1, 0), 0),
        ('ShearY', -0.27, lambda x, v: pillow_affine(x, 1, 0, 0, v, 1, 0), 0),
        ('TranslateX', 25, lambda x, v: pillow_affine(x, 1, 0, v, 0, 1, 0), 0),
        ('TranslateY', -8, lambda x, v: pillow_affine(x, 1, 0, 0, 0, 1, v), 0),
    ],
)
def test_operation_is_pillows(op, value, pillow, tolerance):
    for name in ('photo', 'dark', 'noise'):
        expected = np.asarray(pillow(Image.fromarray(IMAGES[name]), value))
        np.testing.assert_allclose(run(IMAGES[name], op, value).astype(int), expected.astype(int), atol=tolerance, err_msg=name)


def test_rotation_is_pillows_but_for_ties():
    expected = Image.fromarray(IMAGES['photo']).rotate(24, Image.NEAREST, fillcolor=(128, 128, 128))
    assert np.mean((run(IMAGES['photo'], 'Rotate', 24) != np.asarray(expected)).any(-1)) < 0.003


def test_published_oddities():
    image = np.zeros((224, 224, 3), np.uint8)
    assert (run(image, 'TranslateY', policies.argument('TranslateY', 9, policies.CONSTANTS['autoaugment'])) == policies.FILL).all()
    assert (run(image, 'Contrast', 0.1) == 176).all()  # 0.9 * 224 * 224 / 256
    assert (run(image, 'Solarize', policies.argument('Solarize', 10, policies.CONSTANTS['randaugment'])) == 255).all()


def test_layers_follow_each_other():
    import tensorflow as tf

    image = IMAGES['photo']
    ops = np.array([[policies.NUMBER['Invert'], 0, 0, 0], [policies.NUMBER['Posterize'], 4, 0, 0]], np.float32)
    expected = (255 - image) >> 4 << 4
    np.testing.assert_array_equal(host.apply(tf.constant(image), tf.constant(ops)).numpy(), expected)
