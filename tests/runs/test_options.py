"""Every option has a row of rules, which fits configs/default.py and the code that reads it, and refuses what nobody can mean."""

import importlib
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import default
from efficientnet_jax import models
from efficientnet_jax.data import preprocess
from efficientnet_jax.data.augment import policies
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation import network
from efficientnet_jax.export import export
from efficientnet_jax.runs import options
from efficientnet_jax.search import objective, space, strategies
from efficientnet_jax.study import grid, methods
from efficientnet_jax.study.study import OTHERS, TITLES
from efficientnet_jax.training import optim

CONFIGS = sorted(path.stem for path in pathlib.Path(default.__file__).parent.glob('*.py') if path.stem != '__init__')
# What no option may be, whatever its kind; and what a kind may not be.
NEVER = ('', 'a\nb', '\0', 'ünïcödé\n', object(), float('nan'), float('inf'), -float('inf'), 10**30, -(10**30), 1e30, [], {}, b'x')
NOT_OF = {
    int: (1.5, '3', 'many', True, (1,)),
    float: ('0.5', 'half', True, (0.5,)),
    bool: ('True', 0, 1, 1.0),
    str: (0, 1.5, True, ('x',), 'x' * 5000),
    tuple: ('one', 1, 0.5, True, ('nosuch',), (None,), (float('nan'), 1.0)),
}
NEGATIVE = {'mesh.data', 'search.w'}  # -1 is a value of these


def flat(config, group=''):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f'{group}{name}.')
        else:
            yield f'{group}{name}', value


DEFAULTS = dict(flat(default.get_config()))


def field_type(name):
    """The type that the command line and ConfigDict hold an option to."""
    config = default.get_config()
    *groups, leaf = name.split('.')
    for group in groups:
        config = config[group]
    return config.get_type(leaf)


def test_every_option_of_the_default_config_has_its_row():
    assert set(DEFAULTS) == set(options.OPTIONS)


@pytest.mark.parametrize('name', options.OPTIONS)
def test_a_row_fits_the_default(name):
    option, value = options.OPTIONS[name], DEFAULTS[name]
    assert field_type(name) is option.kind
    assert value is None or type(value) is option.kind
    options.check_value(name, value)


@pytest.mark.parametrize('name', CONFIGS)
def test_published_configs_are_within_the_rules(name):
    options.check(importlib.import_module(f'configs.{name}').get_config())


@pytest.mark.parametrize('name', options.OPTIONS)
def test_what_nobody_can_mean_is_refused_in_one_line(name):
    option = options.OPTIONS[name]
    bad = [*NEVER, *NOT_OF[option.kind]]
    if option.kind in (int, float) and name not in NEGATIVE:
        bad.append(-1)
    if option.choices:
        bad.append('nosuch')
    if option.optional:
        options.check_value(name, None)
    else:
        bad.append(None)
    for value in bad:
        if value in option.also:
            continue
        with pytest.raises(UserError) as error:
            options.check_value(name, value)
        text = str(error.value)
        assert (text.startswith((f'{name}=', 'stages')) and ' must ' in text) or name == 'model', text
        assert '\n' not in text and text.endswith('.') and len(text) < 1500


@pytest.mark.parametrize('name', [name for name, option in options.OPTIONS.items() if option.kind in (int, float)])
def test_the_ends_of_a_range(name):
    option = options.OPTIONS[name]
    assert math.isfinite(option.low) and math.isfinite(option.high) and option.low < option.high
    kind = option.kind
    for end, left_out in ((kind(option.low), option.above), (kind(option.high), option.below)):
        if left_out:
            with pytest.raises(UserError, match='must be'):
                options.check_value(name, end)
        else:
            options.check_value(name, end)


@pytest.mark.parametrize(
    ('name', 'allowed'),
    [
        ('dtype', network.DTYPES),
        ('remat', models.REMAT),
        ('normalisation', preprocess.NORMALISATIONS),
        ('augment.crop', policies.CROPS),
        ('augment.policy', policies.POLICIES),
        ('augment.on', policies.PLACES),
        ('optimizer', optim.OPTIMIZERS),
        ('schedule', optim.SCHEDULES),
        ('export.formats', export.FORMATS),
        ('study.kind', (*TITLES, *OTHERS)),
        ('study.constraint', grid.CONSTRAINTS),
        ('study.depth_rounding', grid.DEPTH_ROUNDINGS),
        ('study.methods', methods.METHODS),
        ('search.strategy', strategies.STRATEGIES),
        ('search.space', space.SPACES),
        ('search.reward', objective.REWARDS),
        ('search.cost', objective.COSTS),
    ],
)
def test_choices_are_what_the_code_has(name, allowed):
    assert set(options.OPTIONS[name].choices) == set(allowed)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        (
            'seed',
            2**32,
            r'seed=4294967296 must be between 0 and 4294967295: random keys take 32 bits',
        ),  # jax.random.key would take it for 0
        ('seed', -1, r'seed=-1 must be between 0 and 4294967295: '),
        ('decay_rate', 0.0, r'decay_rate=0.0 must be above 0 and at most 1: .*schedule=constant keeps'),  # optax: a constant rate
        ('decay_rate', 1.5, r'decay_rate=1.5 must be above 0 and at most 1: '),
        ('warmup_epochs', math.inf, r'warmup_epochs=inf must be at least 0 and finite\.'),
        ('eval_every_epochs', 0.0, r'eval_every_epochs=0.0 must be at least 1e-06 epochs, or inf: with inf at the end alone\.'),
        ('steps', 2**31, r'steps=2147483648 must be at least 0 and at most 2147483647, or None\.'),
        ('steps', 'many', r"steps='many' must be a whole number, at least 0, or None\."),
        ('batch_size', None, r'batch_size=None must be a whole number, at least 1 image\.'),
        ('mesh.data', 0, r'mesh.data=0 must be at least 1, or -1\.'),
        ('augment.area', (0.5, 0.1), r'augment.area=\(0.5, 0.1\) must be two increasing numbers above 0 and at most 1\.'),
        ('model', None, r'model=None must be one of efficientnet_b0, '),
        ('model', 'b3', r"model='b3' is not an architecture; near names: efficientnet_b3"),
        ('dataset', 'x' * 10**4, r"dataset='x{99}\.\.\. must be text on one line\."),
        ('export.formats', ('onnx',), r"export.formats=\('onnx',\) must be one or more of stablehlo, "),
    ],
)
def test_messages(name, value, message):
    with pytest.raises(UserError, match=message):
        options.check_value(name, value)


def test_the_check_of_a_config_reaches_into_its_groups():
    config = default.get_config()
    config.search.trials = 0
    with pytest.raises(UserError, match=r'search.trials=0 must be at least 1\.'):
        options.check(config)
