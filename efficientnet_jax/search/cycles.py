"""Estimated TPU cycles of any candidate of a space: a sum over its blocks, from a table that few compiles fill.

    cost = cycle_cost(space, config, folder)    # nothing is compiled yet
    cost(candidate)                             # cycles an image; compiles what the table lacks, seconds to a minute a network
    cost.fill()                                 # or all of it at once

A block costs nearly the same wherever it stands: by operator, kernel, stride, filters, squeeze-excite, shortcut and the pixels of its
input. So the space's blocks are laid into as few networks as a greedy choice finds (cover), each of which is compiled ahead of time for
config.study.chip; the compiler's estimates are added up by the block that they came from. The sum leaves out what the compiler does across
blocks: aot.estimated_cycles of the whole network is the figure for finalists.

Which networks these are, and which of them gives a block its figure, follows from the space and the config alone: the table does not
depend on who asks for what, in which order, or who was killed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import statistics
import sys
import time

from efficientnet_jax import architectures
from efficientnet_jax.architectures import Architecture, Block
from efficientnet_jax.architectures.rounding import round_repeats
from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import options, storage
from efficientnet_jax.search.space import Candidate, Space
from efficientnet_jax.tpu import aot

PARTS = ('op', 'expand', 'kernel', 'se', 'filters', 'skip')  # of a stage, all but repeats


def cycle_cost(space: Space, config, folder: str) -> CycleTable:
    """The cost function of a space's candidates in estimated cycles an image, under config.study.chip, cycles_batch and cycles_train.

    Takes seconds, to look up which table that is. Resolution, stem and head are those of space.base. The table is kept in the folder, a
    folder in it for each setting, and is shared by all who name it. Raises UserError for a chip or batch that cannot be, or where libtpu
    is not installed.
    """
    aot.slice_devices(config.study.chip, 'study.chip')
    options.check_value('study.cycles_batch', config.study.cycles_batch)
    return CycleTable(space, config, folder)


class CycleTable:
    """cycles(candidate) -> float. networks: the candidates that fill the table; their number bounds the compiles."""

    def __init__(self, space: Space, config, folder: str):
        self.space, self._config = space, config
        self.networks = cover(space)
        self._from: dict[str, int] = {}  # key of a block: the network that gives it its figure
        for i, network in enumerate(self.networks):
            for key in keys(space.decode(network)).values():
                self._from.setdefault(key, i)
        self._folder = os.path.join(folder, f'cycles_{_hash(_settings(space, config, self.networks[0]))}')
        self._known: dict[str, float] = {}
        self._read: set[int] = set()

    def __call__(self, candidate: Candidate) -> float:
        """Estimated cycles of an image. Compiles what is not known yet; raises ValueError where study.cycles_batch images do not fit."""
        named = keys(self.space.decode(candidate))
        self._need({self._from[key] for key in named.values()})
        return sum(self._known[key] for key in named.values())

    def fill(self) -> None:
        """Compiles all networks that are not in the table yet."""
        self._need(set(range(len(self.networks))))

    def _need(self, networks: set[int]) -> None:
        for i in sorted(networks - self._read):
            path = os.path.join(self._folder, f'network{i}.json')
            if not os.path.exists(path):
                os.makedirs(self._folder, exist_ok=True)
                storage.write_json(path, self._compile(i))
            self._known |= {key: cycles for key, cycles in storage.read_json(path).items() if self._from[key] == i}
            self._read.add(i)

    def _compile(self, i: int) -> dict[str, float]:
        """{key: cycles} of what is in network i."""
        knobs, network = self._config.study, self.space.decode(self.networks[i])
        began = time.monotonic()
        try:
            cost = aot.estimated_cycles(self._config, knobs.chip, knobs.cycles_batch, network, knobs.cycles_train)
        except aot.DoesNotFit as error:
            raise UserError(
                f'study.cycles_batch={knobs.cycles_batch} images of a candidate do not fit {knobs.chip}; lower it. {error}'
            ) from error
        named = keys(network)
        places = dict.fromkeys(named, 0.0)
        for name, cycles in cost.blocks.items():
            places[name if name in named else 'rest'] += cycles
        same = collections.defaultdict(list)
        for name, key in named.items():
            same[key].append(places[name])
        there = sum(name.endswith('.json') for name in os.listdir(self._folder)) + 1
        print(
            f'cycles: network {there} of {len(self.networks)} compiled in {time.monotonic() - began:.0f} s ({knobs.chip}, {knobs.cycles_batch} images)',
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return {key: statistics.fmean(cycles) for key, cycles in same.items()}


def keys(architecture: Architecture) -> dict[str, str]:
    """{'stem': ..., 'stage1_block1': ..., 'head': ..., 'rest': ...}: what each part's cycles depend on.

    rest: input, pooling and classifier and, of an update, loss and optimizer.
    """
    side = -(-architecture.resolution // (4 if architecture.stem_pool else 2))
    named, blocks = {'stem': 'stem'}, architecture.blocks()
    for block in blocks:
        named[block.name] = _key(block, side)
        side = -(-side // block.stride)
    if architecture.head_filters is not None:
        named['head'] = f'head {blocks[-1].out_filters}'
    return named | {'rest': 'rest'}


def _key(block: Block, side: int) -> str:
    """'mbconv k5 s1 40-240-40 se10 identity 28px'"""
    shortcut = {True: 'identity', False: 'none'}.get(block.residual, block.residual)
    filters = f'{block.in_filters}-{block.expand_filters}-{block.out_filters}'
    return f'{block.op} k{block.kernel} s{block.stride} {filters} se{block.se_filters or 0} {shortcut} {side}px'


def cover(space: Space) -> list[Candidate]:
    """Candidates that together have every block of the space: each the one with most blocks that are still missing (by dynamic
    programming over the stages, whose blocks depend on each other through the filters between them alone)."""
    stages = _stage_blocks(space)
    missing = set().union(*(blocks for rows in stages for blocks in rows.values()))
    chosen = []
    while missing:
        best = {space.base.stem: (0, ())}  # by filters so far: (missing blocks, rows)
        for rows in stages:
            after: dict[int, tuple] = {}
            for (in_filters, row), blocks in rows.items():
                count, so_far = best[in_filters]
                count += len(blocks & missing)
                filters = row[PARTS.index('filters')]
                if filters not in after or count > after[filters][0]:
                    after[filters] = (count, (*so_far, row))
            best = after
        path = max(best.values(), key=lambda entry: entry[0])[1]
        chosen.append(_candidate(space, path))
        missing -= set().union(*(rows[key] for rows, key in zip(stages, _pairs(space, path), strict=True)))
    return chosen


def _stage_blocks(space: Space) -> list[dict[tuple, frozenset]]:
    """Of each stage {(filters before it, row of PARTS): keys of its blocks}, with as many different blocks as a stage can have."""
    found, before = [], (space.base.stem,)
    side = -(-space.base.resolution // (4 if space.base.stem_pool else 2))
    for number, stage in enumerate(space.reference.stages, start=1):
        values = space.values(number)
        alone = dataclasses.replace(space, reference=dataclasses.replace(space.reference, stages=(stage,)))
        rows = {}
        for in_filters, row in itertools.product(before, itertools.product(*(values[part] for part in PARTS))):
            choices = {f'stage1_{part}': value for part, value in zip(PARTS, row, strict=True)} | {
                'stage1_repeats': _repeats(space, number)
            }
            if choices['stage1_op'] != 'mbconv':
                if choices['stage1_expand'] != values['expand'][0]:
                    continue
                del choices['stage1_expand']
            network = dataclasses.replace(space.base, stages=architectures.stages(alone.rows(choices)), stem=in_filters)
            blocks, at, named = network.blocks(), side, set()
            for block in blocks:
                named.add(_key(block, at))
                at = -(-at // block.stride)
            rows[in_filters, row] = frozenset(named)
        found.append(rows)
        before, side = values['filters'], -(-side // stage.stride)
    return found


def _repeats(space: Space, number: int) -> int:
    """The fewest that make two blocks of a stage: a third is the second again."""
    base, repeats = space.base, space.values(number)['repeats']
    return min((r for r in repeats if round_repeats(r, base.depth, base.depth_rounding) > 1), default=max(repeats))


def _pairs(space: Space, path: tuple) -> list[tuple]:
    """(filters before, row) of each stage of a path."""
    filters = [space.base.stem, *(row[PARTS.index('filters')] for row in path)]
    return list(zip(filters, path, strict=False))


def _candidate(space: Space, path: tuple) -> Candidate:
    chosen = {}
    for number, row in enumerate(path, start=1):
        chosen |= {f'stage{number}_{part}': value for part, value in zip(PARTS, row, strict=True)}
        chosen[f'stage{number}_repeats'] = _repeats(space, number)
    return space.canonical(chosen)


def _settings(space: Space, config, network: Candidate) -> list:
    """All that the figures depend on; the code by the program that it makes of a network, so that a comment does not cost the table."""
    knobs = config.study
    program = aot.lower_alone(config, knobs.chip, knobs.cycles_batch, space.decode(network), knobs.cycles_train).as_text()
    return [space.version, knobs.chip, knobs.cycles_batch, aot.libtpu_version(), program]


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
