"""TensorFlow checkpoints (PREFIX.index, PREFIX.data-00000-of-00001) without TensorFlow, whose own reader ends the process at some damage.

The index is a table of LevelDB: blocks of sorted keys, each followed by its compression and its checksum, found through a block of
handles, found through the last 48 bytes. A value is a BundleEntryProto: type, shape, shard, offset, size and checksum of a tensor.
Source: tensorflow/core/lib/io/{format,block}.cc, core/protobuf/tensor_bundle.proto, core/util/tensor_bundle/tensor_bundle.cc.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import checksums, limits
from efficientnet_jax.weights.limits import Refused

MAX_INDEX_BYTES = 64 << 20
FOOTER_BYTES = 48
MAX_DIMENSIONS = 8
MAGIC = 0xDB4775248B80FB57
BLOCK_TRAILER = struct.Struct('<BI')  # compression, masked CRC-32C of the block and the compression
DTYPES: dict[int, Any] = {
    1: '<f4',
    2: '<f8',
    3: '<i4',
    4: 'u1',
    5: '<i2',
    6: 'i1',
    9: '<i8',
    10: '?',
    14: ml_dtypes.bfloat16,
    19: '<f2',
    22: '<u4',
    23: '<u8',
}


class Entry(NamedTuple):
    """Where a tensor is. types.proto numbers the dtype."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


class Bundle:
    """The names of a checkpoint and its tensors, read one by one."""

    def __init__(self, prefix: str) -> None:
        """Reads the index. Raises OSError, Refused, exceptions of any kind for a damaged one."""
        self.prefix = prefix
        with opened(prefix + '.index') as f:
            index = f.read(MAX_INDEX_BYTES + 1)
        if len(index) > MAX_INDEX_BYTES:
            raise Refused(f'{prefix}.index has more than {MAX_INDEX_BYTES:,} bytes.')
        values = dict(_table(index, prefix))
        header = _fields(values.pop(b'', b''))
        self._shards = _number(header, 1)
        if _number(header, 2) != 0:
            raise Refused(f'{prefix} was written on a big-endian machine.')
        self.entries = {key.decode(): _entry(value) for key, value in values.items()}

    def tensor(self, name: str) -> np.ndarray:
        """Raises UserError for a type that is no number, ValueError for other sizes and checksums than announced."""
        entry = self.entries[name]
        if entry.sliced or entry.dtype not in DTYPES:
            raise UserError(f'{self.prefix}: {name!r} is cut into slices, or of a type that is no number (DataType {entry.dtype}).')
        dtype = np.dtype(DTYPES[entry.dtype])
        if len(entry.shape) > MAX_DIMENSIONS or math.prod(entry.shape) * dtype.itemsize != entry.size or entry.shard >= self._shards:
            raise ValueError(f'{name!r} of shape {list(entry.shape[:MAX_DIMENSIONS])} has {entry.size} bytes')
        with opened(f'{self.prefix}.data-{entry.shard:05d}-of-{self._shards:05d}') as f:
            f.seek(0, os.SEEK_END)
            if entry.offset + entry.size > f.tell():
                raise ValueError(f'{name!r} lies behind the end of its file')
            f.seek(entry.offset)
            raw = f.read(entry.size)
        if masked_crc32c(raw) != entry.checksum:
            raise ValueError(f'{name!r} has another checksum than announced')
        return np.frombuffer(raw, dtype).reshape(entry.shape)


def opened(path: str) -> IO[bytes]:
    """A file of this machine, or of TensorFlow's file systems (gs://BUCKET/FILE), to read."""
    if '://' not in path:
        return open(path, 'rb')
    import tensorflow as tf

    return tf.io.gfile.GFile(path, 'rb')


def _table(index: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    """All (key, value) of a table, in order; all blocks of the directory together are no longer than the file."""
    if len(index) < FOOTER_BYTES or int.from_bytes(index[-8:], 'little') != MAGIC:
        raise ValueError('the index does not end as one')
    footer = index[-FOOTER_BYTES:]
    _, _, at = handle(footer, 0)  # the block of filters, which nothing needs
    read, count = 0, 0
    for _, value in block(index, *handle(footer, at)[:2]):
        offset, size, _ = handle(value, 0)
        read += size + BLOCK_TRAILER.size
        if read > len(index):
            raise ValueError('a block is named twice')
        for pair in block(index, offset, size):
            count += 1
            limits.check_count(count, 'variables', where)
            yield pair


def block(index: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    """The pairs of one block: each key repeats so many bytes of the one before, its own follow."""
    content = index[offset : offset + size]
    compression, checksum = BLOCK_TRAILER.unpack_from(index, offset + size)
    if masked_crc32c(index[offset : offset + size + 1]) != checksum or len(content) != size or size < 4:
        raise ValueError(f'the block at byte {offset} has another checksum than announced')
    if compression != 0:
        raise ValueError('the index is compressed, which TensorFlow does not do')
    end = size - 4 - 4 * int.from_bytes(content[-4:], 'little')
    pairs, key, at = [], b'', 0
    while at < end:
        shared, at = _varint(content, at)
        own, at = _varint(content, at)
        length, at = _varint(content, at)
        if shared > len(key) or at + own + length > end or shared + own > 4 * limits.MAX_NAME:
            raise ValueError(f'an entry of the block at byte {offset} is longer than the block')
        key = key[:shared] + content[at : at + own]
        pairs.append((key, content[at + own : at + own + length]))
        if len(pairs) > limits.MAX_ARRAYS:
            raise ValueError(f'a block of the index has more than {limits.MAX_ARRAYS:,} entries')
        at += own + length
    return pairs


def handle(data: bytes, at: int) -> tuple[int, int, int]:
    """(offset, size, position behind them) of a block."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return offset, size, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, position behind it): seven bits a byte, the lowest first. Raises ValueError, IndexError."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError('a number of more than ten bytes')


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of each field of a protocol buffer, in order."""
    fields: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            fields.append((tag >> 3, value))
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        raw = message[at : at + size]
        if len(raw) != size:
            raise ValueError('a field ends early')
        fields.append((tag >> 3, raw if kind == 2 else int.from_bytes(raw, 'little')))
        at += size
    return fields


def _number(fields: list[tuple[int, int | bytes]], number: int) -> int:
    """The last value of a numeric field; 0 where it is left out."""
    values = [value for field, value in fields if field == number]
    if values and not isinstance(values[-1], int):
        raise ValueError('a field of another type')
    return int(values[-1]) if values else 0


def _entry(message: bytes) -> Entry:
    """A BundleEntryProto. Raises ValueError, KeyError, IndexError for damage."""
    fields = _fields(message)
    shape = []
    for field, value in fields:
        if field == 2:
            assert isinstance(value, bytes)
            shape += [_number(_fields(dim), 1) for number, dim in _fields(value) if number == 2 and isinstance(dim, bytes)]
    dtype, shard, offset, size, checksum = (_number(fields, n) for n in (1, 3, 4, 5, 6))
    return Entry(dtype, tuple(shape), shard, offset, size, checksum, any(field == 7 for field, _ in fields))


def masked_crc32c(data: bytes) -> int:
    """CRC-32C as TensorFlow stores it (core/lib/hash/crc32c.h, Mask)."""
    crc = checksums.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
