"""A candidate as arrays: what of a supernet's blocks is active, computed from the candidate's tokens inside a jitted function."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from efficientnet_jax.search.space import Candidate, Space

SIZES = ('expand', 'kernel', 'se', 'filters', 'repeats')  # choices whose values have a smallest and a largest


def largest(space: Space) -> Candidate:
    """The candidate with the largest value of every size: its blocks hold the weights of all."""
    return space.choose(lambda name, values: max(values) if name.endswith(SIZES) else values[-1])


def smallest(space: Space) -> Candidate:
    """The candidate with the smallest value of every size."""
    return space.choose(lambda name, values: min(values) if name.endswith(SIZES) else values[-1])


class StageTable(NamedTuple):
    """What the values of a stage's choices come to with the width and depth of the space's base, each in the order of the values."""

    ops: tuple[str, ...]
    expands: tuple[int, ...]
    kernels: tuple[int, ...]
    filters: tuple[int, ...]
    repeats: tuple[int, ...]
    skips: tuple[str, ...]
    first_se: tuple[tuple[int, ...], ...]  # squeeze-excite filters of the first block, by input filters and by se; 0 is none
    later_se: tuple[tuple[int, ...], ...]  # of the others


@functools.cache
def tables(space: Space) -> tuple[StageTable, ...]:
    """One table a stage, read off the blocks that candidates really have."""
    every = {name: max(values) if name.endswith(SIZES) else values[-1] for name, values in space.choices.items()}

    def blocks(number, **changed):
        candidate = space.canonical(every | changed)
        return [block for block in space.decode(candidate).blocks() if block.name.startswith(f'stage{number}_')]

    def squeeze(number, place, of_stage):
        """place: of the block in its stage. of_stage: the stage whose filters come in, 0 for the stem."""
        inputs = [{f'stage{of_stage}_filters': value} for value in space.values(of_stage)['filters']] if of_stage else [{}]
        return tuple(
            tuple(blocks(number, **given, **{f'stage{number}_se': value})[place].se_filters or 0 for value in space.values(number)['se'])
            for given in inputs
        )

    return tuple(
        StageTable(
            ops=values['op'],
            expands=values['expand'],
            kernels=values['kernel'],
            filters=tuple(blocks(number, **{f'stage{number}_filters': value})[0].out_filters for value in values['filters']),
            repeats=tuple(len(blocks(number, **{f'stage{number}_repeats': value})) for value in values['repeats']),
            skips=values['skip'],
            first_se=squeeze(number, 0, number - 1),
            later_se=squeeze(number, -1, number),
        )
        for number, values in enumerate(space.stages, start=1)
    )


class Active(NamedTuple):
    """What a candidate has of a block: scalars, counts in int32."""

    kernel: jax.Array
    expand_filters: jax.Array
    se_filters: jax.Array  # 0: no squeeze-excite
    out_filters: jax.Array
    direct: jax.Array  # bool: no expansion
    conv: jax.Array  # bool: operator 'conv'
    residual: jax.Array  # bool: a shortcut of either kind
    pooled: jax.Array  # bool: it is averaged
    present: jax.Array  # bool
    drop_path: jax.Array  # rate


def active_blocks(space: Space, tokens: jax.Array) -> dict[str, Active]:
    """{'stage1_block1': Active, ...} for the blocks of `largest`. tokens: int32 [choices], as Space.tokens; inactive ones do not matter."""
    place = dict(zip(space.choices, tokens, strict=True))
    stages = tables(space)
    count = sum(_take(table.repeats, place[f'stage{number}_repeats']) for number, table in enumerate(stages, start=1))
    blocks: dict[str, Active] = {}
    in_filters, in_place, before = jnp.int32(space.base.stem_filters), jnp.int32(0), jnp.int32(0)
    for number, table in enumerate(stages, start=1):
        at = {part: place[f'stage{number}_{part}'] for part in space.values(number)}
        filters, repeats = _take(table.filters, at['filters']), _take(table.repeats, at['repeats'])
        direct = _is(table.ops, at['op'], 'separable')
        expand = jnp.where(direct, 1, _take(table.expands, at['expand']))
        stride = space.reference.stages[number - 1].stride
        for b in range(max(table.repeats)):
            se = jnp.array(table.first_se if b == 0 else table.later_se, jnp.int32)
            same = (in_filters == filters) & (stride == 1) if b == 0 else jnp.array(True)
            blocks[f'stage{number}_block{b + 1}'] = Active(
                kernel=_take(table.kernels, at['kernel']),
                expand_filters=in_filters * expand,
                se_filters=se[in_place, at['se']],
                out_filters=filters,
                direct=expand == 1,
                conv=_is(table.ops, at['op'], 'conv'),
                residual=same & ~_is(table.skips, at['skip'], 'none'),
                pooled=_is(table.skips, at['skip'], 'pool'),
                present=b < repeats,
                drop_path=space.base.drop_path * jnp.minimum(before + b, count) / count,  # absent blocks have no place
            )
            in_filters, in_place = filters, at['filters']
        before += repeats
    return blocks


def _take(values, place):
    return jnp.array(values, jnp.int32)[place]


def _is(values, place, value):
    return jnp.array([v == value for v in values])[place]


def draw(space: Space, key: jax.Array, largest_share: float = 0.0) -> jax.Array:
    """Tokens [choices] of a candidate drawn as Space.sample does; with probability largest_share those of the largest."""
    keys = jax.random.split(key, len(space.choices) + 1)
    places = [jax.random.randint(k, (), 0, len(values)) for k, values in zip(keys[1:], space.choices.values(), strict=True)]
    full = jnp.array(space.tokens(largest(space)), jnp.int32)
    return jnp.where(jax.random.bernoulli(keys[0], largest_share), full, jnp.stack(places))
