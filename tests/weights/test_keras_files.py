"""The three kinds of file that Keras writes hold the same weights, whatever the file is called."""

import os
import shutil

import jax
import numpy as np
import pytest

from efficientnet_jax import weights

KINDS = ('.keras', '.weights.h5', '.h5')


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.filterwarnings('default')  # Keras' own, about the HDF5 format
def test_keras_files(tmp_path):
    os.environ.setdefault('KERAS_BACKEND', 'jax')
    keras = pytest.importorskip('keras')
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in model.get_weights()])
    loaded = []
    for kind in KINDS:
        path = str(tmp_path / f'model{kind}')
        (model.save_weights if kind == '.weights.h5' else model.save)(path)
        unnamed = str(tmp_path / 'unnamed')
        shutil.copy(path, unnamed)
        loaded += [weights.load(path, 'efficientnet_b0'), weights.load(unnamed, 'efficientnet_b0')]
    first = loaded[0]
    stem = model.get_layer('stem_conv').get_weights()[0]
    np.testing.assert_array_equal(first.variables['params']['stem']['kernel'], stem)
    for other in loaded[1:]:
        jax.tree.map(np.testing.assert_array_equal, first.variables, other.variables)
        assert other.module.architecture == first.module.architecture
        assert other.preprocess.normalise(np.full((1, 2, 2, 3), 100, np.uint8)) == pytest.approx(
            first.preprocess.normalise(np.full((1, 2, 2, 3), 100, np.uint8)), rel=1e-5
        )
