"""A made-up accuracy for every candidate of a space, with an optimum that is known exactly: a search can be tried in seconds.

An oracle is analytic and seeded. Each stage adds a utility: bigger kernels, expansions, filters and more blocks help a little, less and
less; beside it every value of a choice has a random effect, and so has every pair of values within a stage and every pair of filters
of neighbouring stages. Accuracy is a saturating function of their sum. Costs are the true multiply-adds. No noise.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from typing import Any

from efficientnet_jax import architectures, counting
from efficientnet_jax.search.objective import Objective, counted
from efficientnet_jax.search.space import Candidate, Space

PARTS = ('op', 'expand', 'kernel', 'se', 'filters', 'repeats', 'skip')
MAIN, PAIRS, CAPACITY = 0.05, 0.03, 0.08  # standard deviations of the random effects; gain of doubling a capacity


class Oracle:
    """accuracy(candidate) in (0, 1), macs(candidate), reward(candidate), optimum()."""

    def __init__(self, space: Space, seed: int, objective: Objective, resolution: int = 224, num_classes: int = 1000):
        self.space, self.seed, self.objective = space, seed, objective
        self._resolution, self._num_classes = resolution, num_classes

    def accuracy(self, candidate: Candidate) -> float:
        """In (0, 1), without any training: it is made of random effects of the choices, of pairs of them and of capacity."""
        return _accuracy(sum(utility for utility, _ in self._stages(candidate)))

    def macs(self, candidate: Candidate) -> int:
        """Multiply-adds of an image, counted."""
        return counted('macs', self.space.decode(candidate), self._resolution, self._num_classes)

    def reward(self, candidate: Candidate) -> float:
        """What a strategy is told: the objective of accuracy and multiply-adds."""
        return self.objective(self.accuracy(candidate), self.macs(candidate))

    def optimum(self) -> tuple[Candidate, float]:
        """The candidate of highest reward and its reward, exactly, by dynamic programming over the stages.

        What the later stages add depends on the last filters alone, and reward rises with utility and falls with multiply-adds: of
        the beginnings with equal filters only those that no other beats in both can lead to the best. Needs objective.cost 'macs' and
        a reward that falls with the cost ('mnas', 'mnas_hard').
        """
        fixed = self._around
        beginnings = {self.space.base.stem_filters: [(0.0, 0, ())]}  # by filters: (utility, multiply-adds, rows so far)
        for number in range(1, len(self.space.stages) + 1):
            after: dict[int, list] = {}
            for in_filters, front in beginnings.items():
                for filters in self.space.values(number)['filters']:
                    rows = self._rows(number, in_filters, filters)
                    useful = _front([(*self._stage(number, in_filters, row), row) for row in rows])
                    longer = [(u + v, m + n, (*so_far, row)) for v, n, row in useful for u, m, so_far in front]
                    after.setdefault(filters, []).extend(longer)
            beginnings = {filters: _front(entries) for filters, entries in after.items()}
        best = max(itertools.chain(*beginnings.values()), key=lambda e: self.objective(_accuracy(e[0]), e[1] + fixed(e[2])))
        candidate = {f'stage{i}_{part}': value for i, row in enumerate(best[2], start=1) for part, value in row}
        return self.space.canonical(candidate), self.objective(_accuracy(best[0]), best[1] + fixed(best[2]))

    def _rows(self, number: int, in_filters: int, filters: int):
        """All combinations of active choices of a stage with these filters."""
        stride, values = self.space.reference.stages[number - 1].stride, self.space.values(number)
        for op, kernel, se, repeats in itertools.product(*(values[part] for part in ('op', 'kernel', 'se', 'repeats'))):
            shortcut = repeats > 1 or (stride == 1 and filters == in_filters)
            for expand in values['expand'] if op == 'mbconv' else (None,):
                for skip in values['skip'] if shortcut else (None,):
                    row = zip(PARTS, (op, expand, kernel, se, filters, repeats, skip), strict=True)
                    yield tuple((part, value) for part, value in row if value is not None)

    def _stages(self, candidate: Candidate):
        in_filters = self.space.base.stem_filters
        for number in range(1, len(self.space.stages) + 1):
            row = tuple((part, candidate[f'stage{number}_{part}']) for part in PARTS if f'stage{number}_{part}' in candidate)
            yield self._stage(number, in_filters, row)
            in_filters = dict(row)['filters']

    @functools.cache  # noqa: B019 an oracle lives as long as its benchmark
    def _stage(self, number: int, in_filters: int, row: tuple) -> tuple[float, int]:
        """(utility, multiply-adds) of a stage with these active choices after so many filters."""
        choices = dict(row)
        capacities = [choices.get('expand', 1), choices['kernel'], choices['filters'] / in_filters, choices['repeats']]
        utility = CAPACITY * sum(math.log2(capacity) for capacity in capacities)
        utility += sum(self._effect(MAIN, number, item) for item in row)
        utility += sum(self._effect(PAIRS, number, pair) for pair in itertools.combinations(row, 2))
        utility += self._effect(PAIRS, number, in_filters, choices['filters'])
        return utility, self._macs(number, in_filters, row)

    @functools.cache  # noqa: B019
    def _effect(self, scale: float, *what: Any) -> float:
        return random.Random(f'{self.seed} {what}').gauss(0.0, scale)

    def _macs(self, number: int, in_filters: int, row: tuple) -> int:
        """Of the stage's blocks, at the resolution that it has in every candidate."""
        stages = self.space.reference.stages
        side = self._resolution
        for stage in stages[: number - 1]:
            side = -(-side // stage.stride)
        alone = dataclasses.replace(self.space.reference, stages=(stages[number - 1],))
        rows = dataclasses.replace(self.space, reference=alone).rows({f'stage1_{part}': value for part, value in row})
        net = dataclasses.replace(self.space.base, stages=architectures.stages(rows), stem=in_filters)
        return sum(layer.macs for layer in counting.layers(net, side) if layer.name.startswith('stage'))

    def _around(self, rows: tuple) -> int:
        """Multiply-adds of stem, head and classifier."""
        filters = dict(rows[-1])['filters']
        side = -(-self._resolution // 2)
        stem = side * side * self.space.base.stem_kernel**2 * 3 * self.space.base.stem_filters
        for stage in self.space.reference.stages:
            side = -(-side // stage.stride)
        head = self.space.base.head_filters
        return stem + side * side * filters * head + head * self._num_classes


def _accuracy(utility: float) -> float:
    """0.5 at 0, 0.9 at infinity; a step of 0.1 in utility is about a point of accuracy where searches end."""
    return 0.9 - 0.4 * math.exp(-utility / 1.5)


def _front(entries: list) -> list:
    """Entries (utility, multiply-adds, ...) that no other beats in both."""
    front: list = []
    for entry in sorted(entries, key=lambda e: (e[1], -e[0])):
        if not front or entry[0] > front[-1][0]:
            front.append(entry)
    return front
