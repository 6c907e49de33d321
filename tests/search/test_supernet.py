"""One masked network for a space: the same numbers as every candidate on its own, one compilation, no gradient where nothing is active."""

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax import architectures, models
from efficientnet_jax.architectures import Stage
from efficientnet_jax.search.masks import draw, largest, smallest
from efficientnet_jax.search.space import Space
from efficientnet_jax.search.supernet import Supernet, slice_weights

# Every kind of choice, and a first stage that keeps the stem's filters.
REFERENCE = dataclasses.replace(
    architectures.get('efficientnet_b0'),
    name='reference',
    stages=(Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 3, 16)),
    stem=8,
    head=32,
    resolution=24,
    dropout=0.0,
    bn_momentum=0.9,
)
SPACE = Space('small', REFERENCE, base=REFERENCE, expands=(2, 3), filters=(0.5, 1.0))
CLASSES = 5


FAST = {'xla_backend_optimization_level': 0}  # tests compile much and run little


class Net(NamedTuple):
    module: Supernet
    variables: dict
    evaluate: Callable  # variables, images, tokens
    train: Callable
    gradients: Callable


@pytest.fixture(scope='module')
def net():
    """With biases and batch statistics other than the initial ones, which would hide a missing mask."""
    module = Supernet(SPACE, CLASSES)
    init = jax.jit(functools.partial(module.init, train=False), compiler_options=FAST)
    leaves, tree = jax.tree.flatten(init(jax.random.key(0), images()))
    rng = np.random.default_rng(1)
    leaves = [x + rng.uniform(0.05, 0.3, x.shape).astype(np.float32) if x.ndim == 1 else x for x in leaves]

    def train(variables, images, tokens):
        return module.apply(variables, images, tokens, **TRAIN)

    def loss(params, batch_stats, images, tokens):
        logits, _ = train({'params': params, 'batch_stats': batch_stats}, images, tokens)
        return jnp.sum(jnp.square(logits))

    functions = functools.partial(module.apply, train=False), train, jax.grad(loss)
    return Net(module, jax.tree.unflatten(tree, leaves), *(jax.jit(f, compiler_options=FAST) for f in functions))


TRAIN = {'train': True, 'mutable': ['batch_stats'], 'rngs': {'dropout': jax.random.key(4)}}


def candidates():
    """Both ends and random ones."""
    rng = random.Random(1)
    return [largest(SPACE), smallest(SPACE), *(SPACE.sample(rng) for _ in range(3))]


def images():
    return jax.random.normal(jax.random.key(2), (4, 24, 24, 3))


def tokens(candidate):
    return jnp.array(SPACE.tokens(candidate), jnp.int32)


def test_the_candidates_tried_have_everything():
    """Whatever the space can switch off is off in one candidate and on in another."""
    for values, part in ((SPACE.ops, 'op'), (SPACE.kernels, 'kernel'), (SPACE.se, 'se'), (SPACE.skips, 'skip'), (SPACE.expands, 'expand')):
        assert {value for c in candidates() for name, value in c.items() if name.endswith(part)} == set(values)
    assert len({c['stage2_repeats'] for c in candidates()}) == len(SPACE.values(2)['repeats'])


@pytest.mark.parametrize('number', range(5))
def test_masked_equals_sliced(net, number):
    """Evaluation and training: logits, updated batch statistics, drop path included."""
    candidate = candidates()[number]
    architecture = SPACE.decode(candidate)
    alone, own = models.build(architecture, CLASSES), slice_weights(net.variables, architecture)

    def both(variables, images):
        return alone.apply(variables, images, train=False), alone.apply(variables, images, **TRAIN)

    evaluated, (trained, stats) = jax.jit(both, compiler_options=FAST)(own, images())
    np.testing.assert_allclose(net.evaluate(net.variables, images(), tokens(candidate)), evaluated, atol=1e-5)
    masked, updated = net.train(net.variables, images(), tokens(candidate))
    np.testing.assert_allclose(masked, trained, atol=1e-5)
    mine = slice_weights({'params': net.variables['params'], **updated}, architecture)['batch_stats']
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), mine, dict(stats['batch_stats']))


@pytest.mark.parametrize('number', [1, 2, 4])
def test_what_is_not_active_gets_no_gradient(net, number):
    """Of every weight that slice_weights leaves out, exactly; and the others have some."""
    candidate = candidates()[number]
    # A mark in the places that the candidate takes, by the gradient of a sum over its slices.
    taken = jax.grad(lambda v: sum(jnp.sum(x) for x in jax.tree.leaves(slice_weights(v, SPACE.decode(candidate)))))(net.variables)['params']
    gradients = net.gradients(net.variables['params'], net.variables['batch_stats'], images(), tokens(candidate))
    for taken_here, gradient in zip(jax.tree.leaves(taken), jax.tree.leaves(gradients), strict=True):
        assert not np.any(np.where(taken_here == 0, gradient, 0.0))
        assert np.any(gradient) or not np.any(taken_here)


@pytest.mark.parametrize('remat', ['activations', 'blocks'])
def test_rematerialisation_lowers(net, remat):
    def loss(params):
        variables = net.variables | {'params': params}
        return net.module.clone(remat=remat).apply(variables, images(), tokens(largest(SPACE)), **TRAIN)[0].sum()

    assert jax.tree.map(jnp.shape, jax.eval_shape(jax.grad(loss), net.variables['params'])) == jax.tree.map(
        jnp.shape, net.variables['params']
    )


def test_one_compilation_for_all_candidates(net):
    logits = [net.evaluate(net.variables, images(), tokens(candidate)) for candidate in candidates()]
    assert len({float(x[0, 0]) for x in logits}) == len(logits)
    assert net.evaluate._cache_size() == 1 and net.train._cache_size() <= 1 and net.gradients._cache_size() <= 1


def test_draws_are_uniform_and_of_the_key_alone():
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.array(jax.jit(jax.vmap(functools.partial(draw, SPACE)))(keys))
    assert (drawn[7] == draw(SPACE, keys[7])).all()
    for column, values in zip(drawn.T, SPACE.choices.values(), strict=True):
        share = np.bincount(column, minlength=len(values)) / len(drawn)
        np.testing.assert_allclose(share, 1 / len(values), atol=0.05)
    full = np.array(jax.jit(jax.vmap(functools.partial(draw, SPACE, largest_share=0.3)))(keys))
    assert 0.25 < np.mean((full == np.array(SPACE.tokens(largest(SPACE)))).all(axis=1)) < 0.35


def test_another_space_is_refused(net):
    wider = dataclasses.replace(SPACE, filters=(0.5, 2.0))
    with pytest.raises(ValueError, match='larger than the supernet'):
        slice_weights(net.variables, wider.decode(largest(wider)))
    deeper = dataclasses.replace(SPACE, repeats=(3,))
    with pytest.raises(ValueError, match=r'stage1_block\d/.* is not in the supernet'):
        slice_weights(net.variables, deeper.decode(largest(deeper)))
