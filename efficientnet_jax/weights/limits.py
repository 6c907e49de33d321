"""What a weights file may ask for, checked against its headers before anything of that size is made; and the two ways to refuse a file.

The largest published network here (EfficientNet-L2, 480 million parameters) takes 1.9 GB and, with its moving average and optimiser slots
beside it, about 7 GB in 12,000 arrays. Whoever trusts a file that needs more saves its arrays anew as .safetensors where it opens.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable

import numpy as np

from efficientnet_jax.errors import UserError

MAX_FILE_BYTES = 16 << 30
MAX_ARRAYS = 50_000  # also members of a zip and objects of an HDF5 file
MAX_HEADER_BYTES = 16 << 20  # JSON of .safetensors, pickle of .pth
MAX_NAME = 512  # characters
FLOOR_BYTES = 64 << 20  # arrays may take this much whatever the file's size
CENTRAL_ENTRY = b'PK\x01\x02'  # begins each entry of a zip's list of members
EXPANSION = 16  # and this many times the file's size: compressed weights take at least a fifth of their arrays


class Refused(UserError):
    """The file asks for something other than arrays of numbers: code, other files, or far more memory than it has content."""


def printable(text: object, most: int = 300) -> str:
    """One line of a message, from text that a file may have written: no control characters, at most `most` characters."""
    return ''.join(letter if letter.isprintable() else '?' for letter in ' '.join(str(text).split())[:most])


def damaged(where: str, error: Exception | str) -> UserError:
    """The error of a file whose content cannot be."""
    text = printable(error)
    if isinstance(error, MemoryError | RecursionError | AttributeError | TypeError | KeyError | IndexError | StopIteration):
        text = f'{type(error).__name__} {text}'.strip()
    return UserError(f'{where} is cut off or damaged: {text or type(error).__name__}. Fetch it again.')


def check_bytes(announced: int, present: int, where: str) -> None:
    """Raises Refused where arrays of `announced` bytes are too many for a file of `present` bytes."""
    if announced > max(FLOOR_BYTES, EXPANSION * present):
        raise Refused(
            f'{where} announces arrays of {announced:,} bytes in {present:,} bytes, which no weights need. If you trust it, save its '
            'arrays anew as .safetensors where it opens.'
        )


def check_count(count: int, what: str, where: str) -> None:
    """Raises Refused for more than MAX_ARRAYS."""
    if count > MAX_ARRAYS:
        raise Refused(f'{where} has {count:,} {what}; weights have at most {MAX_ARRAYS:,}.')


def check_dtype(dtype: np.dtype, name: str, where: str) -> None:
    """Raises UserError unless an array is of real numbers or truth values."""
    if dtype.kind not in 'fiub' and dtype.name != 'bfloat16':
        raise UserError(f'{where}: {name!r} has dtype {dtype}; only arrays of numbers are read.')


def check_arrays(arrays: dict[str, np.ndarray], present: int, where: str) -> None:
    """What holds for the arrays of any format. present: bytes of the file. Views count with their shape, which a conversion will fill."""
    check_count(len(arrays), 'arrays', where)
    for name, value in arrays.items():
        if not name.isprintable() or len(name) > MAX_NAME:
            raise damaged(where, f'an array is called {name[:50]!r}')
        check_dtype(value.dtype, name, where)
    check_bytes(sum(math.prod(value.shape) * value.itemsize for value in arrays.values()), present, where)


def open_zip(data: bytes, where: str) -> zipfile.ZipFile:
    """A zip with a bounded number of members, stored or deflated. Raises Refused, and what zipfile raises for a damaged one."""
    check_count(data.count(CENTRAL_ENTRY), 'members', where)  # before the list of them is made
    archive = zipfile.ZipFile(io.BytesIO(data))
    for info in archive.infolist():
        # LZMA takes memory by a number in the file.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f'{where}: {info.filename[:50]!r} is compressed by method {info.compress_type}; only deflate is read.')
    return archive


def read_members(archive: zipfile.ZipFile, names: Iterable[str], present: int, where: str) -> dict[str, bytes]:
    """{name: content} of the members with these names, whose announced sizes are checked together first."""
    infos = [archive.getinfo(name) for name in names]
    check_bytes(sum(info.file_size for info in infos), present, where)
    found = {}
    for info in infos:
        with archive.open(info) as f:
            found[info.filename] = f.read(info.file_size)  # with a number: read() inflates beyond the announced size
        if len(found[info.filename]) != info.file_size:
            raise damaged(where, f'{info.filename[:50]!r} has {len(found[info.filename])} bytes of {info.file_size}')
    return found
