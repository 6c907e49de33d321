"""A supernet on digits with the normal trainer: goes on where it was killed, scores candidates as their own networks would."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax import models
from efficientnet_jax.evaluation.inference import eval_step
from efficientnet_jax.runs import record, storage
from efficientnet_jax.search import supernet_train
from efficientnet_jax.search.masks import largest, smallest
from efficientnet_jax.search.space import Space
from efficientnet_jax.search.supernet import slice_weights
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')


def setting(data_dir):
    config = tiny.get_config()
    config.data_dir, config.steps = data_dir, 4
    config.train_split, config.eval_split = 'train[:-300]', 'train[-300:]'
    config.checkpoint_every_epochs = 2 * 32 / 1200
    tiny_net = tiny.ARCHITECTURES['tiny']
    space = Space('tiny', tiny_net, base=tiny_net, ops=('mbconv',), expands=(1, 2), filters=(0.5, 1.0), repeats=(0, 1), skips=('identity',))
    return config, supernet_train.scaled(space, config)


@pytest.mark.slow
def test_resume_and_scores(tmp_path, data_dir):
    config, space = setting(data_dir)
    whole, exp = supernet_train.train_supernet(config, space, str(tmp_path / 'whole'))
    result = storage.read_json(str(tmp_path / 'whole' / 'result.json'))
    assert result['step'] == 4 and set(result['metrics']) == {'eval', 'eval_smallest'}

    # What a run leaves that was killed after the checkpoint of step 2 goes on to the same bits.
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    shutil.rmtree(tmp_path / 'cut' / 'checkpoints' / '4')
    with record.changing(str(tmp_path / 'cut')) as found:
        found['starts'], found['results'] = [], {}
    again, _ = supernet_train.train_supernet(config, space, str(tmp_path / 'cut'))
    assert storage.read_json(str(tmp_path / 'cut' / 'result.json'))['examples'] == 2 * config.batch_size
    jax.tree.map(np.testing.assert_array_equal, whole, again)

    evaluator = supernet_train.Evaluator(exp, config)
    variables = whole.variables(ema=True)
    scores = {name: evaluator.score(variables, end(space)) for name, end in (('eval', largest), ('eval_smallest', smallest))}
    assert scores == result['metrics'] and scores['eval']['count'] == 300
    assert evaluator.statistics._cache_size() == evaluator.evaluate._cache_size() == 1

    # The candidate's own network with the slices and calibrated statistics scores the same.
    tokens = jnp.array(space.tokens(smallest(space)), jnp.int32)
    architecture = space.decode(smallest(space))
    own = slice_weights(evaluator.calibrated(variables, tokens), architecture)
    module = models.build(architecture, 10)
    loss = sum(float(eval_step(module, exp.preprocess, own, batch)['loss']) for batch in evaluator._holdout)
    assert loss / 300 == pytest.approx(scores['eval_smallest']['loss'], abs=1e-4)

    with pytest.raises(ValueError, match=r'holds the supernet .*choose another --workdir'):
        config.supernet.largest_share = 0.5
        supernet_train.train_supernet(config, space, str(tmp_path / 'whole'))


def test_what_cannot_work_is_said(tmp_path, data_dir):
    for knob, value, message in (
        ('stages', ((1, 3, 1, 1, 8),), 'stages must be None'),
        ('supernet.largest_share', 1.5, 'supernet.largest_share=1.5 must be between 0 and 1'),
    ):
        config, space = setting(data_dir)
        config.update_from_flattened_dict({knob: value})
        with pytest.raises(ValueError, match=message):
            supernet_train.train_supernet(config, supernet_train.scaled(space, config), str(tmp_path))
