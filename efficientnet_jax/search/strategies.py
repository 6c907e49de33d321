"""Which candidate is tried next. A strategy is a function of (seed, slot, what is known), so that it goes on after a kill as if nothing was.

A search has a budget of slots, 0 to trials - 1. `propose(slot, seen)` gives the slot's candidate, or None where it needs results of
earlier slots that are not there yet; `seen` is {slot: Seen} of those that are done, in whatever order they became so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import options
from efficientnet_jax.search.space import Candidate, Space


class Seen(NamedTuple):
    """A slot that is done. A candidate that could not be trained has accuracy and reward 0."""

    candidate: Candidate
    reward: float
    accuracy: float
    cost: float


class Strategy(Protocol):
    """Proposes a candidate for a slot as a function of the seed and of what is seen, so that a killed search goes on with the same ones."""

    def propose(self, slot: int, seen: Mapping[int, Seen]) -> Candidate | None:
        """seen: {slot: what came out}. None: more slots have to be seen first."""


class Random:
    """Uniform choices. The strategies that begin at random begin with these very candidates: their evaluations are shared."""

    def __init__(self, space: Space, knobs, seed: int):
        self._space, self._seed = space, seed

    def propose(self, slot, seen):
        """A function of the slot alone."""
        return self._space.sample(random.Random(f'{self._seed} random {slot}'))


class Evolution:
    """Regularised evolution (arXiv 1802.01548): mutate the best of `sample` drawn from the newest `population` candidates; the oldest die."""

    def __init__(self, space: Space, knobs, seed: int):
        self._space, self._seed, self._population, self._sample = space, seed, knobs.population, knobs.sample
        self._first = Random(space, knobs, seed)

    def propose(self, slot, seen):
        """A mutation of the best of a sample, once `population` slots are random; None before any is seen."""
        if slot < self._population:
            return self._first.propose(slot, seen)
        if not seen:
            return None
        rng = random.Random(f'{self._seed} evolution {slot}')
        alive = [seen[s] for s in sorted(seen) if s < slot][-self._population :]
        parent = max(rng.sample(alive, min(self._sample, len(alive))), key=lambda one: one.reward)
        return self._space.mutate(parent.candidate, rng)


class Tpe:
    """Optuna's tree-structured Parzen estimator over the active choices (define-by-run), on a study in memory that is told what is seen."""

    def __init__(self, space: Space, knobs, seed: int):
        import optuna

        self._space, self._seed, self._startup = space, seed, knobs.population
        self._first = Random(space, knobs, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction='maximize')
        self._told: set[int] = set()

    def propose(self, slot, seen):
        """Told all that is seen; the sampler is seeded by the slot."""
        import optuna

        if slot < self._startup:
            return self._first.propose(slot, seen)
        for s in sorted(set(seen) - self._told):
            one = seen[s]
            kinds = {name: optuna.distributions.CategoricalDistribution(self._space.choices[name]) for name in one.candidate}
            self._study.add_trial(optuna.trial.create_trial(params=dict(one.candidate), distributions=kinds, value=one.reward))
            self._told.add(s)
        seed = random.Random(f'{self._seed} tpe {slot}').getrandbits(31)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
        trial = self._study.ask()
        candidate = self._space.choose(trial.suggest_categorical)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)  # its value comes with `seen`
        return candidate


class Nsga2:
    """Optuna's NSGA-II for accuracy and cost, a generation of `population` at a time; the reward is not looked at."""

    def __init__(self, space: Space, knobs, seed: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.NSGAIISampler(population_size=knobs.population, seed=seed)
        self._space, self._population = space, knobs.population
        self._study = optuna.create_study(directions=['maximize', 'minimize'], sampler=sampler)
        self._generations: list[list] = []  # [(trial, candidate)]

    def propose(self, slot, seen):
        """A whole generation is asked for at once; None until the one before is seen."""
        generation, place = divmod(slot, self._population)
        if any(s not in seen for s in range(generation * self._population)):
            return None
        while len(self._generations) <= generation:  # after a kill the earlier generations come out again, and are told again
            if self._generations:
                before = len(self._generations) - 1
                for p, (trial, _) in enumerate(self._generations[-1]):
                    one = seen[before * self._population + p]
                    self._study.tell(trial, [one.accuracy, one.cost])
            trials = [self._study.ask() for _ in range(self._population)]
            self._generations.append([(trial, self._space.choose(trial.suggest_categorical)) for trial in trials])
        return self._generations[generation][place][1]


def _ppo(space: Space, knobs, seed: int) -> Strategy:
    from efficientnet_jax.search.ppo import Ppo  # jax and optax only where they are needed

    return Ppo(space, knobs, seed)


STRATEGIES = {'random': Random, 'evolution': Evolution, 'ppo': _ppo, 'tpe': Tpe, 'nsga2': Nsga2}


def strategy(name: str, space: Space, knobs, seed: int) -> Strategy:
    """The strategy of that name; knobs: config.search. Raises UserError for a name or number that cannot work."""
    options.check_value('search.strategy', name)
    for number in ('population', 'sample', 'ppo_batch', 'ppo_epochs', 'ppo_hidden'):
        options.check_value(f'search.{number}', knobs[number])
    if knobs.sample > knobs.population:
        raise UserError(f'search.sample={knobs.sample} must not exceed search.population={knobs.population}.')
    return STRATEGIES[name](space, knobs, seed)
