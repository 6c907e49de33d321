import hashlib
import multiprocessing

import numpy as np
import pytest

from efficientnet_jax.data.sources import open_source


def test_split_is_fixed_stratified_and_covers_all():
    from sklearn import datasets

    from efficientnet_jax.data.digits import split_indices

    train, test = split_indices()
    assert (len(train), len(test)) == (1500, 297)
    assert sorted([*train, *test]) == list(range(1797))
    labels = datasets.load_digits().target
    shares = np.bincount(labels[test]) / np.bincount(labels)
    assert abs(shares - 297 / 1797).max() < 0.005
    assert hashlib.sha256(test.astype('<i4').tobytes()).hexdigest()[:16] == 'ab0d2e656f57c819'


def test_images_are_those_of_scikit_learn(data_dir):
    import tensorflow as tf
    from sklearn import datasets

    from efficientnet_jax.data.digits import split_indices

    source = open_source('digits', 'test', data_dir)
    encoded, labels = source.read(range(len(source)))
    images = np.stack([tf.io.decode_png(image).numpy() for image in encoded])
    assert images.shape == (297, 8, 8, 1) and images.dtype == np.uint8
    digits = datasets.load_digits()
    _, test = split_indices()
    expected = {(digits.images[i].tobytes(), digits.target[i]) for i in test}
    assert {((image[..., 0] * (16 / 255)).round().tobytes(), label) for image, label in zip(images, labels, strict=True)} == expected


def prepare(data_dir):
    from efficientnet_jax.data import digits

    return digits.builder(data_dir).info.splits['train'].num_examples


def test_two_processes_may_prepare_at_once(tmp_path):
    with multiprocessing.get_context('spawn').Pool(2) as pool:
        assert pool.map(prepare, [str(tmp_path)] * 2, chunksize=1) == [1500, 1500]
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_unwritable_data_dir_is_named(tmp_path):
    blocked = tmp_path / 'file'
    blocked.write_text('')
    with pytest.raises(OSError, match=r"data_dir='.*file' cannot be written \(.*\); the digits data set needs 0.5 MB there"):
        open_source('digits', 'train', str(blocked))
