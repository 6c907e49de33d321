"""launch/colab.ipynb: kept without outputs, and executed from top to bottom."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / 'launch' / 'colab.ipynb'


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']


def test_no_outputs_are_kept():
    for cell in code_cells():
        assert cell['outputs'] == [] and cell['execution_count'] is None, 'clear all outputs before the notebook is committed'


def test_it_has_no_logic_of_its_own():
    """Cells set the environment, call main.py by launch/local.sh, or show a picture that it left."""
    for cell in code_cells()[2:]:
        source = ''.join(cell['source'])
        if source.startswith('%%bash -e'):
            assert './launch/local.sh ' in source
        else:
            assert source.splitlines()[-1].startswith("Image('runs/") and len(source.splitlines()) <= 3


@pytest.fixture
def clone(tmp_path):
    """A copy of the files that git has, with this interpreter as its environment, so that nothing is installed twice."""
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')[:-1]
    for name in files:
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
            (tmp_path / name).chmod((ROOT / name).stat().st_mode)
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    sums = subprocess.run(['cksum'], input=(ROOT / 'requirements.txt').read_bytes(), capture_output=True, check=True).stdout
    (tmp_path / '.venv' / 'installed').write_bytes(f'cpu {sys.version_info[0]}.{sys.version_info[1]} '.encode() + sums)
    return tmp_path


def photographs(folder):
    """CLASS/*.jpg: pieces of the two photographs that scikit-learn ships."""
    import numpy as np
    import PIL.Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for name, image in zip(('old building, China', 'flower'), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            y, x = random.integers(0, [s - 240 for s in image.shape[:2]])
            PIL.Image.fromarray(image[y : y + 240, x : x + 240]).save(folder / name / f'{i:02}.jpg')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the notebook's own machinery
def test_from_top_to_bottom(clone, monkeypatch):
    import nbclient
    import nbformat

    photographs(clone / 'photos')
    small = {
        'FLAVOUR': 'cpu',
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
        'PHOTOS': 'photos',
        'DIGITS_FLAGS': '--config.steps=20',
        'PHOTOS_FLAGS': '--config.steps=20 --config.batch_size=16 --config.resolution=128',
        'PLAN_FLAGS': '--config=configs/lite0.py --config.plan.topology=v5e:2x2 --config.batch_size=32 --config.eval_batch_size=32 '
        '--config.resolution=32',
    }
    for name, value in small.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=900, resources={'metadata': {'path': str(clone / 'launch')}}).execute()
    pictures = [cell for cell in done.cells if any('image/png' in output.get('data', {}) for output in cell.get('outputs', []))]
    assert len(pictures) == 6
    assert json.loads((clone / 'runs/photos/result.json').read_text())['metrics']['eval']['top1'] > 0.7
