"""Weight files of strangers: at worst refused by name, in bounded time and memory, without another file being read."""

import io
import json
import os
import pickle
import re
import tracemalloc
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from efficientnet_jax import weights
from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.weights import containers, files, layouts, limits, names

TINY = Architecture('efficientnet_tiny', (Stage(1, 3, 1, 1, 8),), stem=8, head=8)  # a name for which Keras has names too
SECRET = 'A key that must not be read.\n' * 2000


def variables(seed=0):
    rng, tree = np.random.default_rng(seed), {}
    for row in names.arrays(TINY, 'own', 3):
        *groups, leaf = row.path.split('/')
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = rng.uniform(0.5, 1.5, row.shape).astype(np.float32)
    return tree


def saved(path):
    """An intact file of this project at `path`."""
    weights.save(variables(), str(path), TINY, 'timm')
    return str(path)


def theirs(naming):
    layout = names.NAMINGS[naming].layout
    return {
        row.theirs: np.ones(layouts.to_theirs(np.zeros(row.shape), row.kind, layout).shape, np.float32)
        for row in names.arrays(TINY, naming, 3)
    }


# ---- .pth


def value(item):
    """The instructions for a plain value, without those for the start and the end of a pickle."""
    return pickle.dumps(item, 2)[2:-1]


def tensor(shape=(2,), strides=(1,), elements=2, offset=0):
    storage = b'(' + value('storage') + b'ctorch\nFloatStorage\n' + value('0') + value('cpu') + value(elements) + b'tQ'
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + value(offset) + value(shape) + value(strides) + b'\x89}tR'


def state_dict(*more, **tensors):
    """A pickle of {'a': tensor}, with `more` instructions before its end."""
    items = b''.join(value(name) + item + b's' for name, item in (tensors or {'a': tensor()}).items())
    return b'\x80\x02}' + items + b''.join(more) + b'.'


def pth(path, content, storage=bytes(8), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('x/data.pkl', content)
        archive.writestr('x/data/0', storage)
    return str(path)


def test_the_handmade_pth_is_read(tmp_path):
    file = files.read(pth(tmp_path / 'a.pth', state_dict(), np.array([3, 4], '<f4').tobytes()))
    assert file.kind == 'torch' and list(file.arrays['a']) == [3, 4]


@pytest.mark.parametrize(
    'instructions',
    [b'ctorch\nBFloat16Storage\n(K\x03U\x01<NNNK\x01K\x01K\x00tb0', b'ctorch._utils\n_rebuild_tensor_v2\n}b0'],
    ids=['dtype', 'function'],
)
def test_a_pickle_changes_no_object_of_the_process(tmp_path, instructions):
    with pytest.raises(weights.Refused, match=r'asks to change torch.*; only tensors are read'):
        files.read(pth(tmp_path / 'a.pth', state_dict(instructions)))
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2 and np.arange(2, dtype=ml_dtypes.bfloat16)[1] == 1


@pytest.mark.parametrize('instruction, name', [(b'(d', 'DICT'), (b'2', 'DUP'), (b'(cbuiltins\neval\no', None), (b'\x82\x01', 'EXT1')])
def test_instructions_that_tensors_do_not_need(tmp_path, instruction, name):
    message = f'uses the pickle instruction {name}' if name else 'asks to load builtins.eval'
    with pytest.raises(weights.Refused, match=message):
        files.read(pth(tmp_path / 'a.pth', state_dict(instruction)))


def test_shared_lists_are_not_walked(tmp_path):
    """Each of 40 lists has the one before it twice: 2^40 entries for whoever follows them."""
    lists = b']q\x00' + b''.join(b'0](h' + bytes([i]) + b'h' + bytes([i]) + b'eq' + bytes([i + 1]) for i in range(40))
    file = files.read(pth(tmp_path / 'a.pth', state_dict(value('laughs') + lists + b's')))
    assert list(file.arrays) == ['a']


def test_a_place_in_the_memo_takes_no_room(tmp_path):
    """The standard unpickler makes a table of as many places as the number says: 32 GB here."""
    tracemalloc.start()
    files.read(pth(tmp_path / 'a.pth', state_dict(b'r\xff\xff\xff\x7f')))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_too_many_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr('efficientnet_jax.weights.pickle_data.MAX_INSTRUCTIONS', 1000)
    with pytest.raises(weights.Refused, match='more than 1,000 instructions'):
        files.read(pth(tmp_path / 'a.pth', state_dict(b'N0' * 1000)))


@pytest.mark.parametrize(
    'content',
    [
        pytest.param(state_dict(a=tensor((1 << 70,), (0,))), id='bigshape'),
        pytest.param(state_dict(a=tensor((1 << 40, 1 << 40), (0, 0))), id='bigshapes'),
        pytest.param(state_dict(a=tensor((0,), (1 << 70,))), id='bigstride'),
        pytest.param(state_dict(a=tensor((1,) * 70, (1,) * 70)), id='dimensions'),
        pytest.param(state_dict(a=tensor((1.5,), (1,))), id='half'),
        pytest.param(b'\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.', id='hugebytes'),
        pytest.param(state_dict(b'e'), id='marks'),
        pytest.param(b'\x80\x02}' + b')' + b'\x85' * 100_000 + b'Ns.', id='deep key'),
        pytest.param(b'\x80\x02}' + value('a') + b'ctorch._utils\n_rebuild_tensor_v2\n)Rs.', id='arguments'),
    ],
)
def test_damaged_pth(tmp_path, content):
    path = pth(tmp_path / 'a.pth', content)
    with pytest.raises(UserError, match=rf'^{re.escape(path)} is cut off or damaged: .+ Fetch it again\.$'):
        files.read(path)


def test_a_list_that_holds_itself_and_deep_lists(tmp_path):
    selfref = value('self') + b']q\x01h\x01as'
    deep = value('deep') + b']' * 100_000 + b'a' * 99_999 + b's'
    file = files.read(pth(tmp_path / 'a.pth', state_dict(selfref, deep)))
    assert list(file.arrays) == ['a']


def test_a_view_that_repeats_one_number(tmp_path):
    with pytest.raises(weights.Refused, match=r'announces arrays of 4,000,000,000 bytes in \d+ bytes'):
        files.read(pth(tmp_path / 'a.pth', state_dict(a=tensor((1_000_000_000,), (0,)))))


# ---- what inflates, and numbers in headers


@pytest.mark.parametrize('kind', ['npz', 'pth', 'keras'])
def test_zip_bombs(tmp_path, kind):
    path, zeros = str(tmp_path / 'bomb'), bytes(limits.FLOOR_BYTES + 1)
    if kind == 'npz':
        np.savez_compressed(f'{path}.npz', a=np.frombuffer(zeros, np.uint8))
        path += '.npz'
    elif kind == 'pth':
        pth(path, state_dict(a=tensor((16 << 20,), (1,), 16 << 20)), zeros, zipfile.ZIP_DEFLATED)
    else:
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('model.weights.h5', zeros)
    with pytest.raises(weights.Refused, match=rf'{re.escape(path)} announces arrays of [\d,]+ bytes in [\d,]+ bytes'):
        files.read(path)


def test_a_member_that_is_larger_than_its_header_says(tmp_path):
    path = tmp_path / 'a.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', bytes(100 << 20))
    path.write_bytes(path.read_bytes().replace((100 << 20).to_bytes(4, 'little'), (100).to_bytes(4, 'little')))
    tracemalloc.start()
    with pytest.raises(UserError, match='cut off or damaged'):
        files.read(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_members_by_the_thousand(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'MAX_ARRAYS', 20)
    path = str(tmp_path / 'a.npz')
    np.savez(path, **{f'a{i}': np.zeros(1) for i in range(21)})
    with pytest.raises(weights.Refused, match='has 21 members; weights have at most 20'):
        files.read(path)


def test_other_compression(tmp_path):
    path = str(tmp_path / 'a.npz')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('a.npy', bytes(100))
    with pytest.raises(weights.Refused, match=r"'a.npy' is compressed by method 14; only deflate is read"):
        files.read(path)


def npy(shape, dtype='<f4', content=bytes(4)):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {'descr': dtype, 'fortran_order': False, 'shape': shape})
    return out.getvalue() + content


@pytest.mark.parametrize(
    'content', [npy((10**12,)), npy((10**400,)), npy((-1,)), npy((1 << 62, 8)), b'not an array', npy(())[:9], npy((1, 'x')), b'']
)
def test_damaged_npz(tmp_path, content):
    path = str(tmp_path / 'a.npz')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', content)
    with pytest.raises(UserError, match=rf'^{re.escape(path)} is cut off or damaged: .+ Fetch it again\.$'):
        files.read(path)


@pytest.mark.parametrize('order', ['<', '>'])
def test_a_description_of_letters_that_are_none(tmp_path, order):
    """NumPy makes a str of code points beyond Unicode's, over which Python stumbles later (SystemError)."""
    path = str(tmp_path / 'a.npz')
    for point in (0x110000, 0xFFFFFFFF):
        letters = np.array([ord('"'), point, ord('"')], f'{order}u4').tobytes()
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr(f'{containers.DESCRIPTION}.npy', npy((), f'{order}U3', letters))
        with pytest.raises(
            UserError, match=rf"^{re.escape(path)} is cut off or damaged: '{containers.DESCRIPTION}.npy' holds what is no text"
        ):
            files.read(path)


@pytest.mark.parametrize('dtype', ['<U9', '<c8', '<M8[s]', 'V4'])
def test_arrays_of_other_things_than_numbers(tmp_path, dtype):
    path = str(tmp_path / 'a.npz')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', npy((1,), dtype, bytes(np.dtype(dtype).itemsize)))
    with pytest.raises(UserError, match=r"'a.npy' has dtype .*; only arrays of numbers are read"):
        files.read(path)


def tensors(path, header, content=bytes(4)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + content)
    return str(path)


A = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}


@pytest.mark.parametrize(
    'header',
    [
        {'a': A, '__metadata__': [1]},
        {'a': A, '__metadata__': {'efficientnet_jax': '{'}},
        {'a': A, '__metadata__': {'efficientnet_jax': '[' * 100_000}},
        b'{"a":' + b'[' * 100_000,
        {'a': A | {'shape': [1 << 62, 1 << 62]}},
        {'\x1b[2J\n': A},
    ],
)
def test_damaged_safetensors(tmp_path, header):
    path = tensors(tmp_path / 'a.safetensors', header)
    with pytest.raises(UserError, match=rf'^{re.escape(path)} is cut off or damaged: .+ Fetch it again\.$'):
        files.read(path)


def test_a_header_that_is_larger_than_any(tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes((1 << 40).to_bytes(8, 'little') + b'{"a": 1}')
    with pytest.raises(UserError, match=r'is cut off or damaged: its header has 1,099,511,627,776 bytes'):
        files.read(str(path))


def test_other_things_than_files(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe')
    for path in (str(tmp_path / 'pipe'), '/dev/zero'):
        with pytest.raises(StorageError, match=f'{path} is no regular file'):
            files.read(path)
    path = saved(tmp_path / 'a.safetensors')
    monkeypatch.setattr(limits, 'MAX_FILE_BYTES', 1000)
    with pytest.raises(StorageError, match=r'a.safetensors has [\d,]+ bytes; at most 1,000 are read'):
        files.read(path)


# ---- HDF5


def keras(path, kind, change=None):
    """A complete file of TINY in one of Keras' formats; change(file, name of the classifier's bias) before it is closed."""
    out, arrays = io.BytesIO(), theirs('keras')
    with h5py.File(out, 'w') as h5:
        if kind == 'h5':
            where = {name: 'model_weights/{0}/{0}/{1}:0'.format(*name.rsplit('/', 1)) for name in arrays}
        else:
            layers = list(dict.fromkeys(name.rsplit('/', 1)[0] for name in arrays))
            leaves = {layer: [name for name in arrays if name.rsplit('/', 1)[0] == layer] for layer in layers}
            where = {name: f'layers/l{i}/vars/{j}' for i, layer in enumerate(layers) for j, name in enumerate(leaves[layer])}
        for name, array in arrays.items():
            h5[where[name]] = array
            h5[where[name]].parent.attrs['name'] = name.rsplit('/', 1)[0]
        if change is not None:
            change(h5, where['predictions/bias'])
    if kind == 'keras':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('model.weights.h5', out.getvalue())
    else:
        path.write_bytes(out.getvalue())
    return str(path)


def moved(create):
    def change(h5, name):
        del h5[name]
        create(h5, name)

    return change


def virtual(h5, name):
    layout = h5py.VirtualLayout((3,), 'f4')
    layout[...] = h5py.VirtualSource('secret.h5', 'x', (3,))
    h5.create_virtual_dataset(name, layout)


@pytest.mark.parametrize('kind', ['h5', 'weights.h5', 'keras'])
def test_the_handmade_keras_files_are_read(tmp_path, kind):
    loaded = weights.load(keras(tmp_path / f'a.{kind}', kind), TINY)
    assert loaded.variables['params']['classifier']['bias'].tolist() == [1, 1, 1]


@pytest.mark.parametrize('kind', ['h5', 'weights.h5', 'keras'])
@pytest.mark.parametrize('way', ['external storage', 'external link', 'soft link', 'virtual'])
def test_hdf5_reads_no_other_file(tmp_path, monkeypatch, kind, way):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'secret').write_text(SECRET)
    with h5py.File('secret.h5', 'w') as h5:
        h5['x'] = np.full(3, 7, np.float32)

    def link(link):
        return moved(lambda h5, name: h5.__setitem__(name, link))

    change = {
        'external storage': moved(lambda h5, name: h5.create_dataset(name, (3,), 'f4', external=[('secret', 0, h5py.h5f.UNLIMITED)])),
        'external link': link(h5py.ExternalLink('secret.h5', '/x')),
        'soft link': link(h5py.SoftLink('/elsewhere')),
        'virtual': moved(virtual),
    }[way]
    path = keras(tmp_path / f'a.{kind}', kind, change)
    with pytest.raises(
        weights.Refused, match=rf'^{re.escape(path)}: .*(lies in other files|is a link to elsewhere).*only data in the file is read'
    ):
        weights.load(path, TINY)


@pytest.mark.parametrize('kind', ['h5', 'weights.h5'])
def test_hdf5_that_inflates_or_never_ends(tmp_path, kind):
    def circle(h5, name):
        h5[f'{name}_up'] = h5['/']

    path = keras(tmp_path / 'a', kind, moved(lambda h5, name: h5.create_dataset(name, (3,), 'f4', chunks=(3,), compression='gzip')))
    with pytest.raises(weights.Refused, match='is compressed; unpack it: h5repack'):
        files.read(path)
    path = keras(tmp_path / 'b', kind, moved(lambda h5, name: h5.create_dataset(name, (1 << 50,), 'f4', chunks=(1 << 20,))))
    with pytest.raises(weights.Refused, match='announces arrays of 4,503,599,627,'):
        files.read(path)
    if kind == 'h5':
        with pytest.raises(weights.Refused, match='groups more than 16 deep'):
            files.read(keras(tmp_path / 'c', kind, circle))


@pytest.mark.parametrize(
    'change',
    [
        lambda h5, name: h5[name].parent.attrs.__setitem__('name', 5),
        lambda h5, name: h5[name].parent.attrs.__setitem__('name', ['a', 'b']),
        moved(lambda h5, name: h5.create_group(name)),
        moved(lambda h5, name: h5.__setitem__(name, h5py.Empty('f4'))),
        lambda h5, name: h5.__delitem__('layers') or h5.__setitem__('layers', 3),
    ],
)
def test_damaged_keras3(tmp_path, change):
    path = keras(tmp_path / 'a', 'weights.h5', change)
    with pytest.raises(UserError, match=rf'^{re.escape(path)} is cut off or damaged: .+ Fetch it again\.$'):
        files.read(path)


# ---- values


@pytest.mark.parametrize(
    'name, bad, message',
    [
        ('conv_stem.weight', np.nan, '1 of 216 values of conv_stem.weight are NaN or infinite'),
        ('classifier.bias', -np.inf, '1 of 3 values of classifier.bias are NaN or infinite'),
        ('bn1.running_var', -1e-3, '1 of 8 values of bn1.running_var are negative, in a variance'),
        ('bn1.running_mean', 1e300, '1 of 8 values of bn1.running_mean are NaN or infinite'),
    ],
)
def test_values_that_no_trained_network_has(tmp_path, name, bad, message):
    arrays = {key: item.astype(np.float64) for key, item in theirs('timm').items()}
    arrays[name].flat[0] = bad
    path = str(tmp_path / 'a.npz')
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf'{re.escape(path)}: {message}.*allow_not_finite=True'):
        weights.load(path, TINY, padding='same')
    loaded = weights.load(path, TINY, padding='same', allow_not_finite=True)
    assert loaded.variables['params']['stem']['kernel'].dtype == np.float32


def test_messages_are_one_line_without_control_characters(tmp_path):
    name = value('os\x1b[2J\n') + value('system\x07') + b'\x93'
    with pytest.raises(weights.Refused, match=r'asks to load os\?\[2J .system\?, which could run code'):
        files.read(pth(tmp_path / 'a.pth', state_dict(name)))


@pytest.mark.parametrize(
    'cfg', [{}, {'mean': 5, 'std': [1]}, {'mean': ['x'] * 3, 'std': [1] * 3}, {'mean': [0] * 3, 'std': [0] * 3, 'input_size': 5}]
)
def test_a_wrong_config_of_timm_is_named(tmp_path, cfg):
    path = str(tmp_path / 'a.npz')
    np.savez(path, **theirs('timm'))
    (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'tf_x', 'pretrained_cfg': cfg}))
    with pytest.raises(UserError, match=rf'^{re.escape(path)}: pretrained_cfg of the config.json beside it is wrong: .'):
        weights.load(path, TINY)


@pytest.mark.parametrize('content', [b'{', b'[' * 100_000, b'5', b'{"architecture": 5, "pretrained_cfg": {}}', bytes([255])])
def test_a_config_that_is_not_timms_is_left_alone(tmp_path, content):
    path = str(tmp_path / 'a.npz')
    np.savez(path, **theirs('timm'))
    (tmp_path / 'config.json').write_bytes(content)
    assert weights.load(path, TINY, padding='same').module.num_classes == 3


def test_a_normalization_layer_that_cannot_be(tmp_path):
    for bad in ([0.2, 0.2], [0.2, 0.2, -1], [0.2, 0.2, np.nan]):
        path = str(tmp_path / 'a.npz')
        np.savez(path, **theirs('keras'), **{'normalization/mean': np.zeros(3), 'normalization/variance': np.array(bad)})
        with pytest.raises(UserError, match=rf'^{re.escape(path)}: its normalization layer must have three'):
            weights.load(path, TINY)
