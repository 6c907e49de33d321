"""From the options of a config to what is computed: each figure here is written out again, so that an option passed on wrongly shows."""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.data.augment.policies import Augment
from efficientnet_jax.evaluation.inference import eval_step, inference_of
from efficientnet_jax.training import loop
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.training.step import train_step
from efficientnet_jax.training.stream import Stream
from tests import tiny

ONE = functools.partial(training_of, devices=jax.devices()[:1])
EXAMPLES, CLASSES, STEP = 800, 10, 3


def config(**options):
    chosen = tiny.get_config()
    chosen.update(
        batch_size=8, eval_batch_size=8, optimizer='sgd', momentum=0.0, weight_decay=0.25, lr_per_256=3.2, schedule='constant',
        warmup_epochs=0.1, label_smoothing=0.2, dropout=0.5, drop_path=0.5, dtype='float32', classifier_init_scale=1.0, ema_decay=0.9, seed=5, steps=None, epochs=2.0,
    )  # fmt: skip
    chosen.update(options)
    return chosen


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (8, 16, 16, 3), np.uint8), 'label': np.arange(8, dtype=np.int32)}


@pytest.fixture(scope='module')
def update():
    """(objects of the run, batch, state before update 4, state after it, metrics)."""
    setup = ONE(config(), CLASSES, EXAMPLES)
    state = setup.init()
    # The optimizer counts its updates itself; the moving average is told apart from the weights.
    counted = jax.tree.map(lambda x: x + STEP if jnp.issubdtype(x.dtype, jnp.integer) else x, state.opt_state)
    state = state.replace(step=state.step + STEP, opt_state=counted, ema=jax.tree.map(lambda x: x * 0.5, state.ema))
    before = jax.device_get(state)
    after, metrics = jax.device_get(jax.jit(functools.partial(train_step, setup.module, setup.optimizer, setup.recipe))(state, batch_of()))
    return setup, batch_of(), before, after, metrics


def test_an_update_is_the_recipes_written_out(update):
    setup, batch, before, after, metrics = update
    key = jax.random.fold_in(jax.random.key(5), STEP)
    images = (batch['image'].astype(np.float32) - setup.preprocess.mean) / setup.preprocess.std
    target = 0.8 * np.eye(CLASSES)[batch['label']] + 0.2 / CLASSES

    def loss(params):
        variables = {'params': params, 'batch_stats': before.batch_stats}
        logits, new = setup.module.apply(variables, jnp.asarray(images), train=True, mutable=['batch_stats'], rngs={'dropout': key})
        return -jnp.sum(target * jax.nn.log_softmax(logits)) / 8, new['batch_stats']

    (value, statistics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(before.params)
    rate = 3.2 * 8 / 256 * STEP / 10  # warm-up lasts a tenth of an epoch of 100 updates
    named = jax.tree_util.tree_flatten_with_path(before.params)[0]
    assert sum('bn' in jax.tree_util.keystr(path) for path, _ in named) > 4
    for (path, old), grad, new in zip(named, jax.tree.leaves(grads), jax.tree.leaves(after.params), strict=True):
        decay = 0.0 if 'bn' in jax.tree_util.keystr(path) else 0.25 * old
        np.testing.assert_allclose(new, old - rate * (grad + decay), rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    decay = min(0.9, (1 + STEP + 1) / (10 + STEP + 1))
    new = {'params': after.params, 'batch_stats': statistics}
    for old, fresh, average in zip(*map(jax.tree.leaves, (before.ema, new, after.ema)), strict=True):
        np.testing.assert_allclose(average, decay * old + (1 - decay) * fresh, rtol=1e-4, atol=1e-5)
    assert float(metrics['loss']) == pytest.approx(8 * float(value), rel=1e-4) and float(metrics['count']) == 8
    norm = np.sqrt(sum(np.sum(np.square(grad)) for grad in jax.tree.leaves(grads)))
    assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-3)


def test_dropout_and_drop_path_differ_from_step_to_step_and_by_seed(update):
    setup, batch, before, _, _ = update
    step = jax.jit(functools.partial(train_step, setup.module, setup.optimizer, setup.recipe))
    other = ONE(config(seed=6), CLASSES, EXAMPLES)
    other_step = jax.jit(functools.partial(train_step, other.module, other.optimizer, other.recipe))
    norms = [float(step(before.replace(step=np.int32(number)), batch)[1]['grad_norm']) for number in (3, 4, 5, 3)]
    norms.append(float(other_step(before.replace(step=np.int32(3)), batch)[1]['grad_norm']))
    assert norms[0] == norms[3] and len(set(norms)) == 4


def test_initial_weights_follow_the_seed(update):
    before = update[2]
    again, other = (ONE(config(seed=seed), CLASSES, EXAMPLES).init().params['stem']['kernel'] for seed in (5, 6))
    np.testing.assert_array_equal(again, before.params['stem']['kernel'])
    assert np.abs(np.asarray(other) - before.params['stem']['kernel']).max() > 0.1


def test_evaluation_takes_running_statistics_and_masks(update):
    setup, batch, before, _, _ = update
    variables, mask = before.variables(), np.arange(8) < 5
    images = (batch['image'].astype(np.float32) - setup.preprocess.mean) / setup.preprocess.std
    logits = np.asarray(setup.module.apply(variables, jnp.asarray(images), train=False))
    sums = jax.device_get(setup.inference.jit(eval_step)(variables, batch | {'mask': mask}))
    log_p = jax.nn.log_softmax(logits)[np.arange(8), batch['label']]
    assert sums['loss'] == pytest.approx(-float(np.sum(log_p[:5])), rel=1e-4) and sums['count'] == 5
    assert sums['top1'] == np.sum(np.argmax(logits, 1)[:5] == batch['label'][:5])


def test_evaluation_scores_the_weights_and_their_average(update):
    setup, _, before, _, _ = update
    weights = setup.weights_of(before)
    assert weights.keys() == {'eval', 'eval_ema'} and weights['eval']['params'] is before.params
    for given, average in zip(jax.tree.leaves(weights['eval_ema']), jax.tree.leaves(before.ema), strict=True):
        np.testing.assert_array_equal(given, average)


def test_the_network_is_told_its_options():
    options = {
        'batch_norm_group': 4, 'remat': 'blocks', 'classifier_init_scale': 0.0, 'freeze_batch_norm': True, 'init_from': 'x', 'dtype': 'bfloat16',
    }  # fmt: skip
    setup = training_of(config(**options), CLASSES, EXAMPLES, devices=jax.devices()[:4])
    module = setup.module
    assert (module.batch_norm_group, module.remat, module.freeze_batch_norm, module.data_shards) == (4, 'blocks', True, 4)
    assert module.classifier_init_scale == 0 and module.dtype == jnp.bfloat16 and module.num_classes == CLASSES
    architecture = ONE(config(bn_momentum=0.7, resolution=24), CLASSES, EXAMPLES).module.architecture
    assert (architecture.dropout, architecture.drop_path, architecture.bn_momentum, architecture.resolution) == (0.5, 0.5, 0.7, 24)
    frozen = ONE(config(backbone_lr_multiplier=0.0, init_from='x'), CLASSES, EXAMPLES)
    assert frozen.recipe.frozen and not ONE(config(), CLASSES, EXAMPLES).recipe.frozen
    assert training_of(config(), CLASSES, EXAMPLES).mesh.shape == {'data': 8, 'spatial': 1}
    sharded = config()
    sharded.mesh.update(spatial=2, shard_state=True)
    setup = training_of(sharded, CLASSES, EXAMPLES)
    assert setup.mesh.shape == {'data': 4, 'spatial': 2} and setup.shard_state


def test_evaluation_and_prediction_do_not_see_the_training_batch():
    """Five devices and a batch of 32, an odd batch with mixup, groups that do not divide: nothing that a network minds."""
    chosen = config(batch_size=31, batch_norm_group=7, epochs=0.0)
    chosen.augment.mixup = 0.2
    inference = inference_of(chosen, CLASSES, devices=jax.devices()[:5], split=False)
    assert inference.mesh.shape == {'data': 5, 'spatial': 1} and inference.module.batch_norm_group is None


def test_the_stream_is_the_configs(data_dir):
    chosen = config(data_dir=data_dir, interpolation='bilinear', max_corrupt=3)
    chosen.augment.update(crop='pad', pad=2, flip=0.5)
    source = sources.open_source('digits', 'train', data_dir)
    setup = ONE(chosen, CLASSES, len(source))
    wanted = pipeline.train_batches(
        source, batch_size=8, resolution=16, seed=5, start_step=2, augment=Augment(**chosen.augment), interpolation='bilinear'
    )
    with contextlib.closing(Stream(chosen, setup, source)) as stream, contextlib.closing(wanted):
        stream.start(2)
        for expected, batch in zip([next(wanted) for _ in range(2)], [stream.next() for _ in range(2)], strict=True):
            np.testing.assert_array_equal(batch['image'], expected['image'])
            np.testing.assert_array_equal(batch['label'], expected['label'])
        stream.start(0)
        batch = stream.next()
        first, labels = np.asarray(batch['image']), np.asarray(batch['label'])
    for changed in ({'seed': 6}, {'interpolation': 'bicubic'}):
        other = config(data_dir=data_dir, **({'interpolation': 'bilinear'} | changed))
        other.augment.update(crop='pad', pad=2, flip=0.5)
        with contextlib.closing(Stream(other, ONE(other, CLASSES, len(source)), source)) as stream:
            stream.start(0)
            batch = stream.next()
            assert (np.asarray(batch['image']) != first).any(), changed
            assert ('seed' in changed) == (np.asarray(batch['label']) != labels).any()  # the order follows the seed alone


def test_a_run_keeps_the_best_of_four_evaluations(tmp_path, data_dir):
    chosen = tiny.get_config()
    chosen.update(data_dir=data_dir, steps=8, keep_last=1, keep_best=1, log_every_steps=3)
    chosen.eval_every_epochs = chosen.checkpoint_every_epochs = 2 * 32 / 1500
    given = {2: 0.3, 4: 0.6, 6: 0.5, 8: 0.4}

    def scored(setup, source, config):
        return lambda state, interrupt=None: {
            'eval': {'top1': 1 - given[int(state.step)], 'top5': 1.0, 'loss': 1.0, 'count': 297},
            'eval_ema': {'top1': given[int(state.step)], 'top5': 1.0, 'loss': 1.0, 'count': 297},
        }

    loop.train(chosen, str(tmp_path), build=ONE, evaluate=scored)
    kept = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit())
    assert kept == [4, 8]
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['top1']) for line in lines if line['split'] == 'eval_ema'] == list(given.items())
    assert [(line['step'], line['updates']) for line in lines if line['split'] == 'train'] == [(2, 2), (3, 1), (4, 1), (6, 2), (8, 2)]
