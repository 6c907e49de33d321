"""Search spaces: B0 comes back exactly, every candidate is canonical, sizes by counting."""

import dataclasses
import itertools
import random

import pytest

from efficientnet_jax import architectures, counting
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.space import Space, candidate_hash

PAPER, EFFICIENTNET = spaces.get('mnasnet_paper'), spaces.get('efficientnet')
V2, B0 = architectures.get('mobilenet_v2'), architectures.get('efficientnet_b0')
MINI = Space(
    'mini',
    dataclasses.replace(V2, stages=V2.stages[:1] + V2.stages[4:5]),
    B0,
    ops=('separable', 'mbconv'),
    kernels=(3,),
    filters=(1.0, 2.0),
    repeats=(-2, 0),
)


def test_b0_decodes_to_exactly_b0():
    decoded = EFFICIENTNET.decode(EFFICIENTNET.encode(B0))
    assert dataclasses.replace(decoded, name=B0.name) == B0
    assert counting.count(decoded) == (5_288_548, 385_814_752)


@pytest.mark.parametrize('name', ['mnasnet_a1', 'mnasnet_b1', 'mobilenet_v2'])
def test_published_networks_are_inside(name):
    net = architectures.get(name)
    assert EFFICIENTNET.decode(EFFICIENTNET.encode(net)).blocks() == net.blocks()


def test_the_published_space_holds_mobilenet_v2_but_not_b0():
    assert PAPER.decode(PAPER.encode(V2)).blocks() == V2.blocks()
    for name, message in (
        ('efficientnet_b0', r'stage5_filters=112 must be one of \(72, 96, 120\) in space mnasnet_paper'),
        ('mnasnet_a1', 'stage5_filters=112'),
        ('mnasnet_b1', r'stage6_filters=192 must be one of \(120, 160, 200\)'),
    ):
        with pytest.raises(ValueError, match=message):
            PAPER.encode(architectures.get(name))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mnasnet_small', 'stem_filters=8 of mnasnet_small must be 32'),
        ('efficientnet_b1', 'depth=1.1 of efficientnet_b1 must be 1.0'),
        ('efficientnet_edgetpu_s', r'strides \[1, 2, 2, 2, 1, 2\] of efficientnet_edgetpu_s must be \[1, 2, 2, 2, 1, 2, 1\]'),
    ],
)
def test_what_cannot_be_encoded_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        EFFICIENTNET.encode(architectures.get(name))


def test_sizes():
    # 432 sub-blocks: 4 operators (MBConv with two expansions) x 2 kernels x 2 SE x 3 skips x 3 filters x 3 repeats; two stages have
    # one layer in the reference, so that layers {0, +1, -1} leave two.
    assert PAPER.encodings() == 288 * 432**5 * 288
    assert EFFICIENTNET.encodings() == 288 * 432**3 * 576**2 * 288
    assert (PAPER.size(), EFFICIENTNET.size()) == (431_396_604_088_418_304, 766_927_296_157_188_096)
    assert all(set(PAPER.values(i)[part]) <= set(EFFICIENTNET.values(i)[part]) for i in range(1, 8) for part in PAPER.values(i))


def test_size_is_the_number_of_networks():
    """All of a space that is small enough to enumerate, by blocks and by hash."""
    candidates = [MINI.from_tokens(t) for t in itertools.product(*(range(len(values)) for values in MINI.choices.values()))]
    by_hash = {candidate_hash(candidate): MINI.decode(candidate).blocks() for candidate in candidates}
    assert MINI.size() == len(by_hash) == len(set(by_hash.values())) < MINI.encodings() < len(candidates)


@pytest.mark.parametrize('space', [PAPER, EFFICIENTNET, MINI], ids=lambda space: space.name)
def test_random_candidates(space):
    rng = random.Random(0)
    seen = {name: set() for name in space.choices}
    for _ in range(300):
        candidate = space.sample(rng)
        assert space.canonical(candidate) == space.encode(space.decode(candidate)) == candidate
        assert space.from_tokens(space.tokens(candidate)) == candidate
        mutant = space.mutate(candidate, rng)
        assert space.canonical(mutant) == mutant
        assert candidate_hash(mutant) != candidate_hash(candidate)
        assert space.decode(mutant).blocks() != space.decode(candidate).blocks()
        shared = [name for name in mutant if name in candidate]
        assert sum(mutant[name] != candidate[name] for name in shared) == 1
        for name, value in candidate.items():
            seen[name].add(value)
    assert {name: set(values) for name, values in space.choices.items()} == seen  # every value of every choice comes up


def test_inactive_choices_are_dropped_from_the_hash():
    b0 = EFFICIENTNET.encode(B0)
    assert 'stage1_expand' not in b0 and 'stage1_skip' not in b0 and b0['stage1_op'] == 'separable'
    assert candidate_hash(EFFICIENTNET.canonical(b0 | {'stage1_expand': 3, 'stage1_skip': 'none'})) == candidate_hash(b0)


def test_every_operator_decodes():
    b0 = EFFICIENTNET.encode(B0)
    changed = EFFICIENTNET.canonical(b0 | {'stage2_op': 'conv', 'stage3_op': 'separable', 'stage4_skip': 'pool', 'stage5_skip': 'none'})
    blocks = EFFICIENTNET.decode(changed).blocks()
    assert [(b.op, b.expand_filters, b.residual) for b in blocks[1:7]] == [
        ('conv', 24, False),
        ('conv', 24, True),
        ('mbconv', 24, False),
        ('mbconv', 40, True),
        ('mbconv', 240, False),
        ('mbconv', 480, 'pool'),
    ]
    assert not any(b.residual for b in blocks if b.name.startswith('stage5'))


def test_smallest():
    def macs(architecture):
        return counting.count(architecture)[1]

    candidate, cost = MINI.smallest(lambda candidate: macs(MINI.decode(candidate)))
    everything = [MINI.from_tokens(t) for t in itertools.product(*(range(len(values)) for values in MINI.choices.values()))]
    assert cost == min(macs(MINI.decode(c)) for c in everything) == macs(MINI.decode(candidate))


def test_bad_choices():
    b0 = EFFICIENTNET.encode(B0)
    for wrong, message in (
        ({'stage3_kernel': 7}, r'stage3_kernel=7 must be one of \(3, 5\) in space efficientnet'),
        ({'stage9_kernel': 3}, 'stage9_kernel is no choice of space efficientnet'),
    ):
        with pytest.raises(ValueError, match=message):
            EFFICIENTNET.canonical(b0 | wrong)
    with pytest.raises(ValueError, match='stage7_filters is missing'):
        EFFICIENTNET.canonical({name: value for name, value in b0.items() if name != 'stage7_filters'})
    with pytest.raises(ValueError, match=r"search.space='nasbench' must be one of mnasnet_paper, efficientnet"):
        spaces.get('nasbench')


def test_versions_tell_spaces_apart():
    assert len({space.version for space in (PAPER, EFFICIENTNET, MINI, dataclasses.replace(EFFICIENTNET, kernels=(3, 5, 7)))}) == 4
