"""Arrays by name from any weights file. What a file is, is read from its content. A file can at worst be refused, by its name."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import stat
from typing import Any, NamedTuple

import numpy as np

from efficientnet_jax.errors import NotThere, StorageError, UserError
from efficientnet_jax.weights import containers, hdf5, limits, pickled, tensorflow_checkpoint

READABLE = (
    'safetensors, .npz, PyTorch .pth/.pt, Keras .h5/.weights.h5/.keras, a TensorFlow checkpoint (prefix or folder), '
    'a workdir or checkpoint of this project, or hf_hub:OWNER/NAME'
)
HINTS = {b'version https://git-lfs': 'a Git LFS pointer: fetch it with git lfs pull', b'\x1f\x8b': 'gzip: unpack it first'}
MAX_CONFIG_BYTES = 1 << 20


class File(NamedTuple):
    """What was read."""

    where: str  # for messages
    kind: str  # 'safetensors', 'npz', 'torch', 'keras', 'tensorflow' or 'checkpoint'
    arrays: dict[str, np.ndarray]  # by the names that the file has, without counters and optimiser slots
    description: dict[str, Any] | None = None  # what this project wrote beside the arrays
    timm_config: dict[str, Any] | None = None  # config.json of timm's repositories
    hints: str = ''  # names that may tell the flavour: the path, the repository, timm's name of the model


def read(path: str) -> File:
    """Reads a local path or hf_hub:OWNER/NAME. Raises StorageError (NotThere where nothing is), or UserError that says what was found."""
    if path.startswith('hf_hub:'):
        return _hub(path)
    if '://' in path:
        return _remote(path)
    path = os.path.expanduser(path)
    prefix = tensorflow_checkpoint.prefix(path)
    if prefix is not None:
        return _tensorflow(prefix, [f'{prefix}.index', *glob.glob(f'{glob.escape(prefix)}.data-*')])
    if os.path.isdir(path):
        return _folder(path)
    return _content(_bytes(path), path)._replace(hints=path, timm_config=_timm_config(path))


@contextlib.contextmanager
def named(where: str):
    """The one catch for a file: what is no deliberate error becomes 'WHERE is cut off or damaged'. No list of exceptions would be complete."""
    try:
        yield
    except (UserError, StorageError):
        raise
    except Exception as error:
        raise limits.damaged(where, error) from error


def _bytes(path: str) -> bytes:
    try:
        with open(path, 'rb', opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as f:  # or opening a pipe would wait
            state = os.fstat(f.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise StorageError(f'{path} is no regular file. Weights can be {READABLE}.')
            if state.st_size > limits.MAX_FILE_BYTES:
                raise StorageError(f'{path} has {state.st_size:,} bytes; at most {limits.MAX_FILE_BYTES:,} are read.')
            return f.read()
    except FileNotFoundError as error:
        raise NotThere(f'{path} is not there. Weights can be {READABLE}.') from error
    except StorageError:
        raise
    except Exception as error:  # no permission, a disk that fails, no memory for it
        raise StorageError(f'{path} cannot be read ({getattr(error, "strerror", None) or type(error).__name__}).') from error


def _content(data: bytes, where: str) -> File:
    with named(where):
        kind, arrays, description = _parsed(data, where)
        # PyTorch's update counters are read by no forward pass.
        arrays = {name: value for name, value in arrays.items() if not name.endswith('num_batches_tracked')}
        limits.check_arrays(arrays, len(data), where)
    return File(where, kind, arrays, description)


def _parsed(data, where):
    """(kind, arrays, description) by the first bytes."""
    if data[:4] == b'PK\x03\x04':
        return _zip(data, where)
    if data[:8] == b'\x89HDF\r\n\x1a\n':
        return 'keras', hdf5.arrays(data, where), None
    if data[:1] == b'\x80' and data[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'torch', pickled.arrays(data, where), None
    if data[8:9] == b'{':
        return 'safetensors', *containers.safetensors(data, where)
    hint = next((text for start, text in HINTS.items() if data.startswith(start)), None)
    saw = f'it is {hint}' if hint else f'it has {len(data)} bytes that begin with {data[:16]!r}'
    raise UserError(f'{where} is no weights file that can be read; {saw}. Weights can be {READABLE}.')


def _zip(data, where):
    with limits.open_zip(data, where) as archive:
        members = archive.namelist()
        if any(name.endswith('/data.pkl') for name in members):
            return 'torch', pickled.arrays(data, where), None
        if 'model.weights.h5' in members:
            inner = limits.read_members(archive, ['model.weights.h5'], len(data), where)['model.weights.h5']
            return 'keras', hdf5.arrays(inner, where), None
    if members and all(name.endswith('.npy') for name in members):
        return 'npz', *containers.npz(data, where)
    listed = ', '.join(repr(name[:50]) for name in members[:5]) or 'nothing'
    raise UserError(f'{where} is a zip without weights; it holds {listed}. Weights can be {READABLE}.')


def _tensorflow(prefix: str, paths: list[str]) -> File:
    """paths: the checkpoint's files."""
    for path in paths:
        if '://' not in path and not os.path.isfile(path):
            raise NotThere(f'{path} is not there, or no regular file; a TensorFlow checkpoint is PREFIX.index and PREFIX.data-*.')
    with named(prefix):
        present = sum(_size(path) for path in paths)
        if present > limits.MAX_FILE_BYTES:
            raise StorageError(f'{prefix} has {present:,} bytes; at most {limits.MAX_FILE_BYTES:,} are read.')
        arrays = tensorflow_checkpoint.arrays(prefix, present)
        limits.check_arrays(arrays, present, prefix)
    return File(prefix, 'tensorflow', arrays, hints=prefix)


def _size(path):
    if '://' not in path:
        return os.path.getsize(path)
    import tensorflow as tf

    return tf.io.gfile.stat(path).length


def _folder(path):
    """A workdir or checkpoint of this project, or a downloaded repository."""
    inside = sorted(os.listdir(path))
    if 'checkpoints' in inside or '_CHECKPOINT_METADATA' in inside:
        from efficientnet_jax.weights import from_workdir

        return File(path, 'checkpoint', *from_workdir.read(path))
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if name in inside:
            return read(os.path.join(path, name))
    raise UserError(f'{path} is a folder without weights; it holds {", ".join(inside[:8]) or "nothing"}. Weights can be {READABLE}.')


def _timm_config(path):
    """timm's config.json beside the weights, with the model's name; None where there is none, or another program's."""
    beside = os.path.join(os.path.dirname(path), 'config.json')
    if not os.path.isfile(beside):
        return None
    try:
        with open(beside, 'rb') as f:
            config = json.loads(f.read(MAX_CONFIG_BYTES))
    except Exception:  # it need not be timm's, nor JSON
        return None
    if not (isinstance(config, dict) and isinstance(config.get('pretrained_cfg'), dict)):
        return None
    return config if isinstance(config.get('architecture'), str) else None


def _hub(path):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f'{path} needs huggingface_hub, which is not installed: pip install huggingface_hub.') from error
    repository, _, revision = path.removeprefix('hf_hub:').partition('@')
    fetch = lambda name: huggingface_hub.hf_hub_download(repository, name, revision=revision or None)  # noqa: E731
    problems = []
    for name in ('model.safetensors', 'pytorch_model.bin'):
        try:
            local = fetch(name)
        except Exception as error:  # the library raises its own kinds for no network, no repository, no file
            problems.append(f'{name}: {error}')
            continue
        try:
            fetch('config.json')  # lands beside the weights
        except Exception as error:
            problems.append(f'config.json: {error}')
        file = read(local)
        return file._replace(where=path, hints=repository)
    raise NotThere(f'{path} has no weights that could be fetched ({"; ".join(problems)}).')


def _remote(path):
    """A URL such as gs://BUCKET/FILE, through TensorFlow's file systems; a checkpoint prefix is left to TensorFlow itself."""
    import tensorflow as tf

    try:
        if tf.io.gfile.exists(path + '.index'):
            return _tensorflow(path, [f'{path}.index', *tf.io.gfile.glob(f'{path}.data-*')])
        if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
            raise NotThere(f'{path} is no file and no TensorFlow checkpoint. Weights can be {READABLE}.')
        if _size(path) > limits.MAX_FILE_BYTES:
            raise StorageError(f'{path} has {_size(path):,} bytes; at most {limits.MAX_FILE_BYTES:,} are read.')
        with tf.io.gfile.GFile(path, 'rb') as f:
            data = f.read()
    except (UserError, StorageError):
        raise
    except Exception as error:  # the file systems raise their own kinds
        raise StorageError(f'{path} cannot be read: {limits.printable(error)}') from error
    return _content(data, path)._replace(hints=path)
