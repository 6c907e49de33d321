"""The table of estimated cycles: few compiles, kept, the same whoever asks; and it ranks as whole networks do (aot)."""

import dataclasses
import os
import random

import jax
import pytest
import scipy.stats

from configs import default
from efficientnet_jax.search import cycles
from efficientnet_jax.search import space as spaces
from efficientnet_jax.tpu import aot

FULL = spaces.get('efficientnet')
SMALL = dataclasses.replace(
    FULL, ops=('separable', 'mbconv'), filters=(1.0,), more_filters=(), skips=('identity', 'none'),
    base=dataclasses.replace(FULL.base, resolution=64),
)  # fmt: skip
SCALED = dataclasses.replace(SMALL, filters=(0.75, 1.25), base=dataclasses.replace(SMALL.base, width=0.25, depth=0.5, resolution=57))


@pytest.fixture
def config():
    return default.get_config()


@pytest.fixture
def compiled(monkeypatch):
    """Networks that were compiled; an operation costs what its key says, so that a sum over blocks is exact."""
    asked = []

    def estimated(config, chip, batch, architecture, train):
        asked.append(architecture.name)
        blocks = {name: cost_of(key) for name, key in cycles.keys(architecture).items()}
        rest = blocks.pop('rest')
        costs = blocks | {'other': rest - 1, 'classifier': 1.0}
        return aot.StepCost(batch, sum(costs.values()), 0, 0, 0, 0, 0, 0, 0, {}, {}, {}, 1.0, costs)

    monkeypatch.setattr(aot, 'estimated_cycles', estimated)
    monkeypatch.setattr(aot, 'slice_devices', lambda topology, knob: None)
    monkeypatch.setattr(aot, 'lower_alone', lambda *args: jax.jit(lambda x: x).lower(1.0))
    return asked


def cost_of(key):
    return float(random.Random(key).randint(10, 1000))


@pytest.mark.parametrize(('space', 'most'), [(FULL, 288), (spaces.get('mnasnet_paper'), 200), (SMALL, 24), (SCALED, 96)])
def test_every_block_of_the_space_is_in_some_network(space, most):
    networks = cycles.cover(space)
    assert len(networks) <= most
    there = {key for network in networks for key in cycles.keys(space.decode(network)).values()}
    rng = random.Random(0)
    for _ in range(300):
        assert set(cycles.keys(space.decode(space.sample(rng))).values()) <= there


@pytest.mark.parametrize('space', [SMALL, SCALED])
def test_a_candidate_costs_the_sum_of_its_blocks_and_nothing_is_compiled_twice(space, config, compiled, tmp_path, capsys):
    cost = cycles.cycle_cost(space, config, str(tmp_path))
    assert not compiled
    candidates = [space.sample(random.Random(i)) for i in range(40)]
    costs = [cost(candidate) for candidate in candidates]
    assert costs == [sum(map(cost_of, cycles.keys(space.decode(one)).values())) for one in candidates]
    assert len(compiled) == len(set(compiled)) <= len(cost.networks)
    assert f'cycles: network 2 of {len(cost.networks)} compiled in' in capsys.readouterr().err
    cost.fill()
    assert len(compiled) == len(cost.networks)
    again = cycles.cycle_cost(space, config, str(tmp_path))
    assert [again(candidate) for candidate in reversed(candidates)] == costs[::-1] and len(compiled) == len(cost.networks)


def test_a_kill_loses_one_network(config, compiled, monkeypatch, tmp_path):
    honest = aot.estimated_cycles

    def killed(*args):
        if len(compiled) == 5:
            raise KeyboardInterrupt
        return honest(*args)

    monkeypatch.setattr(aot, 'estimated_cycles', killed)
    with pytest.raises(KeyboardInterrupt):
        cycles.cycle_cost(SMALL, config, str(tmp_path)).fill()
    monkeypatch.setattr(aot, 'estimated_cycles', honest)
    cost = cycles.cycle_cost(SMALL, config, str(tmp_path))
    cost.fill()
    assert len(compiled) == len(set(compiled)) == len(cost.networks)


def test_other_settings_are_another_table(config, compiled, tmp_path):
    candidate = SMALL.sample(random.Random(0))
    cycles.cycle_cost(SMALL, config, str(tmp_path))(candidate)
    before = len(compiled)
    config.study.cycles_batch = 8
    cycles.cycle_cost(SMALL, config, str(tmp_path))(candidate)
    assert len(compiled) == 2 * before and len(os.listdir(tmp_path)) == 2


def test_bad_input(config, compiled, monkeypatch, tmp_path):
    def too_large(*args):
        raise aot.DoesNotFit('Used 20.00G of 15.75G hbm.')

    monkeypatch.setattr(aot, 'estimated_cycles', too_large)
    with pytest.raises(ValueError, match=r'study.cycles_batch=128 images of a candidate do not fit v5e:1x1; lower it'):
        cycles.cycle_cost(SMALL, config, str(tmp_path))(SMALL.sample(random.Random(0)))
    config.study.cycles_batch = 0
    with pytest.raises(ValueError, match=r'study.cycles_batch=0 must be at least 1'):
        cycles.cycle_cost(SMALL, config, str(tmp_path))


def test_a_chip_that_cannot_be(config, tmp_path):
    config.study.chip = 'v9:1x1'
    with pytest.raises(ValueError, match=r"study.chip='v9:1x1' must be GENERATION:SHAPE"):
        cycles.cycle_cost(SMALL, config, str(tmp_path))


@pytest.mark.aot
def test_the_sum_ranks_candidates_as_whole_networks_do(config, tmp_path):
    config.study.cycles_batch = 8
    cost = cycles.cycle_cost(SMALL, config, str(tmp_path))
    candidates = [SMALL.sample(random.Random(i)) for i in range(10)]
    whole = [aot.estimated_cycles(config, 'v5e:1x1', 8, SMALL.decode(candidate), train=False).cycles for candidate in candidates]
    summed = [cost(candidate) for candidate in candidates]
    ratios = [a / b for a, b in zip(summed, whole, strict=True)]
    assert scipy.stats.spearmanr(summed, whole).statistic > 0.9, (summed, whole)
    assert min(ratios) > 0.8 and max(ratios) < 1.25, ratios
