"""Arrays by name from .safetensors and .npz, with the description that `save` writes into them."""

from __future__ import annotations

import io
import json
import math
import sys
from typing import Any

import ml_dtypes
import numpy as np

from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import limits

DESCRIPTION = 'efficientnet_jax'  # key of the metadata, name of the array
SAFETENSORS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': ml_dtypes.bfloat16, 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1', 'U8': 'u1',
               'BOOL': '?'}  # fmt: skip
Content = tuple[dict[str, np.ndarray], Any]  # arrays, description or None


def safetensors(data: bytes, where: str) -> Content:
    """By the safetensors library, which checks offsets and overlaps. Raises UserError, and what the library raises for a damaged file."""
    from safetensors import deserialize

    length = int.from_bytes(data[:8], 'little')
    if length > limits.MAX_HEADER_BYTES:
        raise limits.damaged(where, f'its header has {length:,} bytes; the most that is read is {limits.MAX_HEADER_BYTES:,}')
    header = json.loads(data[8 : 8 + length])
    limits.check_count(len(header), 'arrays', where)
    arrays = {}
    for name, entry in deserialize(data):
        if entry['dtype'] not in SAFETENSORS:
            raise UserError(f'{where}: {name!r} has dtype {entry["dtype"]}; readable: {", ".join(SAFETENSORS)}.')
        arrays[name] = np.frombuffer(entry['data'], np.dtype(SAFETENSORS[entry['dtype']])).reshape(entry['shape'])
    note = header.get('__metadata__', {}).get(DESCRIPTION)
    return arrays, None if note is None else json.loads(note)


def npz(data: bytes, where: str) -> Content:
    """The zip of .npy files that numpy.savez writes."""
    with limits.open_zip(data, where) as archive:
        members = limits.read_members(archive, archive.namelist(), len(data), where)
    arrays = {name.removesuffix('.npy'): _npy(content, name, where) for name, content in members.items()}
    note = arrays.pop(DESCRIPTION, None)
    return arrays, None if note is None else json.loads(str(note))


def _npy(content: bytes, name: str, where: str) -> np.ndarray:
    """One array. The header's shape must be that of the bytes that follow it. Source: numpy.lib.format."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise limits.damaged(where, f'{name!r} has version {version}')
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise limits.Refused(f'{where} holds Python objects, which could run code; only arrays of numbers are read.')
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise limits.damaged(where, f'{name!r} of shape {list(shape)} and dtype {dtype} has {len(content) - file.tell()} bytes')
    if dtype.kind == 'U' and name == f'{DESCRIPTION}.npy' and shape == ():
        letters = np.frombuffer(content, np.dtype('u4').newbyteorder(dtype.byteorder), -1, file.tell())
        if letters.max(initial=0) > sys.maxunicode:  # NumPy would make a str of it, which Python then cannot handle
            raise limits.damaged(where, f'{name!r} holds what is no text')
        return np.frombuffer(content, dtype, 1, file.tell()).reshape(())
    limits.check_dtype(dtype, name, where)
    return np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape, order='F' if fortran else 'C')
