"""The index of tfrecord shards in the user's cache: made again where it is damaged or the shards are others."""

import os

import numpy as np
import pytest

from efficientnet_jax.data import record_index


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """A shard of two records of 3 and 5 bytes, and a function that indexes it."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'a.tfrecord'

    def write(lengths):
        path.write_bytes(b''.join(n.to_bytes(8, 'little') + b'crcc' + b'x' * n + b'crcc' for n in lengths))

    write([3, 5])
    return path, write, lambda: record_index._split_index([str(path)], [2])[str(path)][1].tolist()


def cached(tmp_path):
    return sorted((tmp_path / 'cache' / 'efficientnet_jax' / 'record_index').iterdir())


def other_arrays(data):
    import io

    file = io.BytesIO()
    np.savez(file, offsets=np.array([{}], object), lengths=np.zeros(1))
    return file.getvalue()


@pytest.mark.parametrize('damage', [lambda d: b'', lambda d: d[:-9], lambda d: b'x' + d[1:], lambda d: b'\x80\x04.', other_arrays])
def test_a_damaged_index_is_made_again(shard, tmp_path, damage):
    _, _, index = shard
    assert index() == [3, 5]
    (file,) = cached(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert index() == [3, 5] and cached(tmp_path) == [file]
    with np.load(file) as again:
        assert again['lengths'].tolist() == [3, 5]


def test_other_shards_of_the_same_size_are_indexed_anew(shard):
    path, write, index = shard
    assert index() == [3, 5]
    write([4, 4])
    os.utime(path, ns=(1, 1))
    assert index() == [4, 4]


def test_the_index_is_on_the_disk_before_it_has_its_name(shard, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(record_index.os, 'fsync', lambda descriptor: order.append('fsync'))
    replace = os.replace
    monkeypatch.setattr(record_index.os, 'replace', lambda *paths: order.append('replace') or replace(*paths))
    shard[2]()
    assert order == ['fsync', 'replace']


def test_a_full_disk_leaves_nothing_half_written(shard, tmp_path, monkeypatch):
    def full(*args, **arrays):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(record_index.np, 'savez', full)
    assert shard[2]() == [3, 5] and cached(tmp_path) == []
