"""CRC-32C (Castagnoli), which zlib does not have, at the speed of NumPy: the data is cut into lanes that are taken all at once, and joined.

A checksum is linear over GF(2), so that of two pieces is that of the first, carried over as many zeros as the second has bytes, plus that
of the second. Mark Adler's crc32_combine in zlib does the same.
"""

from __future__ import annotations

import functools

import numpy as np

LANE_BYTES = 256
MAX_LANES = 1 << 16
SHORT_BYTES = 2048  # below, a loop in Python is faster


def _table() -> np.ndarray:
    """The checksum of each byte. uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


TABLE = _table()
_LIST = TABLE.tolist()


def crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4."""
    if len(data) < SHORT_BYTES:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = _LIST[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    lanes = 1
    while lanes < MAX_LANES and lanes * LANE_BYTES < len(data):
        lanes *= 2
    length = -(-len(data) // lanes)
    padded = np.zeros(length * lanes, np.uint8)  # zeros before the first byte leave a checksum that begins with 0 as it is
    padded[len(padded) - len(data) :] = np.frombuffer(data, np.uint8)
    sums = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(lanes, length).T):
        sums = TABLE[(sums ^ column) & np.uint32(0xFF)] ^ (sums >> np.uint32(8))
    while len(sums) > 1:
        sums = _times(_zeros(length), sums[::2]) ^ sums[1::2]
        length *= 2
    # The checksum begins with all bits set: these, carried over the whole length.
    begun = _times(_zeros(len(data)), np.full(1, 0xFFFFFFFF, np.uint32))
    return int(sums[0] ^ begun[0]) ^ 0xFFFFFFFF


def _times(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A matrix over GF(2), uint32 [32] of columns, times each vector of 32 bits: the sum of the columns that its bits name."""
    result = np.zeros_like(vectors)
    for bit in range(32):
        result ^= np.where(vectors >> np.uint32(bit) & np.uint32(1), matrix[bit], np.uint32(0))
    return result


@functools.lru_cache(4096)
def _zeros(count: int) -> np.ndarray:
    """The matrix that carries a checksum over `count` bytes of zero."""
    unit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if count == 0:
        return unit
    if count % 2:
        return TABLE[(before := _zeros(count - 1)) & np.uint32(0xFF)] ^ (before >> np.uint32(8))
    half = _zeros(count // 2)
    return _times(half, half)
