"""Estimated TPU cycles of any candidate of a space, as a sum over its blocks, from a table that few compiles fill.

    cost = cycle_cost(space, config, folder)    # nothing is compiled yet
    cost(candidate)                             # cycles an image; compiles what the table lacks, seconds to a minute a network
    cost.fill()                                 # or all of it at once

A block costs the same wherever it stands, nearly: by operator, kernel, stride, filters, squeeze-excite, shortcut and the pixels of its
input. So the space's blocks are laid into as few networks as a greedy choice finds (cover), each is compiled ahead of time for
config.study.chip, and the compiler's estimates are added up by the block that they came from. What the sum leaves out is what the
compiler does across blocks; aot.estimated_cycles of the whole network is the figure for those that matter.

Which networks these are, and which of them gives a block its figure, follows from the space and the config alone: the table does not
depend on who asks for what, in which order, or who was killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from efficientnet_jax import aot, architectures, hlo_cost, models, report
from efficientnet_jax.architectures import Architecture, Block
from efficientnet_jax.search.space import Candidate, Space

ENDS = ('stem', 'head', 'rest')  # keys of what is no block; rest: input, classifier and, of an update, optimizer


def cycle_cost(space: Space, config, folder: str) -> CycleTable:
    """The cost function of a space's candidates in estimated cycles an image, under config.study.chip, cycles_batch and cycles_train.

    The table is kept in the folder, a file for each setting, and shared by all who name the folder. Resolution, stem and head are those of
    space.base. Raises ValueError for a chip that cannot be, or where libtpu is not installed.
    """
    aot.slice_devices(config.study.chip, 'study.chip')
    if config.study.cycles_batch < 1:
        raise ValueError(f'study.cycles_batch={config.study.cycles_batch} must be at least 1.')
    return CycleTable(space, config, folder)


class CycleTable:
    """cycles(candidate) -> float. networks: what fills the table, in order; their number bounds the compiles."""

    def __init__(self, space: Space, config, folder: str):
        self.space, self._config = space, config
        self.networks = cover(space)
        self._first: dict[str, int] = {}  # key of a block: the network that gives it its figure
        for i, network in enumerate(self.networks):
            for key in keys(space.decode(network)).values():
                self._first.setdefault(key, i)
        self._path = os.path.join(folder, f'cycles_{_hash(settings(space, config))}.jsonl')
        self._known: dict[str, float] = {}
        self._done: set[int] = set()

    def __call__(self, candidate: Candidate) -> float:
        """Estimated cycles of an image. Compiles what is not known yet. Raises ValueError where config.study.cycles_batch images do not fit."""
        named = keys(self.space.decode(candidate))
        self._fill({self._first[key] for key in named.values() if key not in self._known})
        return sum(self._known[key] for key in named.values())

    def fill(self) -> None:
        """Compiles all networks that are not in the table yet."""
        self._fill(set(range(len(self.networks))))

    def _fill(self, wanted: set[int]) -> None:
        for i in sorted(wanted - self._done):
            self._read()  # others may have got here first
            if i not in self._done:
                self._compile(i)
        self._read()

    def _read(self) -> None:
        for line in report.read_jsonl(self._path):
            if line.get('network') not in self._done:
                self._done.add(line['network'])
                self._known |= {key: cycles for key, cycles in line['cycles'].items() if self._first[key] == line['network']}

    def _compile(self, i: int) -> None:
        knobs, network = self._config.study, self.space.decode(self.networks[i])
        began = time.monotonic()
        try:
            cost = aot.estimated_cycles(self._config, knobs.chip, knobs.cycles_batch, network, knobs.cycles_train)
        except aot.DoesNotFit as error:
            raise ValueError(f'study.cycles_batch={knobs.cycles_batch} images of a candidate do not fit {knobs.chip}; lower it ({error}).') from error
        found: dict[str, float] = dict.fromkeys(ENDS, 0.0)
        named = keys(network)
        for name, cycles in cost.blocks.items():
            found[named.get(name, 'rest')] = found.get(named.get(name, 'rest'), 0.0) + cycles
        line = {'network': i, 'cycles': found}
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with open(self._path, 'a') as file:
            file.write(json.dumps(line) + '\n')
        self._read()
        print(
            f'cycles: network {len(self._done)} of at most {len(self.networks)} compiled in {time.monotonic() - began:.0f} s; '
            f'{len(self._known)} of {len(self._first)} blocks known',
            file=sys.stderr, flush=True,
        )  # fmt: skip
