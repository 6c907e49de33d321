"""When a run logs, evaluates and saves, read from the schedule alone."""

import importlib
import itertools
import math

import pytest

from efficientnet_jax.training.optim import Horizon
from efficientnet_jax.training.schedule import Schedule, schedule_of
from tests import tiny

IMAGENET, CIFAR10, DIGITS = 1_281_167, 50_000, 1500
CONFIGS = [('b0', None, IMAGENET), ('b7', None, IMAGENET), ('l2', None, IMAGENET), ('digits', None, DIGITS)] + [
    ('transfer', f'{data},b0', examples) for data, examples in (('cifar10', CIFAR10), ('food', 75_750), ('folder', 300))
]


def of(config, examples):
    horizon = Horizon.of(examples, config.batch_size, config.epochs, config.steps)
    return schedule_of(config, horizon.steps_per_epoch, horizon.total_steps)


def load(name, argument):
    module = importlib.import_module(f'configs.{name}')
    return module.get_config() if argument is None else module.get_config(argument)


@pytest.mark.parametrize('batch_size', [None, 2048, 500])
@pytest.mark.parametrize(('name', 'argument', 'examples'), CONFIGS)
def test_every_evaluation_is_saved_with_its_score(name, argument, examples, batch_size):
    """The published periods, 5 epochs and 1 epoch, are 1564 and 313 steps at a batch of 4096: rounded apart they met once in 70 evaluations."""
    config = load(name, argument)
    if batch_size is not None and batch_size <= examples:
        config.batch_size = batch_size
    schedule = of(config, examples)
    events = [schedule.at(step) for step in range(1, schedule.total_steps + 1)]
    evaluations = [event for event in events if event.evaluate]
    assert evaluations and all(event.save and event.log for event in evaluations)
    assert events[-1].evaluate and all(event.log for event in events if event.save)


def test_saves_are_spread_evenly_between_evaluations():
    schedule = of(load('b0', None), IMAGENET)
    saves = [step for step in range(1, 3 * 1564 + 1) if schedule.at(step).save]
    assert schedule.evaluate_every == 1564 and schedule.saves == 5 and len(saves) == 15
    assert {b - a for a, b in itertools.pairwise([0, *saves])} == {312, 313}


@pytest.mark.parametrize(('evaluate', 'save', 'evaluations', 'saves'), [
    (math.inf, 2.0, [10], [2, 4, 6, 8, 10]),
    (math.inf, math.inf, [10], [10]),
    (3.0, math.inf, [3, 6, 9, 10], [3, 6, 9, 10]),
    (3.0, 9.0, [3, 6, 9, 10], [3, 6, 9, 10]),  # an evaluation is saved, however seldom saves are asked for
    (4.0, 2.0, [4, 8, 10], [2, 4, 6, 8, 10]),
    (4.0, 1e-6, [4, 8, 10], list(range(1, 11))),
    (1e-6, 1e-6, list(range(1, 11)), list(range(1, 11))),
    (1e9, 4.0, [10], [4, 8, 10]),
])  # fmt: skip
def test_periods_in_epochs(evaluate, save, evaluations, saves):
    config = tiny.get_config()
    config.eval_every_epochs, config.checkpoint_every_epochs, config.log_every_steps = evaluate, save, 7
    schedule = schedule_of(config, steps_per_epoch=1.0, total_steps=10)
    events = {step: schedule.at(step) for step in range(1, 11)}
    assert [step for step, event in events.items() if event.evaluate] == evaluations
    assert [step for step, event in events.items() if event.save] == saves
    assert [step for step, event in events.items() if event.log] == sorted({7} | set(saves))


def test_a_schedule_is_data():
    assert Schedule(10, 3, 5) == Schedule(10, 3, 5) and hash(Schedule(10, 3, 5)) is not None
