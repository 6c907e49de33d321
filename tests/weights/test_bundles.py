"""TensorFlow checkpoints from strangers: read without TensorFlow, whose own reader ends the process at some damage."""

import struct

import numpy as np
import pytest

from benchmarks.fuzzing import _weight_seeds as seeds
from efficientnet_jax import weights
from efficientnet_jax.errors import NotThere, UserError
from efficientnet_jax.weights import bundles, checksums, files, limits
from tests.weights.test_hostile import TINY

DAMAGED = r'is cut off or damaged: .*Fetch it again\.$'


def load(path):
    return weights.load(str(path), TINY, padding='same')


def refused(path, message):
    """Loads a checkpoint that must be refused by one line with its name."""
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """{name: bytes} of a folder that loads."""
    return seeds.seeds(TINY, str(tmp_path_factory.mktemp('seeds')))['tensorflow']


def folder(tmp_path, content, name='tf'):
    path = tmp_path / name
    path.mkdir()
    for member, data in content.items():
        (path / member).write_bytes(data)
    return path


def block_end(index):
    """Where the only block of entries ends, as the directory says, which the footer names."""
    _, _, at = bundles.handle(index[-48:], 0)
    offset, size, _ = bundles.handle(index[-48:], at)
    return bundles.handle(bundles.block(index, offset, size)[0][1], 0)[1]


def patched(index, at, value):
    """An index with another byte among its entries, and a checksum that is right again."""
    end = block_end(index)
    block = index[:at] + bytes([value]) + index[at + 1 : end]
    return block + b'\0' + struct.pack('<I', bundles.masked_crc32c(block + b'\0')) + index[end + 5 :]


@pytest.mark.parametrize('value', [0, 1, 0x7F, 0x80, 0xFF])
def test_any_byte_of_an_index(checkpoint, tmp_path, value):
    path = folder(tmp_path, checkpoint)
    index = checkpoint['model.ckpt.index']
    accepted = 0
    for at in range(0, block_end(index), 17):
        (path / 'model.ckpt.index').write_bytes(patched(index, at, value))
        try:
            load(path)
            accepted += 1
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error)
    assert accepted < 5


def test_one_bit_of_an_array_is_found(checkpoint, tmp_path):
    path = folder(tmp_path, checkpoint)
    content = bytearray(checkpoint['model.ckpt.data-00000-of-00001'])
    content[100] ^= 1
    (path / 'model.ckpt.data-00000-of-00001').write_bytes(content)
    refused(path, 'has another checksum than announced')


@pytest.mark.parametrize('name', ['model.ckpt.index', 'model.ckpt.data-00000-of-00001'])
def test_parts_that_are_cut_or_missing(checkpoint, tmp_path, name):
    path = folder(tmp_path, checkpoint)
    for part in (0, 1, len(checkpoint[name]) // 2, len(checkpoint[name]) - 1):
        (path / name).write_bytes(checkpoint[name][:part])
        refused(path, DAMAGED)
    (path / name).unlink()
    with pytest.raises((NotThere, UserError), match=f'{name}'):
        load(path / 'model.ckpt.meta')


def test_many_tensors(checkpoint, tmp_path, monkeypatch):
    path = folder(tmp_path, checkpoint)
    monkeypatch.setattr(limits, 'MAX_ARRAYS', 5)
    refused(path, 'a block of the index has more than 5 entries')


@pytest.mark.parametrize('scheme', ['', 'file://'])
def test_equal_to_tensorflow(checkpoint, tmp_path, scheme):
    import tensorflow as tf

    prefix = str(folder(tmp_path, checkpoint) / 'model.ckpt')
    read = files.read(scheme + prefix)
    reader = tf.train.load_checkpoint(prefix)
    assert len(read.arrays) == len(reader.get_variable_to_shape_map())
    for name, value in read.arrays.items():
        np.testing.assert_array_equal(value, reader.get_tensor(f'tiny/{name}'))


@pytest.mark.parametrize('dtype', ['float64', 'float16', 'bfloat16', 'int64', 'int32', 'int8', 'uint8', 'bool'])
def test_types(tmp_path, dtype):
    import tensorflow as tf

    value = tf.cast(tf.constant([[0, 1, 1], [1, 0, 1]]), dtype)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / 'x'), tensor_names=['a', 'b'], shape_and_slices=['', ''], tensors=[value, tf.constant(['text'])]
    )
    bundle = bundles.Bundle(str(tmp_path / 'x'))
    read = bundle.tensor('a')
    assert read.dtype == dtype and np.array_equal(read.astype(np.float32), tf.cast(value, tf.float32).numpy())
    with pytest.raises(UserError, match="'b' is cut into slices, or of a type that is no number"):
        bundle.tensor('b')


def test_checksums():
    assert checksums.crc32c(b'123456789') == 0xE3069283  # RFC 3720
    rng = np.random.default_rng(0)
    for size in (0, 1, checksums.SHORT_BYTES - 1, checksums.SHORT_BYTES, checksums.SHORT_BYTES + 1, 40_000):
        crc = 0xFFFFFFFF
        for byte in (content := rng.bytes(size)):
            crc = int(checksums.TABLE[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
        assert checksums.crc32c(content) == crc ^ 0xFFFFFFFF
