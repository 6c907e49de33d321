"""Every config loads, is a card, and builds its model and state without computing anything."""

import dataclasses
import importlib
import pathlib

import jax
import pytest

from efficientnet_jax import architectures
from efficientnet_jax.evaluation.network import architecture_of
from efficientnet_jax.training.setup import training_of

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(p.stem for p in ROOT.joinpath('configs').glob('*.py') if p.stem not in ('__init__', 'transfer'))


@pytest.mark.parametrize('name', NAMES)
def test_config(name):
    module = importlib.import_module(f'configs.{name}')
    config = module.get_config()
    if name != 'default':
        assert f'--config=configs/{name}.py' in module.__doc__
    setup = training_of(config, 1000, train_examples=1_281_167)
    state = jax.eval_shape(setup._init)
    assert state.params['classifier']['bias'].shape == (1000,)
    assert (state.ema is None) == (config.ema_decay is None)


def test_every_released_efficientnet_has_a_config():
    released = [n for n in architectures.names() if n.startswith('efficientnet_') and n != 'efficientnet_l2_475']
    assert {importlib.import_module(f'configs.{n}').get_config().model for n in NAMES} >= set(released)


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'batch_size': 100}, r'batch_size=100 must be a positive multiple of 8 \(mesh data=8\); nearest: 96 or 104'),
        ({'dtype': 'float16'}, "dtype='float16' must be one of bfloat16, float32"),
        ({'dropout': 1.5}, 'dropout=1.5 must be between 0 and 0.99'),
        ({'model': 'efficientnet_b9'}, "model='efficientnet_b9' is not an architecture; near names: efficientnet_b"),
        ({'batch_norm_group': 7}, 'batch_norm_group=7 must divide batch_size=4096'),
        ({'steps': 0}, r'epochs=350.0, steps=0 make no update at batch_size=4096; set steps=1 or more'),
        ({'epochs': -1.0}, 'epochs=-1.0 must be at least 0'),
        ({'lr_per_256': float('nan')}, 'lr_per_256=nan must be at least 0'),
        ({'momentum': 1.5}, 'momentum=1.5 must be between 0 and 1'),
        ({'eval_crop_fraction': 1.5}, 'eval_crop_fraction=1.5 must be between 0.01 and 1'),
        ({'width': 0.0}, r'width=0.0 must be above 0 and at most 16'),
        ({'stages': ((1, 3, 1, 1),)}, r'stages: \(1, 3, 1, 1\) must be repeats, kernel, stride, expand, filters'),
        ({'stages': ((1, 4, 1, 1, 16),)}, r'stages: kernel=4 in \(1, 4, 1, 1, 16\) must be odd'),
        ({'stages': ((1.5, 3, 1, 1, 16),)}, r'stages: repeats=1.5 in \(1.5, 3, 1, 1, 16\) must be a whole number from 1 to 1000'),
        ({'stages': ((10**9, 3, 1, 1, 16),)}, r'stages: repeats=1000000000 in .* must be a whole number from 1 to 1000'),
        ({'stages': ((1, 3, 3, 1, 16),)}, r'stages: stride=3 in .* must be a whole number from 1 to 2'),
        ({'stages': ((1, 3, True, 1, 16),)}, r'stages: stride=True in .* must be a whole number from 1 to 2'),
        ({'stages': ((1, 3, 1, 1, 16, 5.0),)}, r'stages: se=5.0 in .* must be between 0 and 1, or None'),
        ({'stages': ((1, 3, 1, 1, 16, -0.25),)}, r'stages: se=-0.25 in .* must be between 0 and 1, or None'),
        ({'stages': ((1, 3, 1, 1, 16, 'a'),)}, r"stages: se='a' in .* must be between 0 and 1, or None"),
        ({'stages': ((1, 3, 1, 1, 16, None, 'mbconv', True, 0),)}, r'stages: expand_from=0 in .* must be a whole number from 1'),
        ({'stages': ((1, 5, 1, 4, 16, None, 'fused'),)}, r"stages: kernel=5 in .* must be 3, the only one that op='fused' has"),
        ({'stages': ((1, 3, 1, 4, 16, 0.25, 'fused'),)}, r"stages: se=0.25 in .* must be None: op='fused' has no squeeze-excite"),
        ({'stages': ((1, 3, 1, 4, 16, 0.25, 'bottleneck'),)}, r"stages: se=0.25 in .* must be None: op='bottleneck' has no squeeze-excite"),
        ({'stages': ((1, 3, 1, 4, 6, None, 'bottleneck'),)}, r'stages: filters=6 in .* must be a multiple of expand=4'),
        ({'stages': (5,)}, r'stages: 5 must be a row \(repeats, kernel'),
        ({'stages': ('abc',)}, r"stages: 'abc' must be a row \(repeats, kernel"),
        ({'stages': ((1, 3, 1, 1, 16, None, 'conv9'),)}, "op='conv9' in .* must be one of mbconv"),
        ({'stages': ((1, 3, 1, 1, 16, None, 'conv', 'max'),)}, "skip='max' in .* must be one of True, False, 'pool'"),
        ({'eval_crop_padding': -4}, 'eval_crop_padding=-4 must be at least 0 pixels'),
    ],
)
def test_bad_values(knobs, message):
    config = importlib.import_module('configs.default').get_config()
    for knob, value in knobs.items():
        config[knob] = value
    with pytest.raises(ValueError, match=message):
        training_of(config, 1000, train_examples=1_281_167)


def test_stages_width_and_depth_of_a_config_make_the_network():
    config = importlib.import_module('configs.default').get_config()
    rows = tuple(dataclasses.astuple(stage)[:8] for stage in architectures.get('efficientnet_b0').stages)
    config.stages, config.width, config.depth, config.resolution = rows, 1.2, 1.4, 300
    b3 = architectures.get('efficientnet_b3')
    assert architecture_of(config).blocks() == b3.blocks()
    config.stages = rows[:3]
    assert len(architecture_of(config).stages) == 3
