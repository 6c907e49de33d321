"""Rewards by hand, costs against the counters, the front, and the oracle's optimum against everything there is."""

import dataclasses
import itertools
import random

import pytest

from configs import default
from efficientnet_jax import architectures
from efficientnet_jax.search import objective as objectives
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.objective import Objective, pareto_front
from efficientnet_jax.search.oracle import Oracle
from efficientnet_jax.search.space import Space

V2 = architectures.get('mobilenet_v2')


@pytest.mark.parametrize(
    ('reward', 'cost', 'expected'),
    [
        ('mnas', 400e6, 0.8),
        ('mnas', 800e6, 0.8 * 0.9526380),  # 2 ** -0.07: doubling the cost is worth five per cent
        ('mnas', 200e6, 0.8 * 1.0497167),
        ('mnas_hard', 200e6, 0.8),
        ('mnas_hard', 800e6, 0.8 * 0.9526380),
        ('absolute', 400e6, 0.8),
        ('absolute', 200e6, 0.8 - 0.035),
        ('absolute', 800e6, 0.8 - 0.07),
    ],
)
def test_rewards(reward, cost, expected):
    assert Objective(reward, 'macs', 400e6, -0.07)(0.8, cost) == pytest.approx(expected, rel=1e-6)


def test_counted_costs():
    b0 = architectures.get('efficientnet_b0')
    assert objectives.counted('macs', b0, 224, 1000) == 385_814_752
    assert objectives.counted('params', b0, 224, 1000) == 5_288_548
    assert objectives.counted('activations', b0, 224, 1000) == pytest.approx(6.75e6, rel=0.01)


def test_front():
    points = [(3, 0.5), (1, 0.4), (2, 0.3), (2, 0.45), (5, 0.9), (5, 0.8), (3, 0.5)]
    assert pareto_front(points, cost=lambda p: p[0], accuracy=lambda p: p[1]) == [(1, 0.4), (2, 0.45), (3, 0.5), (5, 0.9)]


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'reward': 'flops'}, "search.reward='flops' must be one of mnas, mnas_hard, absolute"),
        ({'cost': 'flops'}, r"search.cost='flops' must be one of macs, params, activations, cycles, step_seconds\."),
        ({'target': 0.0}, 'search.target=0.0 must be positive'),
        ({'target': float('nan')}, 'search.target=nan must be positive'),
        ({'w': 0.07}, r'search.w=0.07 must be negative'),
    ],
)
def test_bad_objectives(knobs, message):
    config = default.get_config()
    config.search.update(knobs)
    with pytest.raises(ValueError, match=message):
        objectives.objective(config)


@pytest.mark.parametrize('seed', range(4))
def test_the_oracles_optimum_is_the_best_of_all(seed):
    reference = dataclasses.replace(V2, stages=V2.stages[:1] + V2.stages[4:5])
    space = Space('mini', reference, architectures.get('efficientnet_b0'), kernels=(3,), filters=(1.0, 2.0), repeats=(-2, 0))
    oracle = Oracle(space, seed, Objective('mnas', 'macs', 20e6, -0.07), resolution=32, num_classes=10)
    everything = [space.from_tokens(t) for t in itertools.product(*(range(len(values)) for values in space.choices.values()))]
    candidate, reward = oracle.optimum()
    assert oracle.reward(candidate) == pytest.approx(reward, rel=1e-12)
    assert reward == pytest.approx(max(map(oracle.reward, everything)), rel=1e-12)


def test_the_oracle_is_seeded():
    space = spaces.get('efficientnet')
    objective = Objective('mnas', 'macs', 400e6, -0.07)
    candidates = [space.sample(random.Random(i)) for i in range(5)]
    first, same, other = ([Oracle(space, seed, objective).reward(c) for c in candidates] for seed in (0, 0, 1))
    assert first == same and first != other and len(set(first)) == 5
