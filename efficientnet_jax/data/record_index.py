"""Random access into tfrecord shards by an index of record offsets, so that data sets prepared years ago need no conversion.

A TFRecord file is a chain of: uint64 length, uint32 checksum of it, `length` bytes, uint32 checksum of those, little-endian
(tensorflow/core/lib/io/record_writer.h). Following the lengths gives every offset; the index of a split is kept in the user's cache.
"""

import concurrent.futures
import hashlib
import io
import os
import pathlib
import tempfile

import numpy as np

from efficientnet_jax.errors import StorageError, UserError

HEADER_BYTES = 12
FOOTER_BYTES = 4
INDEX_THREADS = 8


class Records:
    """The records of a split: `read(i)` returns the serialised example i. Thread-safe: every read opens the shard anew."""

    def __init__(self, paths, shard, offset, length):
        self._paths = paths
        self._shard = shard  # [n] position in `paths`
        self._offset = offset  # [n] where the record's bytes begin
        self._length = length  # [n] bytes

    def __len__(self):
        return len(self._shard)

    def read(self, i):
        """The bytes of record i, an encoded tf.train.Example. Raises OSError where the file has become shorter."""
        path, offset, length = self._paths[self._shard[i]], int(self._offset[i]), int(self._length[i])
        with open_file(path) as f:
            f.seek(offset)
            record = f.read(length)
        if len(record) != length:
            raise StorageError(f'{path} ends before byte {offset + length:,}, inside a record: it changed since it was indexed.')
        return record

    def describe(self, i):
        """File and byte of record i, for error messages."""
        return f'{self._paths[self._shard[i]]} byte {int(self._offset[i]):,}'

    def total_bytes(self):
        """Bytes of all records, as config.cache would hold them."""
        return int(self._length.sum())


def open_records(builder, split):
    """Returns the Records of a split of a TFDS builder whose files are tfrecord; raises ValueError for any other format."""
    kind = builder.info.file_format.value
    if kind != 'tfrecord':
        raise UserError(f'{builder.data_path} holds {kind} files, without random access. Prepare it with --file_format=array_record.')
    parts = builder.info.splits[split].file_instructions
    wanted = {part.filename for part in parts}
    shards = {}
    for info in builder.info.splits.values():
        paths = [str(path) for path in info.filepaths]
        if wanted.intersection(paths):
            shards.update(_split_index(paths, info.shard_lengths))
    paths = sorted(wanted)
    position = {path: i for i, path in enumerate(paths)}
    shard, offset, length = [], [], []
    for part in parts:
        offsets, lengths = shards[part.filename]
        chosen = slice(part.skip, part.skip + part.take)
        offset.append(offsets[chosen])
        length.append(lengths[chosen])
        shard.append(np.full(part.take, position[part.filename], np.int32))
    return Records(paths, np.concatenate(shard), np.concatenate(offset), np.concatenate(length))


def _split_index(paths, shard_lengths):
    """Returns {path: (offsets, lengths)} for all shards of a split, from the cache where it holds these very files."""
    stamps = [file_stamp(path) for path in paths]
    key = hashlib.sha256(repr(list(zip(paths, stamps, strict=True))).encode()).hexdigest()[:24]
    cached = _cache_dir() / f'{key}.npz'
    index = _load(cached, sum(shard_lengths))
    if index is None:
        sizes = [size for size, _ in stamps]
        with concurrent.futures.ThreadPoolExecutor(INDEX_THREADS) as pool:
            indexed = list(pool.map(_index_shard, paths, sizes, shard_lengths))
        index = tuple(np.concatenate(arrays) for arrays in zip(*indexed, strict=True))
        _save(cached, *index)
    offsets, lengths = index
    ends = np.cumsum(shard_lengths)
    return {path: (offsets[end - n : end], lengths[end - n : end]) for path, end, n in zip(paths, ends, shard_lengths, strict=True)}


def _index_shard(path, size, examples):
    """Returns (offsets, lengths), int64 [examples], of one shard's records; raises OSError when the chain does not end with the file."""
    offsets, lengths = [], []
    position = 0
    with open_file(path, buffering=0) as f:  # a buffer would read 8 KiB for every header of 8 bytes
        if '://' in path:
            f = io.BytesIO(f.read())  # one request of the whole shard beats thousands of tiny ones
        while position + HEADER_BYTES <= size:
            f.seek(position)
            length = int.from_bytes(f.read(8), 'little')
            offsets.append(position + HEADER_BYTES)
            lengths.append(length)
            position += HEADER_BYTES + length + FOOTER_BYTES
    if position != size or len(offsets) != examples:
        raise StorageError(
            f'{path} is damaged or cut short: {size:,} bytes with {len(offsets):,} records ending at byte {position:,}; '
            f'dataset_info.json says {examples:,} records. Copy or prepare it again.'
        )
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def open_file(path, buffering=-1):
    """Opens a local path, or a URL that TensorFlow knows (gs://...), for reading bytes."""
    if '://' not in path:
        return open(path, 'rb', buffering=buffering)
    import tensorflow as tf

    return tf.io.gfile.GFile(path, 'rb')


def file_size(path):
    """Returns the size in bytes of a local file or a URL that TensorFlow knows."""
    return file_stamp(path)[0]


def file_stamp(path):
    """Returns (size in bytes, time of the last change in ns) of a local file or a URL that TensorFlow knows."""
    if '://' not in path:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    import tensorflow as tf

    found = tf.io.gfile.stat(path)
    return found.length, found.mtime_nsec


def _cache_dir():
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'efficientnet_jax' / 'record_index'


def _load(path, records):
    """Returns (offsets, lengths), int64 [records], of a file that _save wrote; None where it is missing or anything is wrong with it."""
    try:
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as f:  # np.load leaves a file open that is no zip
            offsets, lengths = f['offsets'], f['lengths']
    except Exception:  # zipfile, NumPy and the disk have many ways to say that it is damaged; it is made again
        return None
    good = all(array.dtype == np.int64 and array.shape == (records,) for array in (offsets, lengths))
    return (offsets, lengths) if good else None


def _save(path, offsets, lengths):
    """Writes the index so that a reader never sees half of it, nor does a power cut leave one. An unwritable cache costs time at the next start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix='.partial', delete=False) as f:
            try:
                np.savez(f, offsets=offsets, lengths=lengths)
                f.flush()
                os.fsync(f.fileno())
                os.replace(f.name, path)
            except BaseException:
                os.unlink(f.name)
                raise
    except OSError:
        pass
