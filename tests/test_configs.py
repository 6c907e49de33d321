"""Every config loads, is a card, and builds its model and state without computing anything."""

import dataclasses
import importlib
import pathlib
import subprocess
import sys

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
        ({'width': 0.0}, r'width=0.0 must be a multiplier in \(0, 16\]'),
        ({'stages': ((1, 3, 1, 1),)}, r'stages: \(1, 3, 1, 1\) must be repeats, kernel, stride, expand, filters'),
        ({'stages': ((1, 4, 1, 1, 16),)}, r'stages: \(1, 4, 1, 1, 16\) must have positive numbers, an odd kernel'),
        ({'stages': ((1, 3, 1, 1, 16, None, 'conv9'),)}, "op='conv9' in .* must be one of mbconv"),
        ({'stages': ((1, 3, 1, 1, 16, None, 'conv', 'max'),)}, "skip='max' in .* must be one of True, False, 'pool'"),
        ({'eval_crop_padding': -4}, 'eval_crop_padding=-4 must be at least 0'),
    ],
)
def test_bad_values(knobs, message):
    config = importlib.import_module('configs.default').get_config()
    for knob, value in knobs.items():
        config[knob] = value
    with pytest.raises(ValueError, match=message):
        training_of(config, 1000, train_examples=1_281_167)


def main(*flags):
    return subprocess.run([sys.executable, 'main.py', *flags], cwd=ROOT, capture_output=True, text=True)


def test_an_unknown_knob_is_named_with_near_ones():
    finished = main('--config=configs/b0.py', '--workdir=/gone', '--config.batchsize=3')
    assert finished.returncode == 1
    assert (
        finished.stderr == 'No such knob: \'batchsize\'. Did you mean "batch_size" instead of "batchsize"? All knobs: configs/default.py.\n'
    )


@pytest.mark.parametrize('path', ['configs/nope.py', 'b0', 'configs/nope.py:folder,b0', 'configs'])
def test_a_config_that_is_no_file_gets_one_line_with_those_that_are(path):
    finished = main(f'--config={path}', '--workdir=/gone', '--config.steps=3')
    assert finished.returncode == 1 and finished.stderr.count('\n') == 1
    assert finished.stderr.startswith(f'--config={path} is not a file. Configs: configs/NAME.py with NAME of b0, b1, ')


def test_words_that_a_mode_does_not_take_are_not_passed_over():
    finished = main('--config=configs/b0.py', '--workdir=/gone', 'a.jpg')
    assert finished.returncode == 1 and "mode=train takes flags alone, not 'a.jpg'; image files are for --mode=predict." in finished.stderr


def test_help_says_what_each_mode_leaves():
    text = main('--help').stdout
    modes = importlib.import_module('main').MODES
    assert all(f'\n  --mode={mode} ' in text for mode in modes) and '--config=configs/' in text


def test_stages_width_and_depth_of_a_config_make_the_network():
    config = importlib.import_module('configs.default').get_config()
    rows = tuple(dataclasses.astuple(stage)[:8] for stage in architectures.get('efficientnet_b0').stages)
    config.stages, config.width, config.depth, config.resolution = rows, 1.2, 1.4, 300
    b3 = architectures.get('efficientnet_b3')
    assert architecture_of(config).blocks() == b3.blocks()
    config.stages = rows[:3]
    assert len(architecture_of(config).stages) == 3


def test_none_on_the_command_line_turns_a_knob_off():
    config = importlib.import_module('configs.b7').get_config()
    config.remat = config.augment.policy = 'None'
    config = importlib.import_module('main').cleared(config)
    assert config.remat is None and config.augment.policy is None and config.model == 'efficientnet_b7'
