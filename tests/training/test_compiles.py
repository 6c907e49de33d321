"""A run compiles its update once and its evaluation once, however many steps, evaluations and checkpoints it has, and so does a resumed one."""

import collections
import re

import jax
import pytest

from efficientnet_jax.training.loop import train
from tests import tiny


def compiled(caplog):
    """Counts of train_step and eval_step among the programs that JAX has compiled since the last call."""
    found = collections.Counter(re.findall(r'Compiling (?:jit\()?(train_step|eval_step)', caplog.text))
    caplog.clear()
    return found


@pytest.mark.slow
def test_update_and_evaluation_are_compiled_once(tmp_path, data_dir, caplog):
    config = tiny.get_config()
    config.data_dir, config.steps = data_dir, 12
    config.eval_every_epochs = 4 * 32 / 1500  # 4 steps: three evaluations of raw and averaged weights, the last batch of each padded
    with jax.log_compiles():
        train(config, str(tmp_path / 'run'))
        assert compiled(caplog) == {'train_step': 1, 'eval_step': 1}
        for path in (tmp_path / 'run' / 'checkpoints').glob('12'):
            path.rename(tmp_path / 'gone')
        train(config, str(tmp_path / 'run'))  # from step 6
        assert compiled(caplog) == {'train_step': 1, 'eval_step': 1}
