"""Variables of a TensorFlow checkpoint, by its prefix: two kinds of file, PREFIX.index and PREFIX.data-00000-of-00001."""

from __future__ import annotations

import codecs
import os
import re

import numpy as np

from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import bundles, limits

SLOTS = ('/RMSProp', '/RMSProp_1', '/Momentum', '/Adam', '/Adam_1')
AVERAGE = '/ExponentialMovingAverage'
LATEST = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
MAX_STATE_BYTES = 1 << 20  # of the file `checkpoint`, which lists the last few prefixes


def prefix(path: str) -> str | None:
    """The prefix of a TensorFlow checkpoint that a path names, or None."""
    for suffix in ('.index', '.meta', '.data-00000-of-00001'):
        if path.endswith(suffix):
            return path.removesuffix(suffix)
    if os.path.exists(path + '.index'):
        return path
    return _newest(path) if os.path.isdir(path) else None


def _newest(folder: str) -> str | None:
    """The prefix in a folder that its file `checkpoint` names, by the last part of it alone: the folder may have been moved or copied."""
    prefixes = sorted(name.removesuffix('.index') for name in os.listdir(folder) if name.endswith('.index'))
    if len(prefixes) < 2:
        return os.path.join(folder, prefixes[0]) if prefixes else None
    state, named = os.path.join(folder, 'checkpoint'), None
    if os.path.isfile(state):
        with open(state, 'rb') as f:
            match = LATEST.search(f.read(MAX_STATE_BYTES))
        if match is not None:
            try:
                named = os.path.basename(os.fsdecode(codecs.escape_decode(match[1])[0]).replace('\\', '/'))
            except ValueError as error:
                raise limits.damaged(state, error) from error
    if named not in prefixes:
        names = (
            f'its file `checkpoint` names {named!r}, which is not there' if named else f'it holds {len(prefixes)} TensorFlow checkpoints'
        )
        raise UserError(f'{folder}: {names}; name one of {", ".join(prefixes[:5])}.')
    return os.path.join(folder, named)


def arrays(prefix: str, present: int) -> dict[str, np.ndarray]:
    """Variables without optimiser slots, the moving average where there is one, without the model's scope and 'tpu_' and 'mnas_'.

    present: bytes of the checkpoint's files. Raises Refused, UserError; exceptions of any kind for a damaged checkpoint.
    """
    bundle = bundles.Bundle(prefix)
    names = [name for name in bundle.entries if '/' in name and not name.endswith(SLOTS)]
    averaged = {name.removesuffix(AVERAGE) for name in names if name.endswith(AVERAGE)}
    chosen = {name: name + AVERAGE if name in averaged else name for name in names if not name.endswith(AVERAGE)}
    limits.check_bytes(sum(bundle.entries[name].size for name in chosen.values()), present, prefix)
    found = {}
    for name, source in chosen.items():
        short = name.split('/', 1)[1].replace('tpu_batch_normalization', 'batch_normalization').replace('mnas_', '')
        found[short.replace('depthwise_kernel', 'kernel')] = bundle.tensor(source)
    return found
