"""What a checkpoint must hold: the arrays of the model, bit for bit, and whether a failure to read them is damage or the machine's fault."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from efficientnet_jax.errors import NotFinite, StorageError, UserError

# What the operating system says of a file that is gone or no file; all else that it says is about the machine, and the file may be intact.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# Of TensorStore and XLA, where they give no number of the operating system's.
OF_THE_MACHINE = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CANCELLED', 'ABORTED')


class ShapeMismatch(UserError):
    """A checkpoint whose arrays have other names or shapes than the model's."""


class Damaged(StorageError):
    """A checkpoint whose bits are not those that were saved."""


class NotFiniteState(NotFinite):
    """A state that must not be saved: an update has left NaN or infinities in it."""


def of_the_machine(error: BaseException, files: str) -> bool:
    """Whether a failure to read a checkpoint says something of this machine (open files, memory, permissions, a device) and not of it.

    files: its folder. Where the error alone does not tell, all files of it are read: what the machine cannot read now is not damaged.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        number = number or next((int(n) for n in re.findall(r'OS error (\d+)', str(seen))), None)
        if isinstance(seen, MemoryError) or (number is not None and number not in GONE):
            return True
        if number is None and any(word in str(seen)[:400] for word in OF_THE_MACHINE):
            return True
        seen = seen.__cause__ or seen.__context__
    try:
        for folder, _, names in os.walk(files, onerror=_raise):
            for name in names:
                with open(os.path.join(folder, name), 'rb') as file:
                    while file.read(1 << 24):
                        pass
    except OSError as problem:
        return problem.errno not in GONE
    return False


def _raise(error: OSError) -> None:
    raise error


def check_finite(tree) -> None:
    """Raises NotFiniteState naming an array with NaN or infinities, on every host the same."""
    bad = [
        '/'.join(_key(k) for k in path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) and not all(np.isfinite(piece).all() for piece in _pieces(leaf))
    ]
    found = bool(bad)
    if jax.process_count() > 1:
        found = bool(np.any(multihost_utils.process_allgather(np.asarray(found))))
    if found:
        raise NotFiniteState(f'{len(bad)} arrays hold NaN or infinities, for example {bad[0] if bad else "one on another host"}')


def _pieces(leaf) -> list[Any]:
    """The parts of an array that are on this host, each counted once over all devices and hosts."""
    return [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0] if isinstance(leaf, jax.Array) else [leaf]


def bit_sums(tree) -> dict[str, int]:
    """{'params/stem/conv/kernel': sum of its 32-bit words modulo 2^64, ...}, the same on all hosts and for every sharding.

    A change of one word always shows. Computed on the host: as a jitted function of a thousand arrays it takes longer to
    compile than a small model's whole step.
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
    return {'/'.join(_key(k) for k in path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def flat_shapes(tree) -> dict[str, tuple[int, ...]]:
    """{'params/stem/kernel': (3, 3, 3, 32), ...} of a tree of arrays or of Orbax metadata."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))[0]
    return {'/'.join(_key(k) for k in path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, 'shape')}


def _key(k) -> str:
    """A tree path's part as Orbax names it: dict key, attribute or index."""
    return str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))


def check_shapes(saved, wanted, where: str) -> None:
    """Raises ShapeMismatch with the diff unless both trees have the same weights (params and batch_stats)."""
    have = {k: v for k, v in flat_shapes(saved).items() if k.startswith(('params/', 'batch_stats/'))}
    want = {k: v for k, v in flat_shapes(wanted).items() if k.startswith(('params/', 'batch_stats/'))}
    missing, unused = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    shapes = [f'{k} {have[k]} there, {want[k]} here' for k in sorted(want.keys() & have.keys()) if want[k] != have[k]]
    if not (missing or unused or shapes):
        return
    classifier = 'params/classifier/bias'
    classes = ''
    if classifier in have and classifier in want and have[classifier] != want[classifier]:
        classes = f' It was trained for {have[classifier][0]} classes; the data set here has {want[classifier][0]}.'
    parts = [
        f'{len(x)} {name}: {"; ".join(x[:4])}' for name, x in (('missing', missing), ('unused', unused), ('of other shape', shapes)) if x
    ]
    raise ShapeMismatch(f'The checkpoint {where} does not fit this model.{classes} {". ".join(parts)}. Use the config it was trained with.')


def check_names(saved: set[str], wanted, where: str) -> None:
    """Raises ShapeMismatch where a whole state has arrays of other names: of another optimizer, or another version of it."""
    have, want = saved, set(flat_shapes(wanted))
    if have != want:
        differ = sorted(have ^ want)
        raise ShapeMismatch(
            f'The checkpoint {where} holds the state of another optimizer, or of another version of its library: {len(differ)} arrays are in one '
            f'alone, for example {differ[0]}. Use the config and versions that it was trained with; evaluate and predict need the weights alone.'
        )
