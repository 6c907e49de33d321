"""Arrays of the HDF5 that Keras writes, alone or inside a .keras zip. Only data that lies in the file itself is read.

External storage, virtual data sets and links would read other files; filters inflate without a limit, and Keras writes none. As Keras does
since 3.12 (keras/src/saving/saving_lib.py, safe_get_h5_dataset), a file with any of them is refused.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import limits
from efficientnet_jax.weights.limits import Refused

MAX_DEPTH = 16  # groups inside groups; a group may hold itself
# By the number of a layer's variables, in the order of vars/0, vars/1 ...
KERAS3 = {
    1: ('kernel',),
    2: ('kernel', 'bias'),
    3: ('mean', 'variance', 'count'),
    4: ('gamma', 'beta', 'moving_mean', 'moving_variance'),
}


def arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """{'stem_conv/kernel': ...}. Raises Refused, UserError for an early Keras 3; exceptions of any kind for a damaged file."""
    import h5py

    with h5py.File(io.BytesIO(data), 'r') as file:
        reader = _Reader(where, data)
        top = dict(reader.members(file))
        if 'layers' in top:
            return _keras3(reader, top['layers'])
        return _keras2(reader, top.get('model_weights', file))


class _Reader:
    """One file: how many objects and bytes were met so far."""

    def __init__(self, where: str, data: bytes) -> None:
        self.where, self.data = where, data
        self.objects = self.announced = 0
        self.checked: set[str] = set()  # names of attributes

    def members(self, group: Any) -> Iterator[tuple[str, Any]]:
        """(name, group or data set) of a group. Raises Refused for a link to elsewhere before it is followed."""
        import h5py

        if not isinstance(group, h5py.Group):
            raise ValueError('a data set in the place of a group')
        self.objects += len(group)
        limits.check_count(self.objects, 'objects', self.where)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise Refused(f'{self.where}: {name[:50]!r} is a link to elsewhere ({type(link).__name__}); only data in the file is read.')
            yield name, group[name]

    def datasets(self, group: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
        """(last part of the name, data set) at any depth."""
        import h5py

        if depth > MAX_DEPTH:
            raise Refused(f'{self.where} has groups more than {MAX_DEPTH} deep.')
        for name, item in self.members(group):
            if isinstance(item, h5py.Group):
                yield from self.datasets(item, depth + 1)
            else:
                yield name, item

    def check_lengths(self, name: str) -> None:
        """Raises ValueError where a text in an attribute of this name would be longer than any name."""
        if name not in self.checked and max(_lengths(self.data, name), default=0) > limits.MAX_NAME:
            raise ValueError(f'an attribute {name!r} is longer than {limits.MAX_NAME} characters')
        self.checked.add(name)

    def value(self, name: str, dataset: Any) -> np.ndarray:
        """A data set's content."""
        import h5py

        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f'{name[:50]!r} is no data set')
        if dataset.external or dataset.is_virtual:
            raise Refused(f'{self.where}: the content of {name[:50]!r} lies in other files; only data in the file is read.')
        plist = dataset.id.get_create_plist()
        if plist.get_nfilters():
            raise Refused(f'{self.where}: {name[:50]!r} is compressed; unpack it: h5repack -f NONE OLD NEW.')
        if dataset.shape is None:
            raise ValueError(f'{name[:50]!r} is empty')
        limits.check_dtype(dataset.dtype, name, self.where)
        chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        self.announced += math.prod(dataset.shape) * dataset.dtype.itemsize
        limits.check_bytes(max(self.announced, chunk), len(self.data), self.where)
        return dataset[()]


def _keras2(reader: _Reader, root: Any) -> dict[str, np.ndarray]:
    """HDF5 of Keras 2 and of model.save('x.h5'): one group a layer, datasets 'kernel:0' at some depth; of rescaling only the names."""
    import h5py

    found = {}
    for layer, group in reader.members(root):
        if layer.startswith('rescaling'):
            found[layer] = np.zeros(())
        for name, dataset in reader.datasets(group) if isinstance(group, h5py.Group) else ():
            leaf = name.split(':')[0]
            found[f'{layer}/{"kernel" if leaf == "depthwise_kernel" else leaf}'] = reader.value(name, dataset)
    return found


def _keras3(reader: _Reader, layers: Any) -> dict[str, np.ndarray]:
    """HDF5 of Keras 3: layers/batch_normalization_3/vars/0..3, the layer's own name as an attribute of vars."""
    found = {}
    for _, layer in reader.members(layers):
        variables = dict(reader.members(layer)).get('vars')
        if variables is None:
            continue
        inside = dict(reader.members(variables))
        name = _text(reader, variables, 'name')
        if name is None:
            raise UserError(f'{reader.where} does not keep the names of layers (an early Keras 3); load it with Keras and save it as .h5.')
        if name.startswith('rescaling'):
            found[name] = np.zeros(())
        for i, leaf in enumerate(KERAS3.get(len(inside), ())):
            value = reader.value(str(i), inside[str(i)])
            found[f'{name}/{leaf}'] = value.view(ml_dtypes.bfloat16) if _text(reader, inside[str(i)], 'dtype') == 'bfloat16' else value
    return found


def _text(reader: _Reader, item: Any, name: str) -> str | None:
    """An attribute that is a short text, or None where there is none."""
    import h5py

    if name not in item.attrs:
        return None
    attribute = item.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.itemsize > limits.MAX_NAME:
        raise ValueError(f'the attribute {name!r} is no text')
    if attribute.get_type().get_class() == h5py.h5t.VLEN or attribute.dtype.hasobject:
        reader.check_lengths(name)
    text = item.attrs[name]
    text = text.decode() if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise ValueError(f'the attribute {name!r} is no text')
    return text


def _lengths(data: bytes, name: str) -> Iterator[int]:
    """Of all texts that an attribute of this name may have in a file, by the layout of an attribute message (HDF5 format, IV.A.2.m).

    HDF5 makes room for a text of variable length, up to 4 GiB, by the number in front of its place, before it looks there.
    """
    stored = name.encode() + b'\0'
    for match in re.finditer(re.escape(stored), data):
        for version, head, multiple in ((1, 8, 8), (2, 8, 1), (3, 9, 1)):
            start = match.start() - head
            if start >= 0 and data[start] == version and int.from_bytes(data[start + 2 : start + 4], 'little') == len(stored):
                sizes = len(stored), *(int.from_bytes(data[start + at : start + at + 2], 'little') for at in (4, 6))
                at = start + head + sum(-(-size // multiple) * multiple for size in sizes)
                yield int.from_bytes(data[at : at + 4], 'little')
