"""Arrays by name from any weights file. What a file is, is read from its content; no file can run code."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from efficientnet_jax.errors import NotThere, UserError
from efficientnet_jax.weights import pickled

READABLE = (
    'safetensors, .npz, PyTorch .pth/.pt, Keras .h5/.weights.h5/.keras, a TensorFlow checkpoint (prefix or folder), '
    'a workdir or checkpoint of this project, or hf_hub:OWNER/NAME'
)


class File(NamedTuple):
    """What was read."""

    where: str  # for messages
    kind: str  # 'safetensors', 'npz', 'torch', 'keras', 'tensorflow' or 'checkpoint'
    arrays: dict[str, np.ndarray]  # by the names that the file has, without counters and optimiser slots
    description: dict[str, Any] | None = None  # what this project wrote beside the arrays
    timm_config: dict[str, Any] | None = None  # config.json of timm's repositories
    hints: str = ''  # names that may tell the flavour: the path, the repository, timm's name of the model


def read(path: str) -> File:
    """Reads a local path or hf_hub:OWNER/NAME. Raises FileNotFoundError, or UserError that says what was found there."""
    if path.startswith('hf_hub:'):
        return _hub(path)
    if '://' in path:
        return _remote(path)
    path = os.path.expanduser(path)
    prefix = _tensorflow_prefix(path)
    if prefix is not None:
        return _tensorflow(prefix)
    if os.path.isdir(path):
        return _folder(path)
    if not os.path.exists(path):
        raise NotThere(f'{path} is not there. Weights can be {READABLE}.')
    with open(path, 'rb') as f:
        return _content(f.read(), path)._replace(hints=path, timm_config=_timm_config(path))


def _content(data: bytes, where: str) -> File:
    if data[:4] == b'PK\x03\x04':
        return _zip(data, where)
    if data[:8] == b'\x89HDF\r\n\x1a\n':
        return _hdf5(data, where)
    if data[:1] == b'\x80' and data[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return _torch(data, where)
    if len(data) > 8 and data[8:9] == b'{':
        return _safetensors(data, where)
    hints = {b'version https://git-lfs': 'a Git LFS pointer: fetch it with git lfs pull', b'\x1f\x8b': 'gzip: unpack it first'}
    hint = next((text for start, text in hints.items() if data.startswith(start)), None)
    saw = f'it is {hint}' if hint else f'it has {len(data)} bytes that begin with {data[:16]!r}'
    raise UserError(f'{where} is no weights file that can be read; {saw}. Weights can be {READABLE}.')


def _damaged(where, error) -> UserError:
    return UserError(f'{where} is cut off or damaged: {error}. Fetch it again.')


def _safetensors(data, where):
    import safetensors

    try:
        entries = dict(safetensors.deserialize(data))
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')]).get('__metadata__', {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise _damaged(where, error) from error
    names = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'bfloat16', 'I64': 'i8', 'I32': 'i4', 'U8': 'u1', 'I8': 'i1', 'BOOL': '?'}
    arrays = {}
    for name, entry in entries.items():
        if entry['dtype'] not in names:
            raise UserError(f'{where}: {name} has dtype {entry["dtype"]}; readable: {", ".join(names)}.')
        arrays[name] = np.frombuffer(entry['data'], _dtype(names[entry['dtype']])).reshape(entry['shape'])
    description = json.loads(metadata['efficientnet_jax']) if 'efficientnet_jax' in metadata else None
    return File(where, 'safetensors', _cleaned(arrays), description)


def _dtype(name):
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == 'bfloat16' else np.dtype(name)


def _zip(data, where):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.namelist()
            if any(name.endswith('/data.pkl') for name in members):
                return _torch(data, where)
            if 'model.weights.h5' in members:
                return _hdf5(archive.read('model.weights.h5'), where)
            if members and all(name.endswith('.npy') for name in members):
                return _npz(data, where)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(where, error) from error
    raise UserError(f'{where} is a zip without weights; it holds {", ".join(members[:5])}. Weights can be {READABLE}.')


def _npz(data, where):
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        if 'Object arrays' in str(error) or 'pickle' in str(error):
            raise pickled.Refused(f'{where} holds Python objects, which could run code; only arrays of numbers are read.') from error
        raise _damaged(where, error) from error
    description = arrays.pop('efficientnet_jax', None)
    return File(where, 'npz', _cleaned(arrays), None if description is None else json.loads(str(description)))


def _torch(data, where):
    content = pickled.read(data, where)
    if not isinstance(content, dict):
        raise UserError(f'{where} holds a {type(content).__name__}, not a state dict.')
    # timm's order: the moving average evaluates better than the raw weights beside it.
    for key in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    arrays = {key: value for key, value in content.items() if isinstance(value, np.ndarray)}
    if not arrays:
        raise UserError(f'{where} holds no tensors; its keys: {", ".join(map(str, list(content)[:8]))}.')
    for wrapper in ('module.', '_orig_mod.'):  # DistributedDataParallel, torch.compile
        if all(name.startswith(wrapper) for name in arrays):
            arrays = {name.removeprefix(wrapper): value for name, value in arrays.items()}
    return File(where, 'torch', _cleaned(arrays))


def _cleaned(arrays):
    """Without PyTorch's update counters, which no forward pass reads."""
    return {name: value for name, value in arrays.items() if not name.endswith('num_batches_tracked')}


def _hdf5(data, where):
    import h5py

    try:
        with h5py.File(io.BytesIO(data), 'r') as file:
            if 'layers' in file:
                arrays = _keras3(file['layers'], where)
            else:
                arrays = _keras2(file.get('model_weights', file))
    except (OSError, RuntimeError, KeyError) as error:
        raise _damaged(where, error) from error
    return File(where, 'keras', arrays)


def _keras2(root):
    """HDF5 of Keras 2 and of model.save('x.h5'): one group a layer, datasets 'kernel:0' at some depth; of rescaling only the names."""
    import h5py

    arrays = {}
    for layer, group in root.items():
        if layer.startswith('rescaling'):
            arrays[layer] = np.zeros(())

        def visit(name, item, layer=layer):
            if isinstance(item, h5py.Dataset):
                leaf = name.split('/')[-1].split(':')[0]
                arrays[f'{layer}/{"kernel" if leaf == "depthwise_kernel" else leaf}'] = item[()]

        if isinstance(group, h5py.Group):
            group.visititems(visit)
    return arrays


def _keras3(layers, where):
    """HDF5 of Keras 3: layers/batch_normalization_3/vars/0..3, the layer's own name as an attribute of vars."""
    leaves = {
        1: ('kernel',),
        2: ('kernel', 'bias'),
        3: ('mean', 'variance', 'count'),
        4: ('gamma', 'beta', 'moving_mean', 'moving_variance'),
    }
    arrays = {}
    for layer in layers.values():
        variables = layer.get('vars')
        if variables is None:
            continue
        if 'name' not in variables.attrs:
            raise UserError(f'{where} does not keep the names of layers (an early Keras 3); load it with Keras and save it as .h5.')
        name = variables.attrs['name']
        if name.startswith('rescaling'):
            arrays[name] = np.zeros(())
        for i, leaf in enumerate(leaves.get(len(variables), ())):
            data = variables[str(i)]
            value = data[()]
            arrays[f'{name}/{leaf}'] = value.view(_dtype('bfloat16')) if data.attrs.get('dtype') == 'bfloat16' else value
    return arrays


def _tensorflow_prefix(path):
    """The prefix of a TensorFlow checkpoint that a path names, or None. A folder's own `checkpoint` file says which is the newest."""
    for suffix in ('.index', '.meta', '.data-00000-of-00001'):
        if path.endswith(suffix):
            return path.removesuffix(suffix)
    if os.path.exists(path + '.index'):
        return path
    if not os.path.isdir(path):
        return None
    prefixes = sorted(name.removesuffix('.index') for name in os.listdir(path) if name.endswith('.index'))
    if not prefixes:
        return None
    if len(prefixes) > 1 and not os.path.exists(os.path.join(path, 'checkpoint')):
        raise UserError(f'{path} holds {len(prefixes)} TensorFlow checkpoints; name one of {", ".join(prefixes[:5])}.')
    import tensorflow as tf

    return tf.train.latest_checkpoint(path) or os.path.join(path, prefixes[-1])


SLOTS = ('/RMSProp', '/RMSProp_1', '/Momentum', '/Adam', '/Adam_1')
AVERAGE = '/ExponentialMovingAverage'


def _tensorflow(prefix):
    """Variables without optimiser slots, the moving average where there is one, without the model's scope and 'tpu_' and 'mnas_'."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        names = [name for name in reader.get_variable_to_shape_map() if '/' in name and not name.endswith(SLOTS)]
        averaged = {name.removesuffix(AVERAGE) for name in names if name.endswith(AVERAGE)}
        arrays = {}
        for name in names:
            if not name.endswith(AVERAGE):
                short = name.split('/', 1)[1].replace('tpu_batch_normalization', 'batch_normalization').replace('mnas_', '')
                arrays[short.replace('depthwise_kernel', 'kernel')] = reader.get_tensor(name + AVERAGE if name in averaged else name)
    except (tf.errors.OpError, ValueError, LookupError, RuntimeError) as error:  # the reader turns its own codes into all of these
        raise _damaged(prefix, error) from error
    return File(prefix, 'tensorflow', arrays, hints=prefix)


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
    """timm's config.json beside the weights, with the model's name; None where there is none."""
    beside = os.path.join(os.path.dirname(path), 'config.json')
    if not os.path.exists(beside):
        return None
    try:
        with open(beside) as f:
            config = json.load(f)
    except ValueError:
        return None
    return config if isinstance(config, dict) and 'architecture' in config and 'pretrained_cfg' in config else None


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

    if tf.io.gfile.exists(path + '.index'):
        return _tensorflow(path)
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise NotThere(f'{path} is no file and no TensorFlow checkpoint. Weights can be {READABLE}.')
    with tf.io.gfile.GFile(path, 'rb') as f:
        return _content(f.read(), path)._replace(hints=path)
