"""What comes back from a stranger's file beside the arrays: every field has a rule, and a wrong one is named with the file."""

import json
import re

import numpy as np
import pytest

from efficientnet_jax import architectures, weights
from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.data.preprocess import LITE, Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import description

TINY = Architecture('tiny', (Stage(1, 3, 1, 1, 8),), stem=8, head=8)


def described():
    return description.describe(TINY, 2, Preprocess(96, 0.9, 'bilinear', **LITE), ['a', 'b'])


@pytest.mark.parametrize('name', architectures.names())
def test_every_architecture_comes_back(name):
    architecture, preprocess = architectures.get(name), Preprocess(96, 0.9, 'bilinear', **LITE)
    content = description.describe(architecture, 2, preprocess, ['a', 'b'])
    assert description.parse(content, 'x') == (architecture, 2, preprocess, ('a', 'b'))
    assert description.parse(description.describe(architecture, 1000), 'x') == (architecture, 1000, None, None)


WRONG = [
    ('stages.0.repeats', 10**9), ('stages.0.repeats', 1001), ('stages.0.filters', 0), ('stages.0.filters', 10**30), ('stages.0.op', 'eval'),
    ('stages.0.op', []), ('stages.0.kernel', 2), ('stages.0.se', 'x'), ('stages.0.se', float('nan')), ('stages.0.skip', 'x'),
    ('stages', []), ('stages', 5), ('stages', [5]), ('stages', None), ('name', 5), ('name', 'a\nb'), ('name', 'x' * 1000),
    ('width', 'x'), ('width', 10**9), ('width', float('nan')), ('width', None), ('width', True), ('depth', 10**6), ('depth', -1), ('depth', float('inf')),
    ('resolution', 0), ('resolution', 10**9), ('resolution', 1.5), ('dropout', 2), ('drop_path', []), ('activation', 'exec'), ('activation', []),
    ('stem', -1), ('stem', '8'), ('stem_kernel', 0), ('stem_pool', 1), ('head', 0), ('head', {}), ('fixed_stem_and_head', 'no'),
    ('depth_rounding', 'up'), ('divisor', 0), ('padding', 'none'), ('bn_momentum', 2), ('bn_epsilon', -1), ('other', 1),
]  # fmt: skip


@pytest.mark.parametrize('field, value', WRONG)
def test_a_wrong_field_of_the_architecture(field, value):
    content = described()
    *way, last = field.split('.')
    place = content['architecture']
    for part in way:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    with pytest.raises(UserError, match=rf'^a/b.npz.*({last}|{way[0] if way else last}|TypeError)'):
        description.parse(content, 'a/b.npz')


@pytest.mark.parametrize(
    'field, value',
    [
        ('num_classes', 'many'), ('num_classes', 0), ('num_classes', 10**12), ('num_classes', True), ('num_classes', None), ('version', 2),
        ('class_names', ['a']), ('class_names', 'ab'), ('class_names', ['a', 5]), ('class_names', ['a', 'b\n']), ('preprocess', 5),
        ('preprocess', {'resolution': -1}), ('preprocess', {'resolution': 10**9}), ('preprocess', {'resolution': 'x'}), ('preprocess', {}),
        ('preprocess', {'resolution': 9, 'mean': [1, 2]}), ('preprocess', {'resolution': 9, 'std': [1, 1, 0]}),
        ('preprocess', {'resolution': 9, 'std': [1, 1, float('nan')]}), ('preprocess', {'resolution': 9, 'mean': 'abc'}),
        ('preprocess', {'resolution': 9, 'crop': 'x'}), ('preprocess', {'resolution': 9, 'crop': 10**9}),
        ('preprocess', {'resolution': 9, 'interpolation': []}), ('preprocess', {'resolution': 9, 'more': 1}), ('architecture', None),
    ],
)  # fmt: skip
def test_a_wrong_field_beside_the_architecture(field, value):
    with pytest.raises(UserError, match=r'^a/b\.npz') as caught:
        description.parse(described() | {field: value}, 'a/b.npz')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [None, 5, 'text', [], {}, {'version': 1}])
def test_other_things(content):
    with pytest.raises(UserError, match=r'^a/b\.npz was described by another version of this project'):
        description.parse(content, 'a/b.npz')


def test_blocks_are_counted_after_depth_scaling():
    content = described()
    content['architecture'] |= {'depth': 16.0, 'stages': content['architecture']['stages'] * 63}
    with pytest.raises(UserError, match=r'1008 blocks.* must be at most 1000 blocks after depth scaling'):
        description.parse(content, 'x')


@pytest.mark.parametrize('note', ['{', 'null', '5', json.dumps(described() | {'num_classes': 'many'})])
def test_a_file_with_a_wrong_description_is_named(tmp_path, note):
    path = str(tmp_path / 'a.npz')
    np.savez(path, efficientnet_jax=np.array(note), a=np.zeros(3))
    with pytest.raises(UserError, match=f'^{re.escape(path)}'):
        weights.load(path)
