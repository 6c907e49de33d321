"""Rematerialisation changes memory and not the result: gradients, batch statistics and random choices are those of a run without."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.models import REMAT, build
from efficientnet_jax.tpu import hlo_cost

NET = Architecture('two', (Stage(2, 3, 1, 2, 8),), stem=8, head=16, drop_path=0.5)


def gradients(remat):
    module = build(NET, 4, remat=remat)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = jax.jit(lambda: module.init(jax.random.key(1), images, train=False))()

    def loss(params):
        variables_now = variables | {'params': params}
        logits, updated = module.apply(variables_now, images, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(2)})
        return jnp.sum(jnp.square(logits)), updated

    fast = {'xla_backend_optimization_level': 0}  # to compile
    compiled = jax.jit(jax.grad(loss, has_aux=True), compiler_options=fast).lower(variables['params']).compile()
    return compiled(variables['params']), compiled.as_text()


def recomputed_convolutions(program):
    """Paths of those before a batch norm that the program runs again in the backward pass (dead ones are in no compiled program)."""
    paths = set(re.findall(r'op_name="([^"]*/bn/[^"]*(?:dot_general|conv_general_dilated))"', program))
    return [path for path in paths if hlo_cost.direction(path) == 'recompute']


@pytest.fixture(scope='module')
def without():
    return gradients(None)


@pytest.mark.parametrize('remat', REMAT)
def test_remat_changes_nothing_but_memory(without, remat):
    (wanted, program_without), (found, program) = without, gradients(remat)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
    assert not recomputed_convolutions(program_without)
    assert bool(recomputed_convolutions(program)) == (remat == 'blocks')


def test_an_unknown_policy_is_an_error():
    from configs import default
    from efficientnet_jax.training.setup import training_of

    config = default.get_config()
    config.remat = 'all'
    with pytest.raises(ValueError, match="remat='all' must be one of activations, blocks"):
        training_of(config, 10, 5000)
