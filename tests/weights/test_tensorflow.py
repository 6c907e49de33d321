"""A checkpoint under the official variable names, written by TensorFlow itself (tensorflow/tpu models/official/efficientnet)."""

import re

import numpy as np
import pytest

from efficientnet_jax import weights
from efficientnet_jax.data.preprocess import IMAGENET, INCEPTION, Preprocess
from efficientnet_jax.errors import NotThere, UserError
from efficientnet_jax.weights import files

# B0's blocks as (kernel, input, expanded, squeezed, output filters), written out here so that the test does not trust the table.
BLOCKS = (
    (3, 32, 32, 8, 16),
    *((3, i, 6 * i, i // 4, 24) for i in (16, 24)),
    *((5, i, 6 * i, i // 4, 40) for i in (24, 40)),
    *((3, i, 6 * i, i // 4, 80) for i in (40, 80, 80)),
    *((5, i, 6 * i, i // 4, 112) for i in (80, 112, 112)),
    *((5, i, 6 * i, i // 4, 192) for i in (112, 192, 192, 192)),
    (3, 192, 1152, 48, 320),
)


def official_shapes(batch_norm):
    """{name: shape} of efficientnet-b0's model variables."""
    shapes = {'stem/conv2d/kernel': (3, 3, 3, 32), 'head/conv2d/kernel': (1, 1, 320, 1280)}
    shapes |= {'head/dense/kernel': (1280, 1000), 'head/dense/bias': (1000,)}

    def norm(name, filters):
        shapes.update({f'{name}/{leaf}': (filters,) for leaf in ('gamma', 'beta', 'moving_mean', 'moving_variance')})

    norm(f'stem/{batch_norm}', 32)
    norm(f'head/{batch_norm}', 1280)
    for n, (kernel, i, e, s, o) in enumerate(BLOCKS):
        scope = f'blocks_{n}'
        first = n == 0  # no expansion, so its projection is the first convolution of the scope
        convs = ['conv2d'] if first else ['conv2d', 'conv2d_1']
        norms = [batch_norm, f'{batch_norm}_1'] + ([] if first else [f'{batch_norm}_2'])
        if not first:
            shapes[f'{scope}/conv2d/kernel'] = (1, 1, i, e)
        shapes[f'{scope}/depthwise_conv2d/depthwise_kernel'] = (kernel, kernel, e, 1)
        shapes[f'{scope}/{convs[-1]}/kernel'] = (1, 1, e, o)
        for name, filters in zip(norms, [e, o] if first else [e, e, o], strict=True):
            norm(f'{scope}/{name}', filters)
        shapes |= {f'{scope}/se/conv2d/kernel': (1, 1, e, s), f'{scope}/se/conv2d/bias': (s,)}
        shapes |= {f'{scope}/se/conv2d_1/kernel': (1, 1, s, e), f'{scope}/se/conv2d_1/bias': (e,)}
    return {f'efficientnet-b0/{name}': shape for name, shape in shapes.items()}


def write(prefix, averaged, batch_norm='tpu_batch_normalization'):
    """Saves random variables as the Saver of TF 1 does, with optimiser slots and the step; returns those that evaluation uses."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values, wanted = {'global_step': np.int64(7)}, {}
    for name, shape in official_shapes(batch_norm).items():
        values[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        values[f'{name}/RMSProp'] = np.zeros(shape, np.float32)
        values[f'{name}/RMSProp_1'] = np.zeros(shape, np.float32)
        wanted[name] = values[name]
        if averaged:
            wanted[name] = values[f'{name}/ExponentialMovingAverage'] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(values), shape_and_slices=[''] * len(values), tensors=list(values.values()))
    return wanted


@pytest.mark.parametrize('averaged', [True, False])
def test_every_array_of_an_official_checkpoint(tmp_path, averaged):
    prefix = str(tmp_path / 'model.ckpt')
    wanted = write(prefix, averaged)
    loaded = weights.load(prefix, 'efficientnet_b0')
    params, stats = loaded.variables['params'], loaded.variables['batch_stats']
    assert (loaded.module.architecture.padding, loaded.module.architecture.bn_epsilon) == ('same', 1e-3)
    assert loaded.preprocess == Preprocess(224, 32, 'bicubic', **IMAGENET)
    names = [f'stage{s}_block{b}' for s, repeats in enumerate((1, 2, 2, 3, 3, 4, 1), start=1) for b in range(1, repeats + 1)]
    seen = 0

    def same(ours, name):
        nonlocal seen
        seen += 1
        np.testing.assert_array_equal(ours, wanted.pop(f'efficientnet-b0/{name}'), err_msg=name)

    def norm(path, name):
        ours, running = params, stats
        for part in path.split('/'):
            ours, running = ours[part], running[part]
        for leaf, value in (('gamma', ours['bn']['scale']), ('beta', ours['bn']['bias'])):
            same(value, f'{name}/{leaf}')
        for leaf, value in (('moving_mean', running['bn']['mean']), ('moving_variance', running['bn']['var'])):
            same(value, f'{name}/{leaf}')

    for end in ('stem', 'head'):
        same(params[end]['kernel'], f'{end}/conv2d/kernel')
        norm(end, f'{end}/tpu_batch_normalization')
    same(params['classifier']['kernel'], 'head/dense/kernel')
    same(params['classifier']['bias'], 'head/dense/bias')
    for n, name in enumerate(names):
        block, parts = params[name], (['expand'] if n else []) + ['depthwise', 'project']
        for i, part in enumerate(parts):
            norm(f'{name}/{part}', f'blocks_{n}/tpu_batch_normalization{f"_{i}" if i else ""}')
        if n:
            same(block['expand']['kernel'], f'blocks_{n}/conv2d/kernel')
        same(np.swapaxes(block['depthwise']['kernel'], 2, 3), f'blocks_{n}/depthwise_conv2d/depthwise_kernel')
        same(block['project']['kernel'], f'blocks_{n}/conv2d{"_1" if n else ""}/kernel')
        for gate, conv in (('reduce', 'conv2d'), ('expand', 'conv2d_1')):
            same(block['se'][gate]['kernel'][None, None], f'blocks_{n}/se/{conv}/kernel')
            same(block['se'][gate]['bias'], f'blocks_{n}/se/{conv}/bias')
    assert not wanted and seen == len(official_shapes(''))


def test_folder_plain_batch_norm_names_and_advprop(tmp_path):
    folder = tmp_path / 'advprop' / 'efficientnet-b0'
    folder.mkdir(parents=True)
    write(str(folder / 'model.ckpt'), True, 'batch_normalization')
    loaded = weights.load(str(folder), 'efficientnet_b0')
    assert loaded.preprocess == Preprocess(224, 32, 'bicubic', **INCEPTION)
    with pytest.raises(
        weights.Mismatch, match=r'does not fit efficientnet_b1 \(tensorflow names\).*These arrays are those of efficientnet_b0'
    ):
        weights.load(str(folder), 'efficientnet_b1')
    data = folder / 'model.ckpt.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'is cut off or damaged: .*Fetch it again'):
        weights.load(str(folder), 'efficientnet_b0')


def write_small(prefix, value):
    import tensorflow as tf

    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=['net/a'], shape_and_slices=[''], tensors=[np.float32([value])])


@pytest.mark.parametrize('name', ['{folder}/model.ckpt', '../old/model.ckpt', 'model.ckpt'])
def test_a_folder_that_was_copied_reads_its_own_files(tmp_path, name):
    for folder, value in (('old', 1), ('new', 2)):
        (tmp_path / folder).mkdir()
        write_small(tmp_path / folder / 'model.ckpt', value)
        write_small(tmp_path / folder / 'model.ckpt-9', value + 10)
        (tmp_path / folder / 'checkpoint').write_text(f'model_checkpoint_path: "{name.format(folder=tmp_path / "old")}"\n')
    file = files.read(str(tmp_path / 'new'))
    assert file.where == str(tmp_path / 'new' / 'model.ckpt') and file.arrays['a'] == 2


def test_a_folder_whose_newest_checkpoint_is_elsewhere(tmp_path):
    for name in ('a.ckpt', 'b.ckpt'):
        write_small(tmp_path / name, 1)
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "/elsewhere/c.ckpt"\n')
    with pytest.raises(UserError, match=r"`checkpoint` names 'c.ckpt', which is not there; name one of a.ckpt, b.ckpt"):
        files.read(str(tmp_path))
    (tmp_path / 'checkpoint').unlink()
    with pytest.raises(UserError, match=r'it holds 2 TensorFlow checkpoints; name one of a.ckpt, b.ckpt'):
        files.read(str(tmp_path))


def test_a_checkpoint_without_its_data(tmp_path):
    write_small(tmp_path / 'a.ckpt', 1)
    (tmp_path / 'a.ckpt.data-00000-of-00001').unlink()
    with pytest.raises(UserError, match=rf'^{re.escape(str(tmp_path / "a.ckpt"))} is cut off or damaged: .+ Fetch it again\.$'):
        files.read(str(tmp_path / 'a.ckpt'))
    with pytest.raises(NotThere, match=r'b\.ckpt\.index is not there'):
        files.read(str(tmp_path / 'b.ckpt.meta'))
