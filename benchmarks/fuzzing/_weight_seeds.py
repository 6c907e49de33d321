"""Intact files of a tiny network in every format of weights, made by the libraries' own writers or by their documented layout."""

import collections
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np


def seeds(tiny, folder: str) -> dict:
    """{format: bytes of a file, or {name: bytes} of a folder} with three classes. folder: an empty one for the writers."""
    from efficientnet_jax import weights
    from efficientnet_jax.weights import layouts, names

    rng, ours = np.random.default_rng(0), {}
    for row in names.arrays(tiny, 'own', 3):
        ours[row.path] = rng.uniform(0.5, 1.5, row.shape).astype(np.float32)

    def theirs(naming):
        layout = names.NAMINGS[naming].layout
        return {
            row.theirs: np.ascontiguousarray(layouts.to_theirs(ours[row.path], row.kind, layout)) for row in names.arrays(tiny, naming, 3)
        }

    tree = {}
    for path, value in ours.items():
        *groups, leaf = path.split('/')
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    found = {}
    for suffix in ('safetensors', 'npz'):
        path = os.path.join(folder, f'seed.{suffix}')
        weights.save(tree, path, tiny, 'timm')
        found[suffix] = pathlib.Path(path).read_bytes()
    found['pth'], found['pth legacy'] = _torch(theirs('timm'), False), _torch(theirs('timm'), True)
    found['h5'], found['h5 keras3'] = _keras2(theirs('keras')), _keras3(theirs('keras'))
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        archive.writestr('metadata.json', '{}')
        archive.writestr('model.weights.h5', found['h5 keras3'])
    found['keras'] = out.getvalue()
    found['tensorflow'] = _tensorflow(theirs('tensorflow'), folder)
    return found


def _torch(arrays, legacy: bool) -> bytes:
    """What torch.save writes, by Python's pickler and stand-ins for the names of PyTorch. Source: torch/serialization.py."""
    module, utils, stored = types.ModuleType('torch'), types.ModuleType('torch._utils'), {}
    storage_type = type('FloatStorage', (), {'__module__': 'torch'})

    def rebuild(*arguments):
        return arguments

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = 'torch._utils', '_rebuild_tensor_v2', '_rebuild_tensor_v2'
    module.FloatStorage, module._utils, utils._rebuild_tensor_v2 = storage_type, utils, rebuild

    class Storage:
        def __init__(self, array):
            self.array = array

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            strides = tuple(stride // 4 for stride in self.array.strides)
            return rebuild, (Storage(self.array), 0, self.array.shape, strides, False, collections.OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                key = str(len(stored))
                stored[key] = item.array
                return ('storage', storage_type, key, 'cpu', item.array.size, *([None] if legacy else []))

    old = {name: sys.modules.get(name) for name in ('torch', 'torch._utils')}
    sys.modules |= {'torch': module, 'torch._utils': utils}
    try:
        out = io.BytesIO()
        state = collections.OrderedDict((name, Tensor(array)) for name, array in arrays.items())
        state._metadata = collections.OrderedDict({'': {'version': 1}})
        Pickler(out, 2).dump({'epoch': 3, 'state_dict': state})
    finally:
        for name, value in old.items():
            sys.modules.pop(name)
            if value is not None:
                sys.modules[name] = value
    if legacy:
        heads = [pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})]
        tail = b''.join(array.size.to_bytes(8, 'little') + array.tobytes() for array in stored.values())
        return b''.join([*heads, out.getvalue(), pickle.dumps(list(stored), 2), tail])
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('weights/data.pkl', out.getvalue())
        archive.writestr('weights/byteorder', 'little')
        for key, array in stored.items():
            archive.writestr(f'weights/data/{key}', array.tobytes())
    return file.getvalue()


def _keras2(arrays) -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, 'w') as h5:
        for name, array in arrays.items():
            layer, leaf = name.rsplit('/', 1)
            h5[f'model_weights/{layer}/{layer}/{leaf}:0'] = array
    return file.getvalue()


def _keras3(arrays) -> bytes:
    import h5py

    leaves, file = ('kernel', 'gamma', 'bias', 'beta', 'moving_mean', 'moving_variance'), io.BytesIO()
    with h5py.File(file, 'w') as h5:
        layers = collections.defaultdict(dict)
        for name, array in arrays.items():
            layer, leaf = name.rsplit('/', 1)
            layers[layer][leaf] = array
        for i, (layer, variables) in enumerate(layers.items()):
            group = h5.create_group(f'layers/layer_{i}/vars')
            group.attrs['name'] = layer
            for j, leaf in enumerate(sorted(variables, key=leaves.index)):
                group[str(j)] = variables[leaf]
    return file.getvalue()


def _tensorflow(arrays, folder) -> dict[str, bytes]:
    import tensorflow as tf

    names = [f'tiny/{name}' for name in arrays]
    inside = pathlib.Path(folder, 'tensorflow')
    inside.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(inside / 'model.ckpt'), tensor_names=names, shape_and_slices=[''] * len(names), tensors=list(arrays.values())
    )
    (inside / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt"\n')
    return {path.name: path.read_bytes() for path in inside.iterdir()}
