import os

import numpy as np
import pytest

from efficientnet_jax.data import sources
from efficientnet_jax.data.sources import CorruptRecord, open_source
from tests.data.image_files import write_folder


@pytest.fixture(scope='module')
def tfrecord_builder(tmp_path_factory):
    from efficientnet_jax.data.digits import Digits

    builder = Digits(data_dir=str(tmp_path_factory.mktemp('tfrecord')), file_format='tfrecord')
    builder.download_and_prepare()
    return builder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def test_array_record_by_index(data_dir):
    source = open_source('digits', 'train', data_dir)
    assert (len(source), source.num_classes, source.class_names, source.name) == (1500, 10, tuple('0123456789'), 'digits:train')
    encoded, labels = source.read([7, 0, 7])
    assert encoded[0] == encoded[2] != encoded[1] and encoded[0].startswith(b'\x89PNG')
    assert labels.dtype == np.int32 and labels[0] == labels[2]
    assert source.describe(7) == 'digits:train example 7'


@pytest.mark.parametrize('split', ['train', 'train[:-100]', 'train[98%:]', 'train[10:20]+test[:5]'])
def test_tfrecord_gives_the_examples_of_as_dataset_in_its_order(tfrecord_builder, split):
    import tensorflow_datasets as tfds

    source = sources.TfdsSource('tfrecord', tfrecord_builder, split)
    dataset = tfrecord_builder.as_dataset(split, decoders={'image': tfds.decode.SkipDecoding()}, shuffle_files=False)
    expected = [(example['image'], example['label']) for example in dataset.as_numpy_iterator()]
    encoded, labels = source.read(range(len(source)))
    assert list(zip(encoded, labels, strict=True)) == expected
    assert source.size_bytes() > sum(map(len, encoded))
    assert source.describe(3).startswith(str(tfrecord_builder.data_path)) and ' byte ' in source.describe(3)


def test_tfrecord_index_is_cached_and_not_beside_the_data(tfrecord_builder, cache):
    before = sorted(os.listdir(tfrecord_builder.data_path))
    first = sources.TfdsSource('first', tfrecord_builder, 'train').read([5])
    (index,) = (cache / 'efficientnet_jax' / 'record_index').iterdir()
    written = index.stat().st_mtime_ns
    again = sources.TfdsSource('again', tfrecord_builder, 'train[:50%]').read([5])
    assert first[0] == again[0] and index.stat().st_mtime_ns == written
    assert sorted(os.listdir(tfrecord_builder.data_path)) == before


def test_unwritable_cache_only_costs_time(tfrecord_builder, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert len(sources.TfdsSource('tfrecord', tfrecord_builder, 'train')) == 1500


@pytest.mark.parametrize('damage', [lambda data: data[:-10], lambda data: b'\xff' + data[1:], lambda data: data[:0]])
def test_cut_or_damaged_tfrecord_shard_is_named(tfrecord_builder, damage, tmp_path):
    import shutil

    from efficientnet_jax.data.digits import Digits

    shutil.copytree(tfrecord_builder.data_path, tmp_path / 'digits' / '1.0.0')
    shard = tmp_path / 'digits' / '1.0.0' / 'digits-test.tfrecord-00000-of-00001'
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(OSError, match=r'digits-test.tfrecord-00000-of-00001 is damaged or cut short: .* says 297 records. Copy or prepare'):
        sources.TfdsSource('damaged', Digits(data_dir=str(tmp_path)), 'test')


def test_record_that_does_not_parse_is_named(tfrecord_builder, tmp_path):
    import shutil

    from efficientnet_jax.data.digits import Digits

    shutil.copytree(tfrecord_builder.data_path, tmp_path / 'digits' / '1.0.0')
    shard = tmp_path / 'digits' / '1.0.0' / 'digits-test.tfrecord-00000-of-00001'
    data = bytearray(shard.read_bytes())
    data[12:40] = b'\xff' * 28  # inside the first record, whose length stays
    shard.write_bytes(data)
    source = sources.TfdsSource('damaged', Digits(data_dir=str(tmp_path)), 'test')
    source.read([1, 2])
    with pytest.raises(CorruptRecord, match=r'digits-test.tfrecord-00000-of-00001 byte 12 cannot be parsed'):
        source.read([0])


def test_shard_that_shrank_after_indexing(tfrecord_builder, tmp_path):
    import shutil

    from efficientnet_jax.data.digits import Digits

    shutil.copytree(tfrecord_builder.data_path, tmp_path / 'digits' / '1.0.0')
    source = sources.TfdsSource('shrinking', Digits(data_dir=str(tmp_path)), 'test')
    shard = tmp_path / 'digits' / '1.0.0' / 'digits-test.tfrecord-00000-of-00001'
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(OSError, match=r'ends before byte [\d,]+, inside a record: it changed since it was indexed'):
        source.read([200])


def test_mocked_imagenet():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=20):
        source = open_source('imagenet2012', 'train')
        encoded, labels = source.read([1, 2])
    assert len(source) == 20 and source.num_classes == 1000 and source.class_names[0] == 'n01440764'
    assert encoded[0].startswith(b'\xff\xd8\xff') and 0 <= labels[0] < 1000


@pytest.mark.parametrize(
    ('dataset', 'split', 'error', 'message'),
    [
        (
            'imagnet2012',
            'train',
            ValueError,
            r"dataset='imagnet2012' is not 'digits', a TFDS name or 'folder:DIR'. Near names: .*imagenet2012",
        ),
        ('digit', 'train', ValueError, r'Near names: digits'),
        ('/', 'train', ValueError, r"dataset='/' is not 'digits', a TFDS name or 'folder:DIR'. For the images in that folder: folder:/"),
        ('zzzzzz', 'train', ValueError, r'https://www.tensorflow.org/datasets/catalog lists them'),
        (
            'imagenet2012',
            'train',
            FileNotFoundError,
            r"dataset='imagenet2012' is not prepared: .*/imagenet2012/.* with `launch/prepare_imagenet.sh`",
        ),
        ('cifar10', 'train', FileNotFoundError, r'with `python -c "import .*download_and_prepare\(\)"`, or set data_dir'),
        ('coco', 'train', ValueError, r"dataset='coco' must have the features `image` and `label` \(a ClassLabel\); it has \['image', "),
        ('digits', 'trian', ValueError, r"split='trian' does not fit 'digits', which has train \(1,500\), test \(297\)"),
        ('digits', 'train[:5000]', ValueError, r"split='train\[:5000\]' does not fit 'digits'"),
        ('digits', 'train[5:5]', ValueError, r"split='train\[5:5\]' of 'digits' is empty"),
        ('folder:/no/such', 'train', FileNotFoundError, r'dataset=folder:/no/such has no images .*found: no such folder'),
    ],
)
def test_what_is_not_there_is_explained(dataset, split, error, message, data_dir):
    with pytest.raises(error, match=message):
        open_source(dataset, split, data_dir)


def test_file_that_vanished_is_an_os_error(tmp_path):
    source = open_source(f'folder:{write_folder(tmp_path, ["a"], 2)}', 'train')
    os.remove(source.describe(0))
    with pytest.raises(FileNotFoundError, match=r'/a/\d.png'):
        source.read([0])


def test_a_cached_source_reads_every_example_once(tmp_path):
    source = open_source(f'folder:{write_folder(tmp_path, ["a", "b"], 4)}', 'train+validation')
    cached = sources.CachedSource(source)
    reads = []
    read_one = source._read_one
    source._read_one = lambda index: reads.append(index) or read_one(index)
    expected = source.read(range(8))
    del reads[:]
    for _ in range(3):
        encoded, labels = cached.read([3, 0, 3, 7])
        assert encoded == [expected[0][i] for i in (3, 0, 3, 7)] and labels.tolist() == expected[1][[3, 0, 3, 7]].tolist()
    assert sorted(reads) == [0, 3, 7]
    assert (len(cached), cached.num_classes, cached.class_names, cached.name) == (8, 2, ('a', 'b'), source.name)
    assert cached.describe(3) == source.describe(3) and cached.size_bytes() == source.size_bytes()


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_read(tmp_path):
    source = open_source(f'folder:{write_folder(tmp_path, ["a", "b"], 4)}', 'train+validation')
    needed = source.size_bytes() + 8 * sources.OBJECT_BYTES
    sources.CachedSource(source, limit_bytes=needed)
    message = r'cache=True needs 0.00 GiB on each host for the 8 examples of folder:.*, more than 0.00 GiB .*; set cache=False'
    with pytest.raises(ValueError, match=message):
        sources.CachedSource(source, limit_bytes=needed - 1)
    source.size_bytes = lambda: 2**50
    with pytest.raises(ValueError, match=r'needs 1048576.00 GiB'):
        sources.CachedSource(source)
    assert 2**20 < sources.free_bytes() < 2**50
