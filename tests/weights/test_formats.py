"""Files of every code base, written here on random weights: read bit for bit, or refused with an error that says what to do."""

import collections
import io
import json
import os
import pickle
import sys
import types
import zipfile

import jax
import numpy as np
import pytest

from efficientnet_jax import architectures, models, weights
from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.data.preprocess import IMAGENET, INCEPTION, LITE, Preprocess
from efficientnet_jax.weights import layouts, names, pickled

SMALL = Architecture('small', (Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 6, 16)), stem=8, head=32)


def random_variables(architecture, num_classes=10, seed=0):
    rng = np.random.default_rng(seed)
    variables = {}
    for row in names.arrays(architecture, 'own', num_classes):
        *folders, leaf = row.path.split('/')
        tree = variables
        for folder in folders:
            tree = tree.setdefault(folder, {})
        tree[leaf] = rng.uniform(0.5, 1.5, row.shape).astype(np.float32)
    return variables


def flat(variables):
    return {'/'.join(k.key for k in path): value for path, value in jax.tree_util.tree_flatten_with_path(variables)[0]}


def assert_same(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.dtype == theirs[path].dtype == np.float32
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def their_arrays(variables, architecture, naming, num_classes=10):
    ours, layout = flat(variables), names.NAMINGS[naming].layout
    return {row.theirs: layouts.to_theirs(ours[row.path], row.kind, layout) for row in names.arrays(architecture, naming, num_classes)}


@pytest.mark.parametrize(
    'name', ['efficientnet_b0', 'efficientnet_lite0', 'efficientnet_edgetpu_s', 'mnasnet_small', 'mobilenet_v1', 'resnet50']
)
def test_the_list_of_arrays_is_that_of_the_module(name):
    module = models.build(name, 10)
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), train=False))
    listed = {row.path: row.shape for row in names.arrays(architectures.get(name), 'own', 10)}
    assert {path: value.shape for path, value in flat(tree).items()} == listed


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz'])
@pytest.mark.parametrize('format', ['own', 'timm', 'efficientnet_pytorch', 'tensorflow'])
def test_round_trip_bit_for_bit(tmp_path, suffix, format):
    path = str(tmp_path / f'weights{suffix}')
    variables, preprocess = random_variables(SMALL), Preprocess(96, 0.9, 'bilinear', **LITE)
    weights.save(variables, path, SMALL, format, preprocess, class_names=[f'name {i}' for i in range(10)])
    loaded = weights.load(path)
    assert_same(variables, loaded.variables)
    assert (loaded.module.architecture, loaded.module.num_classes, loaded.preprocess) == (SMALL, 10, preprocess)
    assert loaded.class_names[3] == 'name 3'
    assert os.listdir(tmp_path) == [f'weights{suffix}']


@pytest.mark.parametrize(
    'name, format',
    [('efficientnet_b0', 'torchvision'), ('efficientnet_b0', 'keras'), ('mobilenet_v2', 'torchvision'), ('mnasnet_b1', 'torchvision')],
)
def test_round_trip_of_formats_that_have_some_models_only(tmp_path, name, format):
    path = str(tmp_path / 'weights.npz')
    variables = random_variables(architectures.get(name))
    weights.save(variables, path, name, format)
    assert_same(variables, weights.load(path, name).variables)


def test_save_errors(tmp_path):
    variables = random_variables(SMALL)
    with pytest.raises(ValueError, match=r"path='x.pth' must end in .safetensors or .npz"):
        weights.save(variables, 'x.pth', SMALL)
    with pytest.raises(ValueError, match="format='onnx' must be one of own, timm"):
        weights.save(variables, 'x.npz', SMALL, 'onnx')
    with pytest.raises(ValueError, match='small has no torchvision names; formats that have: own, timm'):
        weights.save(variables, str(tmp_path / 'x.npz'), SMALL, 'torchvision')
    with pytest.raises(ValueError, match=r'variables are not those of efficientnet_b0: .* missing or of other shape.*module.architecture'):
        weights.save(variables, str(tmp_path / 'x.npz'), 'efficientnet_b0')
    assert not os.listdir(tmp_path)


class FakeTorch:
    """Writes the zip of torch.save without PyTorch: the same names and persistent ids in the pickle."""

    def __init__(self, monkeypatch):
        torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
        exec('def _rebuild_tensor_v2(*args): return args', utils.__dict__)
        self.storage = type('FloatStorage', (), {'__module__': 'torch'})
        torch.FloatStorage, torch._utils = self.storage, utils
        self.rebuild = utils._rebuild_tensor_v2
        monkeypatch.setitem(sys.modules, 'torch', torch)
        monkeypatch.setitem(sys.modules, 'torch._utils', utils)

    def save(self, arrays, path, extra=None):
        outer, storages = self, []

        class Storage:
            def __init__(self, array):
                self.array = array

        class Tensor:
            def __init__(self, array):
                self.array = array

            def __reduce__(self):
                strides = tuple(s // 4 for s in self.array.strides)
                return outer.rebuild, (Storage(self.array), 0, self.array.shape, strides, False, collections.OrderedDict())

        class Pickler(pickle.Pickler):
            def persistent_id(self, item):
                if isinstance(item, Storage):
                    storages.append(item.array)
                    return ('storage', outer.storage, str(len(storages) - 1), 'cpu', item.array.size)

        out = io.BytesIO()
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        content = {name: Tensor(array) for name, array in arrays.items()}
        Pickler(out, 2).dump(content if extra is None else {'state_dict': content, **extra})
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('weights/data.pkl', out.getvalue())
            for i, array in enumerate(storages):
                archive.writestr(f'weights/data/{i}', array.tobytes())


@pytest.mark.parametrize('extra', [None, {'epoch': 3}])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_pytorch_zip_without_pytorch(tmp_path, monkeypatch, extra, prefix):
    variables = random_variables(SMALL)
    arrays = {prefix + name: value for name, value in their_arrays(variables, SMALL, 'timm').items()}
    path = str(tmp_path / 'weights.bin')  # the content tells, not the name
    FakeTorch(monkeypatch).save(arrays, path, extra)
    assert_same(variables, weights.load(path, SMALL).variables)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('kind', ['plain pickle', 'zip', 'npz'])
def test_files_that_would_run_code_are_refused(tmp_path, kind):
    sign, path = str(tmp_path / 'executed'), str(tmp_path / 'evil.pth')
    if kind == 'plain pickle':
        with open(path, 'wb') as f:
            pickle.dump(Payload(sign), f)
    elif kind == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('evil/data.pkl', pickle.dumps({'state_dict': Payload(sign)}))
    else:
        with open(path, 'wb') as f:
            np.savez(f, stem=np.array([Payload(sign)], object), allow_pickle=True)
    message = (
        'holds Python objects, which could run code'
        if kind == 'npz'
        else 'asks to load .*open, which could run code; only tensors are read'
    )
    with pytest.raises(weights.Refused, match=message):
        weights.load(path, SMALL)
    assert not os.path.exists(sign)


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz', '.pth'])
@pytest.mark.parametrize('part', [0.1, 0.5, 0.99])
def test_half_a_file(tmp_path, monkeypatch, suffix, part):
    path, variables = str(tmp_path / f'weights{suffix}'), random_variables(SMALL)
    if suffix == '.pth':
        FakeTorch(monkeypatch).save(their_arrays(variables, SMALL, 'timm'), path)
    else:
        weights.save(variables, path, SMALL)
    size = os.path.getsize(path)
    os.truncate(path, int(part * size))
    with pytest.raises(ValueError, match=r'is cut off or damaged: .*Fetch it again'):
        weights.load(path, SMALL)


@pytest.mark.parametrize(
    'content, message',
    [
        (
            b'<html>404</html>',
            r"is no weights file that can be read; it has 16 bytes that begin with b'<html>404.*Weights can be safetensors, .npz",
        ),
        (b'version https://git-lfs.github.com/spec/v1', 'it is a Git LFS pointer: fetch it with git lfs pull'),
        (b'\x1f\x8b123', 'it is gzip: unpack it first'),
        (b'', 'it has 0 bytes'),
    ],
)
def test_unknown_files_say_what_was_seen(tmp_path, content, message):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        weights.load(str(path), SMALL)


def test_paths_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'is not there. Weights can be'):
        weights.load(str(tmp_path / 'x.pth'), SMALL)
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(ValueError, match=r'is a folder without weights; it holds notes.txt'):
        weights.load(str(tmp_path), SMALL)


def test_the_error_of_another_variant_is_the_diff(tmp_path):
    path = str(tmp_path / 'weights.npz')
    np.savez(
        path, **their_arrays(random_variables(architectures.get('efficientnet_lite1')), architectures.get('efficientnet_lite1'), 'timm')
    )
    with pytest.raises(
        weights.Mismatch,
        match=r'does not fit efficientnet_lite0 \(timm names\): \d+ unused: .*These arrays are those of efficientnet_lite1\.',
    ):
        weights.load(path, 'efficientnet_lite0', padding='same')
    arrays = their_arrays(random_variables(SMALL), SMALL, 'timm')
    arrays['extra.weight'] = np.zeros((2, 3), np.float32)
    arrays['conv_stem.weight'] = arrays['conv_stem.weight'][:, :, :2]
    del arrays['bn1.bias']
    np.savez(path, **arrays)
    diff = r'1 missing: bn1.bias \[8\]; 1 unused: extra.weight \[2, 3\]; 1 of other shape: conv_stem.weight \[8, 3, 2, 3\] instead of \[8, 3, 3, 3\]'
    with pytest.raises(weights.Mismatch, match=diff):
        weights.load(path, SMALL)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(weights.Mismatch, match=r'has no small in names that are known here .*It begins with a \[3\]'):
        weights.load(path, SMALL)


def test_other_classes(tmp_path):
    path = str(tmp_path / 'weights.npz')
    weights.save(random_variables(SMALL), path, SMALL)
    with pytest.raises(weights.Mismatch, match=r'is for 10 classes, num_classes=7 are wanted.*--config.init_from'):
        weights.load(path, SMALL, num_classes=7)
    loaded = weights.load(path, SMALL, num_classes=7, classifier=False)
    assert 'classifier' not in loaded.variables['params'] and loaded.module.num_classes == 7


def test_timm_flavours_ask_when_nothing_tells(tmp_path):
    lite, variables = architectures.get('efficientnet_lite0'), random_variables(architectures.get('efficientnet_lite0'))
    arrays = their_arrays(variables, lite, 'timm')
    for name in ('mine.npz', 'tf_efficientnet_lite0-0aa007d2.npz'):
        np.savez(tmp_path / name, **arrays)
    with pytest.raises(ValueError, match=r"have the same names and shapes.*padding='same'.*padding='symmetric'.*config.init_padding"):
        weights.load(str(tmp_path / 'mine.npz'), 'efficientnet_lite0')
    with pytest.raises(ValueError, match="padding='valid' must be 'same'"):
        weights.load(str(tmp_path / 'mine.npz'), 'efficientnet_lite0', padding='valid')
    told = weights.load(str(tmp_path / 'tf_efficientnet_lite0-0aa007d2.npz'), 'efficientnet_lite0')
    assert (told.module.architecture.padding, told.module.architecture.bn_epsilon) == ('same', 1e-3)
    assert told.preprocess == Preprocess(224, 32, 'bicubic', **LITE)
    own = weights.load(str(tmp_path / 'mine.npz'), 'efficientnet_lite0', padding='symmetric')
    assert (own.module.architecture.padding, own.module.architecture.bn_epsilon) == ('symmetric', 1e-5)
    assert own.preprocess == Preprocess(224, 0.875, 'bicubic', **IMAGENET)
    cfg = {'input_size': [3, 200, 200], 'crop_pct': 0.8, 'interpolation': 'bilinear', 'mean': [0.5] * 3, 'std': [0.5] * 3}
    (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'tf_efficientnet_lite0', 'pretrained_cfg': cfg}))
    configured = weights.load(str(tmp_path / 'mine.npz'), 'efficientnet_lite0')
    assert configured.module.architecture.padding == 'same' and configured.preprocess == Preprocess(200, 0.8, 'bilinear', **INCEPTION)


def test_a_pickle_that_reaches_outside_its_storage():
    with pytest.raises(ValueError, match='reaches element 8 of a storage of 4'):
        pickled._array(pickled._Tensor(pickled._Storage('FloatStorage', '0', 4), 0, (9,), (1,)), bytes(16))


def test_hub_names_need_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ValueError, match=r'hf_hub:timm/x needs huggingface_hub.*pip install huggingface_hub'):
        weights.load('hf_hub:timm/x', SMALL)
