"""Strategies: better than random on the oracle, the same after a kill, waiting for what they need, clear errors."""

import pytest

from configs import default
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.objective import Objective
from efficientnet_jax.search.oracle import Oracle
from efficientnet_jax.search.strategies import STRATEGIES, Seen, strategy

SPACE = spaces.get('efficientnet')


@pytest.fixture
def knobs():
    knobs = default.get_config().search
    knobs.update({'population': 12, 'sample': 5, 'ppo_batch': 12, 'ppo_lr': 1e-2, 'ppo_hidden': 16})
    return knobs


def search(name, knobs, trials, seed=0, restart_at=()):
    """Candidates in order and the best reward; at some slots the strategy is made anew, as after a kill."""
    oracle = Oracle(SPACE, 0, Objective('mnas', 'macs', 400e6, -0.07))
    chosen, seen = strategy(name, SPACE, knobs, seed), {}
    for slot in range(trials):
        if slot in restart_at:
            chosen = strategy(name, SPACE, knobs, seed)
        candidate = chosen.propose(slot, seen)
        assert SPACE.canonical(candidate) == candidate
        accuracy, macs = oracle.accuracy(candidate), oracle.macs(candidate)
        seen[slot] = Seen(candidate, oracle.objective(accuracy, macs), accuracy, macs)
    return [one.candidate for one in seen.values()], max(one.reward for one in seen.values())


@pytest.mark.parametrize('name', STRATEGIES)
def test_goes_on_after_a_kill_as_if_nothing_was(name, knobs):
    plain, _ = search(name, knobs, 40)
    killed, _ = search(name, knobs, 40, restart_at=(7, 23, 36))
    assert plain == killed
    assert plain != search(name, knobs, 40, seed=1)[0]


@pytest.mark.parametrize(('name', 'trials'), [('evolution', 200), ('ppo', 300), ('nsga2', 200), ('tpe', 100)])
def test_better_than_random_at_equal_cost(name, trials, knobs):
    assert search(name, knobs, trials)[1] > search('random', knobs, trials)[1]


def test_random_beginnings_are_shared(knobs):
    random = search('random', knobs, 12)[0]
    assert search('evolution', knobs, 12)[0] == search('tpe', knobs, 12)[0] == random


@pytest.mark.parametrize('name', ['ppo', 'nsga2'])
def test_a_batch_waits_for_the_one_before(name, knobs):
    chosen = strategy(name, SPACE, knobs, 0)
    seen = {slot: Seen(chosen.propose(slot, {}), 0.5 + slot / 100, 0.5 + slot / 100, 1e8 + slot) for slot in range(12)}
    missing = {slot: one for slot, one in seen.items() if slot != 5}
    assert chosen.propose(12, missing) is None and chosen.propose(3, missing) == seen[3].candidate
    assert chosen.propose(12, seen) is not None


def test_the_controller_learns_what_is_rewarded(knobs):
    """One choice alone decides: after some updates nearly all candidates have it."""
    chosen, seen = strategy('ppo', SPACE, knobs, 0), {}
    for slot in range(12 * 20):
        candidate = chosen.propose(slot, seen)
        good = float(candidate['stage3_kernel'] == 5)
        seen[slot] = Seen(candidate, good, good, 1.0)
    assert sum(seen[slot].reward for slot in range(12)) < 11
    assert sum(seen[slot].reward for slot in range(12 * 15, 12 * 20)) > 0.9 * 60


@pytest.mark.parametrize(
    ('name', 'wrong', 'message'),
    [
        ('reinforce', {}, "search.strategy='reinforce' must be one of random, evolution, ppo, tpe, nsga2"),
        ('evolution', {'population': 0}, 'search.population=0 must be at least 1'),
        ('evolution', {'sample': 50}, r'search.sample=50 must not exceed search.population=12'),
    ],
)
def test_errors(name, wrong, message, knobs):
    knobs.update(wrong)
    with pytest.raises(ValueError, match=message):
        strategy(name, SPACE, knobs, 0)
