"""Fine-tuning: what a run begins with, what stays frozen, what its checkpoints remember."""

import functools
import json

import jax
import numpy as np
import PIL.Image
import pytest

from efficientnet_jax import architectures, weights
from efficientnet_jax.data.preprocess import LITE, Preprocess
from efficientnet_jax.evaluation.evaluate import evaluate
from efficientnet_jax.evaluation.predict import predict
from efficientnet_jax.runs import record
from efficientnet_jax.training import optim
from efficientnet_jax.training.loop import train
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.training.step import train_step
from efficientnet_jax.weights import description
from efficientnet_jax.weights.init_from import start
from tests import tiny
from tests.weights.test_formats import assert_same, flat, random_variables

TINY = architectures.get('tiny')
RECIPE = Preprocess(16, 0.9, 'bilinear', **LITE)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A file of the tiny network for 10 classes, in the symmetric flavour."""
    import dataclasses

    path = str(tmp_path_factory.mktemp('weights') / 'tiny.safetensors')
    architecture = dataclasses.replace(TINY, padding='symmetric', bn_epsilon=1e-5)
    weights.save(random_variables(architecture), path, architecture, 'timm', RECIPE, [f'digit {i}' for i in range(10)])
    return path


def config_of(pretrained, **knobs):
    config = tiny.get_config()
    config.init_from = pretrained
    for knob, value in knobs.items():
        config[knob] = value
    return config


def begin(config, num_classes):
    begun = start(config, None, num_classes, new_head=True)
    setup = training_of(config, num_classes, 1500, devices=jax.devices()[:1], start=begun)
    return setup, setup.init(begun.variables)


def test_the_head_is_replaced_only_when_the_classes_differ(pretrained):
    loaded = weights.load(pretrained).variables
    _, same = begin(config_of(pretrained), 10)
    assert_same(loaded, jax.device_get(same.variables()))
    assert_same(loaded, jax.device_get(same.ema))
    setup, other = begin(config_of(pretrained), 7)
    assert other.params['classifier']['kernel'].shape == (32, 7) and setup.module.num_classes == 7
    backbone = {name: value for name, value in other.params.items() if name != 'classifier'}
    assert_same({name: value for name, value in loaded['params'].items() if name != 'classifier'}, jax.device_get(backbone))
    assert_same(loaded['batch_stats'], jax.device_get(other.batch_stats))


def test_a_run_killed_before_its_first_checkpoint_still_begins_with_the_weights(pretrained, tmp_path):
    with record.changing(str(tmp_path)) as found:
        found['network'] = description.describe(TINY, 10, RECIPE)
    (tmp_path / 'checkpoints' / '6.orbax-checkpoint-tmp').mkdir(parents=True)
    assert start(config_of(pretrained), str(tmp_path), 10).variables is not None
    (tmp_path / 'checkpoints' / '6').mkdir()
    assert start(config_of('/gone.pth'), str(tmp_path), 10).variables is None


def test_flavour_and_preprocessing_are_those_of_the_weights(pretrained):
    setup, _ = begin(config_of(pretrained, resolution=None, normalisation='imagenet', interpolation='bicubic'), 10)
    assert (setup.module.architecture.padding, setup.module.architecture.bn_epsilon) == ('symmetric', 1e-5)
    assert setup.preprocess == setup.recipe.preprocess == RECIPE
    setup, _ = begin(config_of(pretrained, resolution=24, eval_crop_fraction=1.0), 10)
    assert setup.preprocess == Preprocess(24, 1.0, 'bilinear', **LITE) and setup.module.architecture.resolution == 24


@pytest.mark.parametrize(
    'multiplier, freeze, moved',
    [(1.0, False, {'backbone', 'classifier', 'stats'}), (0.0, True, {'classifier'})],
)
def test_what_a_step_moves(pretrained, multiplier, freeze, moved):
    config = config_of(pretrained, backbone_lr_multiplier=multiplier, freeze_batch_norm=freeze, warmup_epochs=0.0)
    setup, before = begin(config, 10)
    rng = np.random.default_rng(0)
    batch = {'image': rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8), 'label': np.arange(8, dtype=np.int32)}
    after, _ = jax.jit(functools.partial(train_step, setup.module, setup.optimizer, setup.recipe))(before, batch)

    def changed(old, new):
        return {path for path, value in flat(old).items() if not np.array_equal(value, flat(new)[path])}

    params, stats = changed(before.params, after.params), changed(before.batch_stats, after.batch_stats)
    found = {'classifier' if path.startswith('classifier/') else 'backbone' for path in params} | ({'stats'} if stats else set())
    assert found == moved


def test_the_multiplier_scales_the_whole_update(pretrained):
    params = {name: {'kernel': np.full(3, 0.5, np.float32)} for name in ('stem', 'classifier')}
    grads, updates = jax.tree.map(np.ones_like, params), {}
    for multiplier in (1.0, 0.25):
        config = config_of(pretrained, backbone_lr_multiplier=multiplier, warmup_epochs=0.0, weight_decay=0.1)
        optimizer = optim.optimizer(config, optim.Horizon(10, 100))
        updates[multiplier], _ = optimizer.update(grads, optimizer.init(params), params)
    for name, factor in (('stem', 0.25), ('classifier', 1.0)):
        np.testing.assert_allclose(updates[0.25][name]['kernel'], factor * updates[1.0][name]['kernel'], rtol=1e-6)


@pytest.mark.parametrize(
    'knobs, message',
    [
        ({'freeze_batch_norm': True}, 'freeze_batch_norm=True needs init_from'),
        ({'backbone_lr_multiplier': 0.0}, 'backbone_lr_multiplier=0 needs init_from'),
        ({'backbone_lr_multiplier': -1.0}, 'backbone_lr_multiplier=-1.0 must be at least 0'),
    ],
)
def test_knobs_without_weights(knobs, message):
    with pytest.raises(ValueError, match=message):
        training_of(config_of(None, **knobs), 10, 1500)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """photos/CLASS/N.png: three classes of coloured noise, eight each."""
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for c, name in enumerate(('blue', 'green', 'red')):
        (root / name).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 60, (24, 24, 3)).astype(np.uint8)
            pixels[..., 2 - c] += 150
            PIL.Image.fromarray(pixels).save(root / name / f'{i}.png')
    return root


@pytest.mark.slow
def test_from_a_folder_of_photos_to_top_1(pretrained, photos, tmp_path, capsys):
    workdir = str(tmp_path / 'run')
    config = config_of(
        pretrained,
        dataset=f'folder:{photos}',
        train_split='train',
        eval_split='validation',
        batch_size=8,
        eval_batch_size=8,
        steps=20,
        ema_decay=None,
    )
    result = train(config, workdir)
    assert result['metrics']['eval']['count'] == 3
    with open(f'{workdir}/run.json') as f:
        described = json.load(f)['network']
    assert described['class_names'] == ['blue', 'green', 'red'] and described['architecture']['padding'] == 'symmetric'
    config.init_from = None  # neither the weights nor the photos are needed any more
    config.dataset = 'folder:/gone'
    files = [str(photos / name / '0.png') for name in ('red', 'green')]
    capsys.readouterr()
    features, picture = str(tmp_path / 'f.npz'), str(tmp_path / 'top5.png')
    predictions = predict(config, workdir, files, as_json=True, picture=picture, features=features)
    assert json.loads(capsys.readouterr().out) == predictions
    assert {top['name'] for top in predictions[0]['top']} == {'blue', 'green', 'red'}
    with np.load(features) as archive:
        assert archive['pooled'].shape == (2, 32) and archive['logits'].shape == (2, 3) and list(archive['images']) == files
        logits = archive['logits']
    with PIL.Image.open(picture) as image:
        assert image.size[0] > 4 * image.size[1]  # both photographs in one row, each with its bars
    loaded = weights.load(workdir)
    assert loaded.preprocess == Preprocess(16, 0.9, 'bilinear', **LITE) and loaded.class_names == ('blue', 'green', 'red')
    images = np.stack([loaded.preprocess(open_bytes(path)) for path in files])
    np.testing.assert_allclose(loaded.module.apply(loaded.variables, images), logits, rtol=1e-4, atol=1e-4)


def open_bytes(path):
    with open(path, 'rb') as f:
        return f.read()


def test_predict_and_evaluate_straight_from_weights(pretrained, photos, tmp_path, data_dir, capsys):
    config = config_of(pretrained, data_dir=data_dir)
    predictions = predict(config, None, [str(photos / 'red')])
    assert len(predictions) == 8 and predictions[0]['top'][0]['name'].startswith('digit ')
    assert 'digit' in capsys.readouterr().out
    workdir = tmp_path / 'run'  # made by evaluate
    assert evaluate(config, str(workdir))['metrics']['eval']['count'] == 297
    config.dataset, config.eval_split = f'folder:{photos}', 'train'
    with pytest.raises(weights.Mismatch, match='is for 10 classes, num_classes=3 are wanted'):
        evaluate(config, str(workdir))
