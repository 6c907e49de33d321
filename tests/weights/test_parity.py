"""Logits against the code bases that weights come from, on random weights and statistics: 1e-4 of the logits' spread.

By `-m slow`, where the library is installed: B0 at a quarter of its resolution, all models at their own. benchmarks/parity.py makes the record.
test_formats.py and test_keras_files.py read every library's names and layouts by default.
"""

import jax
import pytest

from benchmarks import parity

B0 = [row for row in parity.REFERENCES if row[0] == 'efficientnet_b0']


def check(row, folder, resolution=None):
    model, library, name, padding = row
    pytest.importorskip(library, reason=f'{library} is not installed; benchmarks/parity.py says how')
    if library == 'keras':
        pytest.importorskip('h5py')
    with jax.numpy_rank_promotion('allow'):  # Keras adds biases so
        result = parity.compare(model, library, name, padding, str(folder), resolution)
    assert result['relative'] < parity.TOLERANCE, result
    assert result['response'] > parity.RESPONSE, result


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize('row', B0, ids=lambda row: row[1])
@pytest.mark.filterwarnings('default')  # other libraries' own
def test_b0(row, tmp_path):
    check(row, tmp_path, resolution=64)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize('row', parity.REFERENCES, ids=lambda row: f'{row[0]}-{row[1]}')
@pytest.mark.filterwarnings('default')
def test_every_model(row, tmp_path):
    check(row, tmp_path)
