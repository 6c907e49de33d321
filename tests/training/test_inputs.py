"""What the train step makes of a batch: augmentation wired from the config to pixels and targets, and the same on any mesh."""

import functools
import itertools

import jax
import numpy as np
import pytest

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.evaluation.inference import pixels
from efficientnet_jax.runs.mesh import put, replicated
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.training.step import seen_pixels, targets, train_inputs
from tests import tiny

KNOBS = {'policy': 'randaugment', 'on': 'device', 'cutout': 4, 'translate': 8, 'mixup': 0.2, 'cutmix': 1.0, 'erase': 0.5}


def tiny_config(**knobs):
    config = tiny.get_config()
    for name, value in knobs.items():
        config.augment[name] = value
    return config


def global_batches(source, config, setup, steps, hosts=1):
    """The first global batches, each put together from what `hosts` hosts read."""
    streams = [
        pipeline.train_batches(
            source, batch_size=config.batch_size, resolution=16, seed=0, augment=setup.augment, interpolation='bilinear',
            process_index=host, process_count=hosts,
        )
        for host in range(hosts)
    ]  # fmt: skip
    steps = list(itertools.islice(zip(*streams, strict=True), steps))
    for stream in streams:
        stream.close()
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in steps]


def test_two_hosts_of_two_devices_and_one_of_four_train_on_the_same(data_dir):
    source = sources.open_source('digits', 'train', data_dir)
    config = tiny_config(**KNOBS)
    setup = training_of(config, 10, len(source), devices=jax.devices()[:4])
    see = jax.jit(functools.partial(train_inputs, setup.recipe), out_shardings=replicated(setup.mesh))
    aim = jax.jit(functools.partial(targets, setup.recipe, num_classes=10), out_shardings=replicated(setup.mesh))
    one, two = (global_batches(source, config, setup, 3, hosts) for hosts in (1, 2))
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
        a, b = ((see(batch, jax.random.key(step)), aim(batch), batch['label']) for batch in (put(setup.mesh, a), put(setup.mesh, b)))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_everything_off_is_off(data_dir):
    source = sources.open_source('digits', 'test', data_dir)
    config = tiny_config()
    setup = training_of(config, 10, 1500, devices=jax.devices()[:1])
    (batch,) = global_batches(source, config, setup, 1)
    assert batch.keys() == {'image', 'label', 'index'}
    np.testing.assert_array_equal(train_inputs(setup.recipe, batch, jax.random.key(0)), pixels(setup.preprocess, batch))
    assert targets(setup.recipe, batch, 10) is batch['label']


@pytest.mark.parametrize(('on', 'names'), [('device', {'ops'}), ('host', set()), (None, set())])
def test_the_policy_runs_in_one_place(data_dir, on, names):
    source = sources.open_source('digits', 'test', data_dir)
    config = tiny_config(policy='randaugment', translate=8, on=on)
    setup = training_of(config, 10, 1500, devices=jax.devices()[:1])
    (batch,) = global_batches(source, config, setup, 1)
    assert batch.keys() == {'image', 'label', 'index'} | names
    seen = jax.jit(functools.partial(seen_pixels, setup.recipe, count=32))(batch)
    assert seen['image'].dtype == np.uint8 and seen['image'].shape == (32, 16, 16, 3)
    config.augment.on = 'host'
    (on_host,) = global_batches(source, config, training_of(config, 10, 1500, devices=jax.devices()[:1]), 1)
    assert np.mean((seen['image'] != on_host['image']).any(-1)) < 0.003  # ties of rotations
    np.testing.assert_array_equal(seen['label'], on_host['label'])


def test_targets_of_mixed_images_are_probabilities(data_dir):
    source = sources.open_source('digits', 'test', data_dir)
    config = tiny_config(cutmix=1.0)
    setup = training_of(config, 10, 1500, devices=jax.devices()[:1])
    (batch,) = global_batches(source, config, setup, 1)
    aims = np.asarray(targets(setup.recipe, batch, 10))
    np.testing.assert_allclose(aims.sum(axis=1), 1, atol=1e-6)
    for i, (_, top, bottom, left, right) in enumerate(batch['mix']):
        expected = np.zeros(10)
        expected[batch['label'][i ^ 1]] += (bottom - top) * (right - left) / 256
        expected[batch['label'][i]] += 1 - (bottom - top) * (right - left) / 256
        np.testing.assert_allclose(aims[i], expected, atol=1e-6)


def test_mixing_needs_pairs():
    config = tiny_config(mixup=0.2)
    config.batch_size = 31
    with pytest.raises(ValueError, match=r'batch_size=31 must be even, since augment.mixup and augment.cutmix work on pairs of images'):
        training_of(config, 10, 1500, devices=jax.devices()[:1])
