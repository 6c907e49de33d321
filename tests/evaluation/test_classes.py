"""Classes are matched by name, whatever number a data set gives them."""

import numpy as np
import pytest

from efficientnet_jax.data.sources import Source
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.classes import with_classes_of
from efficientnet_jax.runs import record


class Named(Source):
    """Examples 0, 1, ... of the classes 0, 1, ..."""

    def __init__(self, *names):
        super().__init__('pets', len(names), len(names), names, lambda: 0)

    def _read_one(self, index):
        return b'', index


@pytest.fixture
def trained(tmp_path):
    """A workdir whose network knows cat, cow and dog."""
    (tmp_path / 'checkpoints' / '12').mkdir(parents=True)
    with record.changing(str(tmp_path)) as found:
        found['network'] = {'num_classes': 3, 'class_names': ['cat', 'cow', 'dog']}
    return str(tmp_path)


def test_the_same_names_in_another_order_get_the_numbers_of_the_network(trained):
    source = with_classes_of(trained, Named('dog', 'cat', 'cow'))
    assert source.read([0, 1, 2, 0])[1].tolist() == [2, 0, 1, 2] and source.read([])[1].dtype == np.int32
    assert source.class_names == ('cat', 'cow', 'dog') and len(source) == 3 and source.describe(1) == 'pets example 1'


def test_the_same_order_changes_nothing(trained):
    source = Named('cat', 'cow', 'dog')
    assert with_classes_of(trained, source) is source


def test_other_names_are_refused(trained):
    with pytest.raises(
        UserError, match=r"pets has other classes than the network of workdir=.*: classes: removed 'dog'; added 'a_dog'\. Give"
    ):
        with_classes_of(trained, Named('a_dog', 'cat', 'cow'))


def test_names_that_are_not_known_are_not_compared(trained, tmp_path):
    unnamed = Named()
    unnamed.class_names = None
    assert with_classes_of(trained, unnamed) is unnamed
    source = Named('x')
    assert with_classes_of(str(tmp_path / 'weights alone'), source) is source
