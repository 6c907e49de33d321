"""PyTorch .pth files without PyTorch and without running anything that is in them.

A .pth file is a pickle, and a pickle can call any function. The reader here looks up names in a short table of its own (tensors, their
storages, an ordered dict) and refuses the file at the first other name, before anything is called. Both layouts are read: the zip of
PyTorch 1.6 and later, and the stream of pickles before it. Source: torch/serialization.py, torch/_utils.py.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

from efficientnet_jax.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    'FloatStorage': np.dtype('<f4'),
    'DoubleStorage': np.dtype('<f8'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}


class Refused(UserError):
    """The pickle asks for something other than tensors."""


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Opaque:
    """Stands for an object whose content is not needed, such as the command line of a training script."""


def _tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor, *_):
    return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, where) -> None:
        super().__init__(file, encoding='utf-8')
        self.where = where
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        allowed = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): _tensor,
            ('torch._utils', '_rebuild_parameter'): _parameter,
            ('torch', 'Size'): tuple,
            ('argparse', 'Namespace'): _Opaque,
        }
        if (module, name) not in allowed:
            raise Refused(
                f'{self.where} asks to load {module}.{name}, which could run code; only tensors are read. If you trust the file, '
                'save its tensors anew where it opens: safetensors.torch.save_file(state_dict, "weights.safetensors").'
            )
        return allowed[module, name]

    def persistent_load(self, pid):
        # ('storage', type, key, device, count), and the view of another storage in old files.
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage' and isinstance(pid[1], np.dtype)):
            raise Refused(f'{self.where} holds a persistent object that is not a tensor storage.')
        if len(pid) > 5 and pid[5] is not None:
            raise Refused(f'{self.where} holds a view of another storage (PyTorch before 0.4); save it anew with a newer PyTorch.')
        return self.storages.setdefault(str(pid[2]), _Storage(pid[1], str(pid[2]), int(pid[4])))


def read(data: bytes, where: str):
    """The object in a .pth file, with NumPy arrays in the place of tensors. Raises Refused, or UserError for a damaged file."""
    try:
        return _read_zip(data, where) if data[:2] == b'PK' else _read_stream(data, where)
    except Refused:
        raise
    except (EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f'{where} is cut off or damaged: {error}. Fetch it again.') from error


def _read_zip(data, where):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith('/data.pkl')]
        folder = name.removesuffix('data.pkl')
        if folder + 'byteorder' in archive.namelist() and archive.read(folder + 'byteorder') != b'little':
            raise UserError('its numbers are big-endian')
        unpickler = _Unpickler(io.BytesIO(archive.read(name)), where)
        content = unpickler.load()
        raw = {key: archive.read(f'{folder}data/{key}') for key in unpickler.storages}
    return _fill(content, {key: _values(storage, raw[key]) for key, storage in unpickler.storages.items()})


def _read_stream(data, where):
    file = io.BytesIO(data)
    heads = [_Unpickler(file, where).load() for _ in range(3)]  # magic number, protocol, machine
    if heads[0] != LEGACY_MAGIC:
        raise Refused(f'{where} is a plain pickle, not a PyTorch file; only tensors are read.')
    unpickler = _Unpickler(file, where)
    content = unpickler.load()
    values = {}
    for key in _Unpickler(file, where).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), 'little') != storage.elements:
            raise UserError(f'storage {key} has another length than announced')
        values[key] = _values(storage, file.read(storage.elements * storage.dtype.itemsize))
    return _fill(content, values)


def _values(storage, raw):
    if len(raw) < storage.elements * storage.dtype.itemsize:
        raise UserError(f'storage {storage.key} has {len(raw)} bytes of {storage.elements * storage.dtype.itemsize}')
    return np.frombuffer(raw, storage.dtype, storage.elements)


def _fill(content, values):
    """Replaces tensors by arrays, in dicts and lists at any depth."""
    if isinstance(content, _Tensor):
        return _array(content, values[content.storage.key])
    if isinstance(content, dict):
        return {key: _fill(value, values) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_fill(value, values) for value in content]
    return content


def _array(tensor, values):
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or min(sizes) < 0:
        raise UserError(f'a tensor of shape {tensor.shape} with strides {tensor.strides}')
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= len(values):
        raise UserError(f'a tensor reaches element {last} of a storage of {len(values)}')
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
