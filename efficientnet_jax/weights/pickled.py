"""PyTorch .pth files without PyTorch and without running anything that is in them.

A .pth file is a pickle, and a pickle can call any function. Here it is read as data (pickle_data.py), in which a short table of names has
a meaning: tensors, their storages, an ordered dict. The file is refused at the first other name. Both layouts are read: the zip of
PyTorch 1.6 and later, and the stream of pickles before it. Source: torch/serialization.py, torch/_utils.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import limits, pickle_data
from efficientnet_jax.weights.limits import Refused
from efficientnet_jax.weights.pickle_data import Name

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    'FloatStorage': '<f4', 'DoubleStorage': '<f8', 'HalfStorage': '<f2', 'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': '<i8',
    'IntStorage': '<i4', 'ShortStorage': '<i2', 'CharStorage': 'i1', 'ByteStorage': 'u1', 'BoolStorage': '?',
}  # fmt: skip
# timm's order: the moving average evaluates better than the raw weights beside it.
STATE_DICTS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
WRAPPERS = ('module.', '_orig_mod.')  # DistributedDataParallel, torch.compile


class _Storage(NamedTuple):
    type: str  # a key of DTYPES
    key: str
    elements: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.type])

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, offset, shape, strides, *_):
    if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError('a tensor without a storage or a shape')
    if any(type(number) is not int for number in (offset, *shape, *strides)):
        raise ValueError('a tensor whose shape has other things than whole numbers')
    return _Tensor(storage, offset, shape, strides)


def _ordered(pairs=()):
    return {pickle_data.checked_key(key): value for key, value in pairs}


CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ('collections', 'OrderedDict'): _ordered,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
    ('torch', 'Size'): lambda sizes=(): sizes,
    ('argparse', 'Namespace'): lambda: None,  # the command line of a training script
}


class _Reader:
    """One file: what its names, calls and storages mean."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.storages: dict[str, _Storage] = {}

    def load(self, file) -> Any:
        """The next pickle of a file."""
        return pickle_data.load(file, self.where, self.call, self.storage, self.known)

    def known(self, name: Name) -> None:
        """Raises Refused for a name that is not in the tables."""
        if (name.module, name.name) not in CALLS and not (name.module == 'torch' and name.name in DTYPES):
            raise Refused(
                f'{self.where} asks to load {limits.printable(".".join(name))}, which could run code; only tensors are read. If you trust the file, '
                'save its tensors anew where it opens: safetensors.torch.save_file(state_dict, "weights.safetensors").'
            )

    def call(self, name: Name, arguments: tuple) -> Any:
        """What a call of a known name makes."""
        return CALLS[name.module, name.name](*arguments)

    def storage(self, pid: Any) -> _Storage:
        """Of ('storage', type, key, device, count), and the view of another storage in old files."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage' and isinstance(pid[1], Name) and pid[1].name in DTYPES):
            raise Refused(f'{self.where} holds a persistent object that is not a tensor storage.')
        if len(pid) > 5 and pid[5] is not None:
            raise Refused(f'{self.where} holds a view of another storage (PyTorch before 0.4); save it anew with a newer PyTorch.')
        if type(pid[2]) not in (str, int) or type(pid[4]) is not int or pid[4] < 0:
            raise ValueError(f'a storage of {pid[4]!r} elements')
        return self.storages.setdefault(str(pid[2]), _Storage(pid[1].name, str(pid[2]), pid[4]))


def arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The tensors of the state dict in a .pth file.

    Raises Refused, or UserError for a file without tensors; exceptions of any kind for a damaged one, which files.read names.
    """
    found = _from_zip(data, where) if data[:2] == b'PK' else _from_stream(data, where)
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): value for name, value in found.items()}
    return found


def _from_zip(data, where):
    with limits.open_zip(data, where) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith('/data.pkl')]
        folder = name.removesuffix('data.pkl')
        order = [n for n in archive.namelist() if n == folder + 'byteorder']
        if order and limits.read_members(archive, order, len(data), where)[order[0]] != b'little':
            raise limits.damaged(where, 'its numbers are big-endian')
        if archive.getinfo(name).file_size > limits.MAX_HEADER_BYTES:
            raise Refused(
                f'{where} has a pickle of {archive.getinfo(name).file_size:,} bytes; at most {limits.MAX_HEADER_BYTES:,} are read.'
            )
        pickle = limits.read_members(archive, [name], len(data), where)[name]
        tensors = _state_dict(_Reader(where).load(io.BytesIO(pickle)), where)
        keys = {f'{folder}data/{tensor.storage.key}' for tensor in tensors.values()}
        raw = limits.read_members(archive, sorted(keys), len(data), where)
    return {name: _array(tensor, raw[f'{folder}data/{tensor.storage.key}']) for name, tensor in tensors.items()}


def _from_stream(data, where):
    file, reader = io.BytesIO(data[: limits.MAX_HEADER_BYTES]), _Reader(where)
    heads = [reader.load(file) for _ in range(3)]  # magic number, protocol, machine
    if heads[0] != LEGACY_MAGIC:
        raise Refused(f'{where} is a plain pickle, not a PyTorch file; only tensors are read.')
    tensors = _state_dict(reader.load(file), where)
    order = [reader.storages[key] for key in reader.load(file)]
    raw, at = {}, file.tell()
    for storage in order:  # each is its number of elements, 8 bytes, and the elements
        if int.from_bytes(data[at : at + 8], 'little') != storage.elements:
            raise limits.damaged(where, f'storage {storage.key[:50]!r} has another length than announced')
        raw[storage.key] = memoryview(data)[at + 8 : at + 8 + storage.nbytes]
        at += 8 + storage.nbytes
    return {name: _array(tensor, raw[tensor.storage.key]) for name, tensor in tensors.items()}


def _state_dict(content, where) -> dict[str, _Tensor]:
    """The tensors of the best state dict in what torch.save was given; nothing deeper is looked at."""
    if not isinstance(content, dict):
        raise UserError(f'{where} holds a {type(content).__name__}, not a state dict.')
    chosen = next((content[key] for key in STATE_DICTS if isinstance(content.get(key), dict)), content)
    tensors = {name: value for name, value in chosen.items() if type(value) is _Tensor and type(name) is str}
    if not tensors:
        raise UserError(f'{where} holds no tensors; its keys: {", ".join(repr(key)[:50] for key in list(chosen)[:8])}.')
    limits.check_count(len(tensors), 'tensors', where)
    return tensors


def _array(tensor: _Tensor, raw) -> np.ndarray:
    """A view of a storage's bytes. Raises ValueError where it reaches outside them."""
    storage = tensor.storage
    if len(raw) < storage.nbytes:
        raise ValueError(f'storage {storage.key[:50]!r} has {len(raw)} bytes of {storage.nbytes}')
    if len(tensor.shape) != len(tensor.strides) or min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f'a tensor of shape {tensor.shape} with strides {tensor.strides}')
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and last >= storage.elements:
        raise ValueError(f'a tensor reaches element {last} of a storage of {storage.elements}')
    values = np.frombuffer(raw, storage.dtype, storage.elements)
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
