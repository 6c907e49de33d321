"""The fine-tuning config: every pair of data and model, and what it says to a name that it does not have."""

import jax
import pytest

from configs import transfer
from efficientnet_jax import architectures
from efficientnet_jax.data.preprocess import LITE, Preprocess
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.weights.init_from import Start


@pytest.mark.parametrize('data', transfer.DATA)
@pytest.mark.parametrize('model', transfer.MODELS)
def test_every_pair(data, model):
    config = transfer.get_config(f'{data},{model}')
    assert architectures.get(config.model)
    assert config.init_from.startswith(f'hf_hub:timm/tf_{config.model}.')
    assert (config.dataset, config.train_split, config.eval_split) == transfer.DATA[data]


def test_the_weights_decide_what_goes_into_the_network():
    """Not the config's own normalisation: Lite's weights on the default knobs are not normalised twice or wrongly."""
    config = transfer.get_config('cifar10,lite0')
    start = Start({'padding': 'same', 'bn_epsilon': 1e-3, 'activation': 'relu6'}, Preprocess(224, 32, 'bicubic', **LITE), 10, None, None)
    setup = training_of(config, 10, train_examples=50_000, start=start)
    assert setup.recipe.preprocess == setup.preprocess == Preprocess(224, 1.0, 'bicubic', **LITE)
    assert setup.horizon.total_steps == 20_000
    assert jax.eval_shape(setup._init).params['classifier']['kernel'].shape == (1280, 10)


@pytest.mark.parametrize('argument', ['imagenet,b0', 'cifar10,b9', ''])
def test_unknown_names(argument):
    with pytest.raises(ValueError, match=f'transfer.py:{argument} must be DATA,MODEL with DATA of cifar10, .* and MODEL of b0, '):
        transfer.get_config(argument)
