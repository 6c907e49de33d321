"""Classes are matched by their names: a network's answer i is the name i that it was trained with, whatever number a data set gives it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efficientnet_jax.data import sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import record, workdir
from efficientnet_jax.weights.init_from import has_checkpoint


def with_classes_of(trained: str, source: sources.Source) -> sources.Source:
    """The source with the numbers that the network of a workdir has for its classes.

    trained: the workdir; where it holds no trained network, or one of the two does not name its classes, the source stays as it is.
    Raises UserError with the names that only one of the two has.
    """
    network = record.read(trained)['network'] if has_checkpoint(trained) else None
    there, here = None if network is None else network['class_names'], source.class_names
    changes = workdir.class_changes(there, here)
    if not changes:
        return source
    if sorted(there) != sorted(here):
        raise UserError(
            f'{source.name} has other classes than the network of workdir={trained}: {"; ".join(changes)}. Give a data set with the classes '
            'that it was trained with, under the same names.'
        )
    return Renumbered(source, there)


class Renumbered(sources.Source):
    """Another source, whose classes have the numbers that they have in a list of the same names."""

    def __init__(self, source: sources.Source, class_names: Sequence[str]):
        super().__init__(source.name, len(source), source.num_classes, tuple(class_names), source.size_bytes)
        self.describe = source.describe
        self._source = source
        self._number = np.array([class_names.index(name) for name in source.class_names], np.int32)

    def read(self, indices):
        """As Source.read."""
        images, labels = self._source.read(indices)
        return images, self._number[labels]
