"""What a checkpoint must hold: a sum of the bits of every array, and the size and CRC-32 of every file.

The sums are of the arrays in memory when they were saved: they decide whether what was restored is right, whatever the file format
notices. The checksums of the files decide why restoring failed: files that are what was written are never called damaged, so that
too many open files, a full memory or a busy device cannot cost a checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from efficientnet_jax.errors import NotFinite, StorageError
from efficientnet_jax.runs import storage
from efficientnet_jax.runs.hosts import everywhere

CONTENTS = 'contents.json'
CHUNK_BYTES = 1 << 20


class NotFiniteState(NotFinite):
    """A state that must not be saved: an update has left NaN or infinities in it."""


class Contents(NamedTuple):
    """The content of STEP/contents.json."""

    arrays: dict[str, int]  # 'params/stem/kernel' -> bit sum
    files: dict[str, list[int]]  # 'default/manifest.ocdbt' -> [bytes, CRC-32]


def seal(folder: pathlib.Path, arrays: dict[str, int]) -> None:
    """Writes contents.json into a folder that holds everything else, and returns when all of it is on the disk."""
    files = {}
    for path, _, names in os.walk(folder):
        for name in names:
            file = pathlib.Path(path, name)
            files[str(file.relative_to(folder))] = checksum(file, sync=True)
        storage.sync_folder(path)
    storage.write_json(str(folder / CONTENTS), {'arrays': arrays, 'files': dict(sorted(files.items()))})


def read_contents(folder: pathlib.Path) -> Contents:
    """Raises ValueError when the file is not of this form, OSError when it cannot be read."""
    content = json.loads((folder / CONTENTS).read_bytes().decode())
    arrays, files = (content.get(name) if isinstance(content, dict) else None for name in Contents._fields)
    well_formed = isinstance(arrays, dict) and isinstance(files, dict) and all(isinstance(sum, int) for sum in arrays.values())
    if not (well_formed and all(isinstance(pair, list) and len(pair) == 2 for pair in files.values())):
        raise ValueError(f'{CONTENTS} has another form')
    return Contents(arrays, files)


DAMAGES_SHOWN = 20


def damages(folder: pathlib.Path) -> list[str]:
    """What differs in a checkpoint's files from what was written, a phrase each, the first 20; nothing where they are intact.

    A checkpoint gets its name only after contents.json is in it, so one without is damaged (or of a version before this file).
    Raises StorageError for a file that is there and cannot be read: that says nothing about what it holds.
    """
    try:
        contents = read_contents(folder)
    except (FileNotFoundError, NotADirectoryError):
        return [f'{CONTENTS} is missing']
    except ValueError:  # of JSON, of UTF-8, or of its form
        return [f'{CONTENTS} is not what was written']
    except OSError as error:
        raise unreadable(folder / CONTENTS, error) from error
    found = []
    for name, (size, crc) in contents.files.items():
        if len(found) == DAMAGES_SHOWN:
            break
        try:
            size_there, crc_there = checksum(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            found.append(f'{name} is missing')
            continue
        except OSError as error:
            raise unreadable(folder / name, error) from error
        if size_there != size:
            found.append(f'{name} has {size_there} bytes instead of {size}')
        elif crc_there != crc:
            found.append(f'{name} has other bytes than were written')
    return found


def unreadable(path: pathlib.Path, error: OSError) -> StorageError:
    """The error for a file that is there and cannot be read."""
    return StorageError(
        f'{path} cannot be read ({error.strerror or error}). That says nothing about its content, so nothing was moved; '
        'mend the cause and give the same command again.'
    )


def checksum(path: pathlib.Path, sync: bool = False) -> list[int]:
    """[bytes, CRC-32] of a file. sync: also wait until it is on the disk."""
    size = crc = 0
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        if sync:
            os.fsync(file.fileno())
    return [size, crc]


def check_finite(tree) -> None:
    """Raises NotFiniteState naming arrays with NaN or infinities, on every host. All hosts call it."""
    bad = [
        array_name(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) and not all(np.isfinite(piece).all() for piece in _pieces(leaf))
    ]
    if not everywhere(not bad):
        raise NotFiniteState(f'{len(bad)} arrays hold NaN or infinities: {", ".join(bad[:4]) or "those on another host"}')


def _pieces(leaf) -> list[Any]:
    """The parts of an array that are on this host, each counted once over all devices and hosts."""
    return [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0] if isinstance(leaf, jax.Array) else [leaf]


def bit_sums(tree) -> dict[str, int]:
    """{'params/stem/conv/kernel': sum of its 32-bit words modulo 2^64, ...}, the same on all hosts and for every sharding.

    A change of one word always shows. Computed on the host: as a jitted function of a thousand arrays it takes longer to
    compile than a small model's whole step. All hosts call it.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = np.zeros(len(leaves), np.uint64)
    for i, (_, leaf) in enumerate(leaves):
        for piece in _pieces(leaf):
            raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            words = raw.view(np.uint32) if raw.size % 4 == 0 else raw
            sums[i] += np.sum(words, dtype=np.uint64)
    if jax.process_count() > 1:
        halves = np.stack([sums & np.uint64(0xFFFFFFFF), sums >> np.uint64(32)]).astype(np.uint32)  # JAX has no 64 bits by default
        halves = multihost_utils.process_allgather(halves).astype(np.uint64)  # [hosts, 2, arrays]
        sums = np.sum(halves[:, 0] + (halves[:, 1] << np.uint64(32)), axis=0, dtype=np.uint64)
    return {array_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def array_name(path) -> str:
    """'params/stem/kernel' of a tree path, its parts as Orbax names them: dict key, attribute or index."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
