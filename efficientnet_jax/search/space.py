"""Search spaces as data: MnasNet's factorised hierarchical space (arXiv 1807.11626, section 4.1), in which EfficientNet-B0 was found.

A candidate is a dict of the choices that are active, in the order of the walk, with plain JSON values; it is always canonical:

    {'stage1_op': 'separable', 'stage1_kernel': 3, 'stage1_se': 0.25, 'stage1_filters': 16, 'stage1_repeats': 1,
     'stage2_op': 'mbconv', 'stage2_expand': 6, 'stage2_kernel': 3, ..., 'stage2_skip': 'identity', 'stage3_op': ...}

The contract for whoever enumerates a space (a supernet, a table of costs): stages are numbered from 1 as in `Architecture.blocks()`;
`space.values(stage)` gives {part: values} with the parts and values

    op       'conv' (kxk convolution), 'separable' (depthwise kxk, linear 1x1: an mbconv with expand 1), 'mbconv'
    expand   multiples of the input filters, only under op 'mbconv'
    kernel   3 or 5
    se       squeeze-excite filters as a part of the input filters; 0.0 is none
    filters  output filters, absolute; the data holds multiples of a reference network's
    repeats  blocks of the stage, absolute; the data holds differences to the reference's, at least 1
    skip     shortcut of blocks with stride 1 and equal filters: 'identity', 'pool' (3x3 average) or 'none'. Only where the stage has
             such a block

and `space.choose(pick)` walks the active choices in this order. Strides are the reference's.

Spaces. `mnasnet_paper` is the published one relative to MobileNetV2: operators {conv, depthwise-separable, MBConv}, kernels {3, 5}, SE
{0, 0.25}, skip {pool, identity, none}, filters {0.75, 1, 1.25}x, layers {0, +1, -1}. The paper counts 432 sub-blocks, which its
list gives with two expansions of MBConv (4 x 2 x 2 x 3 x 3 x 3; inferred, the paper does not say); 3 and 6 are those of its networks. Its estimate 432^5 = 1.5e13 takes five
blocks; the networks that it and EfficientNet publish have seven, and so has this space. Its depthwise-separable convolution is linear
after the 1x1 (figure 7; mnasnet_models.py writes it as an MBConv with e1), so MnasNet's and B0's first stages are 'separable'.

EfficientNet-B0 is outside: its 112 filters are 7/6 and its 192 are 1.2 times MobileNetV2's. So are MnasNet-A1's 112 and B1's 192.
`efficientnet` is the published space and these two values; B0 decodes to exactly the released rows, A1 and B1 to exactly their blocks
(activation and drop path are not searched: a candidate has those of `base`, here B0's). MnasNet-small (stem of 8) is in neither.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from efficientnet_jax import architectures
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError

Candidate = dict[str, Any]
SKIPS = {'identity': True, 'pool': 'pool', 'none': False}  # as in Stage.skip


@dataclasses.dataclass(frozen=True)
class Space:
    """A factorised space around a reference network. Everything is per stage; a candidate is `base` with other stages."""

    name: str
    reference: Architecture  # its strides, filters and repeats are what the choices are relative to
    base: Architecture  # stem, head, activation, drop path and all else of a candidate
    ops: tuple[str, ...] = ('conv', 'separable', 'mbconv')
    expands: tuple[int, ...] = (3, 6)
    kernels: tuple[int, ...] = (3, 5)
    se: tuple[float, ...] = (0.0, 0.25)
    skips: tuple[str, ...] = ('pool', 'identity', 'none')
    filters: tuple[float, ...] = (0.75, 1.0, 1.25)  # times the reference's
    more_filters: tuple[tuple[int, float], ...] = ()  # (stage, multiple) of single stages
    repeats: tuple[int, ...] = (-1, 0, 1)  # added to the reference's

    @functools.cached_property
    def stages(self) -> tuple[dict[str, tuple], ...]:
        """{part: values} of each stage, in the order of the walk. Values that come out equal, or no blocks at all, stand there once."""
        rows = []
        for number, stage in enumerate(self.reference.stages, start=1):
            multiples = [*self.filters, *(multiple for at, multiple in self.more_filters if at == number)]
            rows.append(
                {
                    'op': self.ops,
                    'expand': self.expands,
                    'kernel': self.kernels,
                    'se': self.se,
                    'filters': tuple(sorted({round(stage.filters * multiple) for multiple in multiples})),
                    'repeats': tuple(sorted({max(1, stage.repeats + more) for more in self.repeats})),
                    'skip': self.skips,
                }
            )
        return tuple(rows)

    def values(self, stage: int) -> dict[str, tuple]:
        """{part: values} of a stage, counted from 1."""
        return self.stages[stage - 1]

    @functools.cached_property
    def choices(self) -> dict[str, tuple]:
        """{name: values} of all choices in the order of the walk, active or not."""
        return {f'stage{i}_{part}': values for i, stage in enumerate(self.stages, start=1) for part, values in stage.items()}

    @functools.cached_property
    def version(self) -> str:
        """8 hexadecimal digits of everything that a candidate's meaning depends on; workers of one search must agree on it."""
        strides = [stage.stride for stage in self.reference.stages]
        text = json.dumps([self.choices, strides, dataclasses.asdict(self.base)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def choose(self, pick: Callable[[str, tuple], Any]) -> Candidate:
        """The candidate whose active choices are what pick(name, values) returns for each, asked in the order of the walk."""
        candidate = {}
        in_filters = self.base.stem_filters
        for number, (stage, values) in enumerate(zip(self.reference.stages, self.stages, strict=True), start=1):
            row = {}
            for part in values:
                alone = part == 'skip' and row['repeats'] == 1 and (stage.stride != 1 or row['filters'] != in_filters)
                if alone or (part == 'expand' and row['op'] != 'mbconv'):
                    continue
                name = f'stage{number}_{part}'
                row[part] = candidate[name] = pick(name, values[part])
            in_filters = row['filters']
        return candidate

    def canonical(self, choices: Mapping[str, Any]) -> Candidate:
        """The candidate of some choices, with those that are inactive dropped. Raises UserError for one that is missing or not in the space."""

        def pick(name, values):
            if name not in choices:
                raise UserError(f'{name} is missing; space {self.name} has {name} in {values}.')
            if choices[name] not in values:
                raise UserError(f'{name}={choices[name]!r} must be one of {values} in space {self.name}.')
            return choices[name]

        unknown = set(choices) - set(self.choices)
        if unknown:
            raise UserError(f'{", ".join(sorted(unknown))} is no choice of space {self.name}; see Space.choices.')
        return self.choose(pick)

    def sample(self, rng: random.Random) -> Candidate:
        """A candidate with each active choice drawn uniformly."""
        return self.choose(lambda _, values: rng.choice(values))

    def mutate(self, candidate: Candidate, rng: random.Random) -> Candidate:
        """The candidate with one active choice changed to another value; choices that this makes active are drawn."""
        name = rng.choice([name for name in candidate if len(self.choices[name]) > 1])
        changed = candidate | {name: rng.choice([value for value in self.choices[name] if value != candidate[name]])}
        return self.choose(lambda name, values: changed[name] if name in changed else rng.choice(values))

    def rows(self, candidate: Candidate) -> tuple[tuple, ...]:
        """Rows of `config.stages`, which trains the candidate: (repeats, kernel, stride, expand, filters, se, op, skip)."""
        rows = []
        for number, stage in enumerate(self.reference.stages, start=1):

            def of(part, default=None, number=number):
                return candidate.get(f'stage{number}_{part}', default)

            op = 'conv' if of('op') == 'conv' else 'mbconv'
            skip = SKIPS[of('skip', 'identity')]
            rows.append((of('repeats'), of('kernel'), stage.stride, of('expand', 1), of('filters'), of('se') or None, op, skip))
        return tuple(rows)

    def decode(self, candidate: Candidate) -> Architecture:
        """The candidate's network, named after its hash."""
        stages = architectures.stages(self.rows(candidate))
        return dataclasses.replace(self.base, name=f'candidate_{candidate_hash(candidate)}', stages=stages)

    def encode(self, architecture: Architecture) -> Candidate:
        """The candidate with the architecture's blocks. Raises UserError with the first thing that is not in the space.

        Only blocks, stem and head are looked at: activation, drop path and resolution are not searched.
        """
        a, b = architecture, self.base
        for field in ('stem_filters', 'stem_kernel', 'stem_pool', 'head_filters', 'width', 'depth'):
            if getattr(a, field) != getattr(b, field):
                raise UserError(f'{field}={getattr(a, field)} of {a.name} must be {getattr(b, field)} in space {self.name}.')
        strides = [[stage.stride for stage in net.stages] for net in (a, self.reference)]
        if strides[0] != strides[1]:
            raise UserError(f'strides {strides[0]} of {a.name} must be {strides[1]} in space {self.name}.')
        choices = {}
        for number, stage in enumerate(a.stages, start=1):
            op = 'separable' if (stage.op, stage.expand) == ('mbconv', 1) else stage.op
            expand = {'expand': stage.expand} if op == 'mbconv' else {}
            skip = next(name for name, skip in SKIPS.items() if skip == stage.skip)
            row = {'op': op, **expand, 'kernel': stage.kernel, 'se': stage.se or 0.0, 'filters': stage.filters, 'repeats': stage.repeats}
            choices |= {f'stage{number}_{part}': value for part, value in (row | {'skip': skip}).items()}
        return self.canonical(choices)

    def tokens(self, candidate: Candidate) -> list[int]:
        """One integer for every choice of the space: the place of the value among its values, or -1 where it is inactive."""
        return [values.index(candidate[name]) if name in candidate else -1 for name, values in self.choices.items()]

    def from_tokens(self, tokens: Sequence[int]) -> Candidate:
        """The candidate of such integers; those of inactive choices do not matter."""
        place = dict(zip(self.choices, tokens, strict=True))
        return self.choose(lambda name, values: values[place[name]])

    def size(self) -> int:
        """How many different networks the space has; inactive choices make none."""
        networks = {self.base.stem_filters: 1}  # by the filters that the next stage gets
        for stage, values in zip(self.reference.stages, self.stages, strict=True):
            inside = len(values['kernel']) * len(values['se']) * sum(len(values['expand']) if op == 'mbconv' else 1 for op in values['op'])
            after = dict.fromkeys(values['filters'], 0)
            for in_filters, count in networks.items():
                for filters in values['filters']:
                    for repeats in values['repeats']:
                        has_shortcut = repeats > 1 or (stage.stride == 1 and filters == in_filters)
                        after[filters] += count * inside * (len(values['skip']) if has_shortcut else 1)
            networks = after
        return sum(networks.values())

    def encodings(self) -> int:
        """How many combinations the paper's way of counting gives: the product over stages, with skip always counted."""
        product = 1
        for values in self.stages:
            ops = sum(len(values['expand']) if op == 'mbconv' else 1 for op in values['op'])
            for part in ('kernel', 'se', 'filters', 'repeats', 'skip'):
                ops *= len(values[part])
            product *= ops
        return product

    def smallest(self, cost: Callable[[Candidate], float]) -> tuple[Candidate, float]:
        """The candidate of lowest cost and its cost, for a cost that falls with every filter and block and adds up over stages."""
        fewest = self.choose(lambda _, values: values[0])
        best = self.choose(lambda name, values: min(values) if name.endswith(('filters', 'repeats')) else fewest.get(name, values[0]))
        best_cost = cost(best)
        for number in range(1, len(self.stages) + 1):
            values = self.values(number)
            for op in values['op']:
                for expand in values['expand'] if op == 'mbconv' else values['expand'][:1]:
                    for kernel in values['kernel']:
                        for se in values['se']:
                            tried = {'op': op, 'expand': expand, 'kernel': kernel, 'se': se}
                            changed = best | {f'stage{number}_{part}': value for part, value in tried.items()}
                            candidate = self.canonical(changed)
                            now = cost(candidate)
                            if now < best_cost:
                                best, best_cost = candidate, now
        return best, best_cost


def candidate_hash(candidate: Candidate) -> str:
    """12 hexadecimal digits. Equal for equal networks: a candidate has no inactive choices, and its values are absolute."""
    return hashlib.sha256(json.dumps(candidate, sort_keys=True).encode()).hexdigest()[:12]


_V2, _B0 = architectures.get('mobilenet_v2'), architectures.get('efficientnet_b0')
SPACES = {
    space.name: space
    for space in (
        Space('mnasnet_paper', _V2, base=architectures.get('mnasnet_a1')),
        Space('efficientnet', _V2, base=_B0, more_filters=((5, 7 / 6), (6, 1.2))),
    )
}


def get(name: str) -> Space:
    """The space of that name. Raises UserError with all names."""
    if name not in SPACES:
        raise UserError(f'search.space={name!r} must be one of {", ".join(SPACES)}.')
    return SPACES[name]
