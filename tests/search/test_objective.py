"""Rewards against their formulas, bad settings, and the Pareto front against its definition."""

import random

import pytest
from ml_collections import ConfigDict

from efficientnet_jax import architectures
from efficientnet_jax.search.objective import Objective, counted, objective, pareto_front
from efficientnet_jax.search.oracle import Oracle
from efficientnet_jax.search.space import get

GOOD = {'reward': 'mnas', 'cost': 'macs', 'target': 400e6, 'w': -0.07}


@pytest.mark.parametrize(
    ('reward', 'cost', 'expected'),
    [
        ('mnas', 800e6, 0.75 * 2**-0.07),
        ('mnas', 200e6, 0.75 * 2**0.07),
        ('mnas_hard', 800e6, 0.75 * 2**-0.07),
        ('mnas_hard', 200e6, 0.75),
        ('absolute', 800e6, 0.75 - 0.07),
        ('absolute', 200e6, 0.75 - 0.035),
    ],
)
def test_rewards(reward, cost, expected):
    assert objective(ConfigDict({'search': GOOD | {'reward': reward}}))(0.75, cost) == pytest.approx(expected)


@pytest.mark.parametrize(
    ('knob', 'value', 'message'),
    [
        ('reward', 'soft', "search.reward='soft' must be one of mnas, mnas_hard, absolute"),
        ('cost', 'flops', "search.cost='flops' must be one of macs"),
        ('target', 0.0, 'search.target=0.0 must be positive'),
        ('w', 0.07, 'search.w=0.07 must be negative'),
    ],
)
def test_bad_settings(knob, value, message):
    with pytest.raises(ValueError, match=message):
        objective(ConfigDict({'search': GOOD | {knob: value}}))


def test_counted_costs_are_those_of_the_counter():
    b0 = architectures.get('efficientnet_b0')
    assert counted('macs', b0, 224, 1000) == 385_814_752
    assert counted('params', b0, 224, 1000) == 5_288_548


def test_no_point_beats_one_of_the_front():
    rng = random.Random(0)
    points = [(rng.randrange(10), rng.randrange(10)) for _ in range(50)]
    front = pareto_front(points, cost=lambda p: p[0], accuracy=lambda p: p[1])
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert set(front) == set(points) - beaten


def test_no_candidate_beats_the_optimum_of_the_oracle():
    space = get('efficientnet')
    oracle = Oracle(space, seed=0, objective=Objective(**GOOD))
    best, reward = oracle.optimum()
    assert oracle.reward(best) == pytest.approx(reward)
    rng = random.Random(1)
    assert all(oracle.reward(space.sample(rng)) <= reward for _ in range(200))
