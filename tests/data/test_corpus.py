"""Files that once ended the process, ran a program or filled the memory: minimised by hand from what benchmarks/fuzz.py found on older code."""

import itertools
import pathlib
import subprocess
import sys

import pytest

from efficientnet_jax.data.pipeline import UnreadableExamples, eval_batches, train_batches
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.data.sources import open_source
from efficientnet_jax.errors import UserError
from tests.data.image_files import encode, photo

CORPUS = sorted((pathlib.Path(__file__).parent / 'corpus').iterdir())
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def mixed(tmp_path):
    """Every file of the corpus with the suffix of a photo, and as many photos."""
    (tmp_path / 'a').mkdir()
    for i, path in enumerate(CORPUS):
        (tmp_path / 'a' / f'{path.name}.jpg').write_bytes(path.read_bytes())
        (tmp_path / 'a' / f'good{i}.jpg').write_bytes(encode(photo(seed=i), ('JPEG', 'WEBP', 'PNG')[i % 3]))
    return open_source(f'folder:{tmp_path}', 'train+validation')


@pytest.mark.parametrize('path', CORPUS, ids=lambda path: path.name)
def test_each_is_refused_by_name(path):
    with pytest.raises(UserError, match=r'^photo\.jpg (is not a readable image|has .* pixels|is a JPEG of)'):
        Preprocess(16).to_uint8(path.read_bytes(), 'photo.jpg')


def test_each_is_one_corrupt_example_of_training(mixed):
    n = len(CORPUS)
    batches = train_batches(mixed, batch_size=4, resolution=16, seed=0, max_corrupt=n)
    seen = [int(i) for batch in itertools.islice(batches, n) for i in batch['index']]
    batches.close()
    named = {mixed.describe(i).rsplit('/', 1)[1].removesuffix('.jpg') for i in batches.corrupt}
    assert named == {path.name for path in CORPUS}
    assert all(mixed.describe(i) in message for i, message in batches.corrupt.items())
    assert all('good' in mixed.describe(i) for i in seen)


def test_each_is_masked_in_evaluation_and_one_too_many_is_an_error_that_names_all(mixed):
    n = len(CORPUS)
    batches = eval_batches(mixed, batch_size=8, preprocess=Preprocess(16), max_corrupt=n)
    assert sum(int(batch['mask'].sum()) for batch in batches) == n and len(batches.corrupt) == n
    with pytest.raises(UnreadableExamples, match=rf'{n} unreadable examples in .*, more than max_corrupt={n - 1}') as caught:
        list(eval_batches(mixed, batch_size=8, preprocess=Preprocess(16), max_corrupt=n - 1))
    assert all(f'{path.name}.jpg' in str(caught.value) for path in CORPUS)


@pytest.mark.slow
def test_a_short_run_of_the_fuzzer():
    command = [sys.executable, 'benchmarks/fuzz.py', 'images', '--count=3000', '--seed=1234']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'n = 3,000 in' in done.stdout and '| all |' in done.stdout


FAULTS = """
import os, pathlib, subprocess, time
SECONDS, MEMORY_BYTES = 1, 64 << 20
KINDS = ('accepted', 'refused', 'unnamed', 'memory', 'opened', 'process', 'hang', 'crash', 'sleep')

def prepare(folder):
    pass

def make(folder, canary, rng):
    kind = rng.choice(KINDS)
    path = os.path.join(folder, 'case')
    pathlib.Path(path).write_text(kind + ' ' + canary)
    return kind, path

def run(path):
    kind, canary = pathlib.Path(path).read_text().split()
    if kind == 'refused':
        raise ValueError(path)
    if kind == 'unnamed':
        raise KeyError('odd')
    if kind == 'memory':
        bytearray(MEMORY_BYTES + (16 << 20))
    if kind == 'opened':
        open(canary).close()
    if kind == 'process':
        subprocess.run(['true'])
    while kind == 'hang':
        pass
    if kind == 'crash':
        os.abort()
    if kind == 'sleep':
        time.sleep(60)

def fine(error, path):
    return path in str(error)
"""


@pytest.mark.slow
def test_the_fuzzer_sees_every_kind_of_fault(tmp_path, monkeypatch):
    """With a kind whose cases do each of them on purpose."""
    import shutil

    shutil.copytree(ROOT / 'benchmarks' / 'fuzzing', tmp_path / 'benchmarks' / 'fuzzing')
    shutil.copy(ROOT / 'benchmarks' / 'fuzz.py', tmp_path / 'benchmarks')
    (tmp_path / 'benchmarks' / 'fuzzing' / 'faults.py').write_text(FAULTS)
    command = [sys.executable, 'benchmarks/fuzz.py', 'faults', '--count=36', '--seed=7', '--keep=kept', '--record=record.md']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    rows = {}
    for line in (tmp_path / 'record.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if len(cells) == 9 and cells[0] not in ('group', '---'):
            rows[cells[0]] = dict(
                zip(('accepted', 'refused', 'unnamed', 'memory', 'opened', 'process', 'hang', 'crash'), map(int, cells[1:]), strict=True)
            )
    assert rows.keys() == {'accepted', 'refused', 'unnamed', 'memory', 'opened', 'process', 'hang', 'crash', 'sleep', 'all'}
    for group, counts in rows.items():
        if group != 'all':
            outcome = 'hang' if group == 'sleep' else group
            assert counts[outcome] == sum(counts.values()) > 0, (group, counts)
    faults = rows['all']['unnamed'] + sum(rows['all'][name] for name in ('memory', 'opened', 'process', 'hang', 'crash'))
    assert len(list((tmp_path / 'kept').iterdir())) == faults
