"""The train step against arithmetic: what it averages, what it counts, and that it is compiled once."""

import functools
import itertools

import jax
import numpy as np
import pytest

from efficientnet_jax.evaluation.inference import eval_step
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.training.step import train_step
from tests import tiny


@pytest.fixture(scope='module')
def run():
    """The tiny net, its jitted step, and three states with the metrics between them."""
    config = tiny.get_config()
    config.batch_size = config.eval_batch_size = 8
    setup = training_of(config, 10, 1500)
    step = jax.jit(functools.partial(train_step, setup.module, setup.optimizer, setup.recipe))
    rng = np.random.default_rng(0)
    batch = {'image': rng.integers(0, 256, (8, 16, 16, 3), np.uint8), 'label': np.arange(8, dtype=np.int32)}
    states, metrics = [jax.device_get(setup.init())], []
    for _ in range(2):
        state, measured = step(states[-1], batch)
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(measured))
    return setup, batch, states, metrics, step


def test_moving_average_covers_weights_and_statistics(run):
    _, _, states, _, _ = run
    for number, (before, after) in enumerate(itertools.pairwise(states), 1):
        decay = min(0.99, (1 + number) / (10 + number))
        new = {'params': after.params, 'batch_stats': after.batch_stats}
        for old, fresh, average in zip(*map(jax.tree.leaves, (before.ema, new, after.ema)), strict=True):
            np.testing.assert_allclose(average, decay * old + (1 - decay) * fresh, rtol=2e-5, atol=1e-6)


def test_step_counts_updates_and_images(run):
    _, _, states, metrics, _ = run
    assert [int(state.step) for state in states] == [0, 1, 2]
    assert [float(m['count']) for m in metrics] == [8, 8] and all(m['grad_norm'] > 0 for m in metrics)


def test_same_state_and_batch_give_the_same_bits(run):
    _, batch, states, _, step = run
    again = jax.device_get(step(states[1], batch)[0])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(states[2]), strict=True))


def test_the_step_is_compiled_once(run):
    assert run[4]._cache_size() == 1


def test_evaluation_ignores_what_is_masked(run):
    setup, batch, states, _, _ = run
    evaluate = setup.inference.jit(eval_step)
    mask = np.arange(8) < 5
    noise = {'image': np.where(mask[:, None, None, None], batch['image'], 255 - batch['image']), 'label': batch['label'], 'mask': mask}
    assert jax.device_get(evaluate(states[2].variables(), noise)) == jax.device_get(evaluate(states[2].variables(), batch | {'mask': mask}))
