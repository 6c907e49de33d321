"""The published recipe, each piece against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from efficientnet_jax.evaluation import metrics
from efficientnet_jax.training import optim

IMAGENET = optim.Horizon.of(1_281_167, 2048, 350, None)


def config(**knobs):
    result = default.get_config()
    for knob, value in knobs.items():
        result[knob] = value
    return result


def test_length_of_the_published_run():
    assert IMAGENET.total_steps == 218_949


def test_exponential_schedule_is_a_staircase_from_step_0():
    cfg = config(batch_size=2048)
    rate, per_epoch = optim.learning_rate(cfg, IMAGENET), 1_281_167 / 2048
    for step in (0, 1, 1000, int(5 * per_epoch) - 1, int(5 * per_epoch), 5000, 100_000, 218_948):
        warmup = int(5 * per_epoch)
        expected = 0.128 * step / warmup if step < warmup else 0.128 * 0.97 ** (step // (2.4 * per_epoch))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4), step
    assert float(rate(int(5 * per_epoch))) == pytest.approx(0.128 * 0.97**2, rel=1e-4)  # two steps down when warm-up ends


def test_peak_rate_follows_the_batch_size_after_overrides():
    for batch_size, peak in ((256, 0.016), (2048, 0.128), (4096, 0.256)):
        horizon = optim.Horizon.of(1_281_167, batch_size, 350, None)
        rate = optim.learning_rate(config(batch_size=batch_size, schedule='constant'), horizon)
        assert float(rate(10**6)) == pytest.approx(peak)


def test_cosine_ends_at_zero():
    rate = optim.learning_rate(config(schedule='cosine', batch_size=256, warmup_epochs=1.0), optim.Horizon(10.0, 110))
    assert [float(rate(step)) for step in (0, 10, 60, 110)] == pytest.approx([0, 0.016, 0.008, 0], abs=1e-8)


def test_rmsprop_is_tensorflows():
    cfg = config(batch_size=256, schedule='constant', warmup_epochs=0.0, weight_decay=1e-2)
    transform = optim.optimizer(cfg, optim.Horizon(10.0, 100))
    rng = np.random.default_rng(0)
    params = {'head': {'kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), 'bn': {'scale': jnp.ones(4)}}}
    state = transform.init(params)
    weight, scale = np.array(params['head']['kernel'], np.float64), np.ones(4)
    square, momentum = {'w': np.ones((3, 4)), 's': np.ones(4)}, {'w': np.zeros((3, 4)), 's': np.zeros(4)}
    for _ in range(6):
        grads = {'head': {'kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), 'bn': {'scale': jnp.full(4, 0.3)}}}
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        decayed = {'w': np.array(grads['head']['kernel'], np.float64) + 1e-2 * weight, 's': np.full(4, 0.3)}
        for name, gradient in decayed.items():
            square[name] = 0.9 * square[name] + 0.1 * gradient**2
            momentum[name] = 0.9 * momentum[name] + 0.016 * gradient / np.sqrt(square[name] + 1e-3)
        weight, scale = weight - momentum['w'], scale - momentum['s']
    np.testing.assert_allclose(params['head']['kernel'], weight, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(params['head']['bn']['scale'], scale, rtol=2e-5)


def test_weight_decay_spares_batch_norm_only():
    params = {'stem': {'kernel': 1.0, 'bn': {'scale': 1.0, 'bias': 1.0}}, 'se': {'reduce': {'bias': 1.0}}, 'classifier': {'bias': 1.0}}
    assert optim.decayed(params) == {
        'stem': {'kernel': True, 'bn': {'scale': False, 'bias': False}}, 'se': {'reduce': {'bias': True}}, 'classifier': {'bias': True},
    }  # fmt: skip


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_descends(name):
    cfg = config(optimizer=name, batch_size=256, schedule='constant', warmup_epochs=0.0, lr_per_256=0.05)
    transform = optim.optimizer(cfg, optim.Horizon(10.0, 100))
    params = {'w': jnp.asarray([1.0, -2.0])}
    state = transform.init(params)
    for _ in range(60):
        updates, state = transform.update(params, state, params)  # gradient of half the square
        params = optax.apply_updates(params, updates)
    assert float(jnp.abs(params['w']).max()) < 0.5


def test_ema_decay():
    assert [float(optim.ema_decay(0.9999, step)) for step in (1, 90, 10**6)] == pytest.approx([2 / 11, 0.91, 0.9999])


def test_smoothed_cross_entropy():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(5, 7)), np.array([0, 3, 6, 2, 2])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.9 * np.eye(7)[labels] + 0.1 / 7
    expected = -(target * log_p).sum(1)
    np.testing.assert_allclose(metrics.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.cross_entropy(jnp.asarray(logits), jnp.asarray(target)), expected, rtol=1e-5)


def test_metric_sums_count_masked_examples_once_and_ties_never():
    logits = jnp.asarray([[3.0, 1, 0, 0, 0, 0, 0], [0.0, 1, 2, 3, 4, 5, 6], [1.0] * 7, [9.0, 0, 0, 0, 0, 0, 0]])
    sums = metrics.metric_sums(logits, jnp.asarray([0, 2, 3, 0]), jnp.asarray([True, True, True, False]))
    assert {name: float(sums[name]) for name in ('top1', 'top5', 'count')} == {'top1': 1, 'top5': 2, 'count': 3}


def test_nan_logits_score_nothing():
    sums = metrics.metric_sums(jnp.full((3, 7), jnp.nan), jnp.asarray([0, 2, 6]))
    assert (float(sums['top1']), float(sums['top5']), float(sums['count'])) == (0, 0, 3)


@pytest.mark.parametrize(
    ('knob', 'value', 'message'),
    [
        ('schedule', 'linear', "schedule='linear' must be one of exponential"),
        ('optimizer', 'adam', "optimizer='adam' must be one of rmsprop"),
    ],
)
def test_unknown_names(knob, value, message):
    with pytest.raises(ValueError, match=message):
        optim.optimizer(config(**{knob: value}), optim.Horizon(1.0, 1))


def test_jitted_schedule_equals_eager():
    rate = optim.learning_rate(config(batch_size=4096), IMAGENET)
    assert float(jax.jit(rate)(7777)) == float(rate(7777))
