"""The 1,797 handwritten digits inside the scikit-learn wheel as a TFDS data set: real images, no download."""

import contextlib
import io
import os
import pathlib
import shutil
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from efficientnet_jax.errors import StorageError

TEST_EXAMPLES = 297
SPLIT_SEED = 0


def split_indices():
    """Returns (train, test): sorted indices into sklearn's `load_digits`, 1,500 and 297, stratified by class, always the same."""
    from sklearn import datasets, model_selection

    labels = datasets.load_digits().target
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=TEST_EXAMPLES, stratify=labels, random_state=SPLIT_SEED
    )
    return np.sort(train), np.sort(test)


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of handwritten digits (UCI optdigits test set, as shipped by scikit-learn); 1,500 train, 297 test.

    The pixel counts 0..16 are stored as round(count * 255 / 16) in a PNG of shape [8, 8, 1].
    """

    url_infos = None  # nothing is downloaded; TFDS 4.9.10 would need importlib_resources, which it does not install, to look for checksums
    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'Stratified split of 1,500 and 297 examples with scikit-learn and seed 0.'}  # noqa: RUF012 (TFDS reads it from the class)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description='Handwritten digits, 8x8 grey, 10 classes, from scikit-learn.',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage='https://archive.ics.uci.edu/dataset/80',
        )

    def _split_generators(self, dl_manager):
        train, test = split_indices()
        return {'train': self._generate_examples(train), 'test': self._generate_examples(test)}

    def _generate_examples(self, indices):
        from sklearn import datasets

        digits = datasets.load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
        for i in indices:
            yield int(i), {'image': images[i], 'label': int(digits.target[i])}


def builder(data_dir=None):
    """Returns the prepared builder, array_record format; writes it under `data_dir` (default: TFDS's own) when it is not there.

    Safe when several processes start at once: each prepares a private copy, the first rename wins, the others are dropped.
    Raises OSError, naming the folder, when it cannot be written.
    """
    data_dir = os.path.expanduser(str(data_dir or tfds.core.constants.DATA_DIR))
    with quiet():
        result = Digits(data_dir=data_dir, file_format='array_record')
        if result.is_prepared():
            return result
    target = pathlib.Path(str(result.data_path))
    try:
        os.makedirs(target.parent, exist_ok=True)
        private = tempfile.mkdtemp(prefix='digits_incomplete_', dir=data_dir)
    except OSError as e:
        raise StorageError(
            f'data_dir={data_dir!r} cannot be written ({e.strerror}); the digits data set needs 0.5 MB there. Set data_dir.'
        ) from e
    try:
        copy = Digits(data_dir=private, file_format='array_record')
        with quiet():
            copy.download_and_prepare()
        os.rename(str(copy.data_path), target)
    except OSError:
        if not Digits(data_dir=data_dir, file_format='array_record').is_prepared():
            raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return Digits(data_dir=data_dir, file_format='array_record')


@contextlib.contextmanager
def quiet():
    """No progress bars and notes of TFDS, which tell of downloads that there are none of."""
    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()
