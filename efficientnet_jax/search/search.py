"""--mode=search: a strategy and the random baseline at equal cost, by any number of workers, to an ordinary config.

Every worker is given the same command. Process 0 of a worker takes a slot from the queue and tells the others, all train the candidate, and
process 0 stores the result.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable
from typing import Any

import jax

from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.queue import trials
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import hosts, record
from efficientnet_jax.search import finalists as in_full
from efficientnet_jax.search import outputs, proxy, strategies, supernet_train
from efficientnet_jax.search.oracle import Oracle
from efficientnet_jax.search.settings import Setting, check_target, journal_of, on_process_0, open_queue, setting, space_of, supernet_config
from efficientnet_jax.search.space import Candidate
from efficientnet_jax.search.trial_queue import Slots
from efficientnet_jax.study.trained import work

Score = Callable[[Candidate, str, proxy.GoOn | None, int], dict[str, Any]]


def search(config, workdir: str) -> dict[str, Any]:
    """Does config.search.action and leaves WORKDIR/search/ (outputs.py) and WORKDIR/result.json (status: neither), which it returns; resumable.

    Raises UserError, before anything is compiled, for a config or a target that cannot work, and what trials.open_study raises.
    """
    began = time.monotonic()
    actions = {'run': run, 'status': status, 'finalists': finalists, 'proxy_check': proxy_check}
    if config.search.action not in actions:
        raise UserError(f'search.action={config.search.action!r} must be one of {", ".join(actions)}.')
    facts = actions[config.search.action](config, workdir, setting(config, workdir))
    result = record.result('search', as_dict(config), 0, {'action': config.search.action, **facts}, 0, time.monotonic() - began)
    if config.search.action != 'status':  # which only looks
        hosts.on_first(lambda: page.leave(workdir, result, as_dict(config)))
    return result


def run(config, workdir: str, found: Setting) -> dict[str, Any]:
    """Evaluates slots until all are done, here or elsewhere."""
    folder = os.path.join(workdir, 'search')

    def open_it():
        if config.search.cost == 'cycles':
            found.cost.fill()  # minutes, once; what is on the disk is not compiled again
            check_target(config, found.space, found.cost)
        queue = open_queue(config, workdir, found)
        return slots_of(config, found, queue, changed=functools.partial(outputs.write_trials, folder), ahead=compiles_ahead(config))

    slots = on_process_0(open_it)
    score = scorer(config, workdir, found)
    ahead = proxy.Ahead(config, found.space) if compiles_ahead(config) else None
    work(slots, functools.partial(evaluate, config, found, slots, score, os.path.join(folder, 'candidates'), ahead))
    return hosts.on_first(lambda: outputs.write(folder, config, found, slots.records()))


def status(config, workdir: str, found: Setting) -> dict[str, Any]:
    """Prints how far the search is and what is best so far, and writes its files as of now. Makes no search where there is none."""

    def show():
        path = journal_of(config, workdir)
        if path is not None and not os.path.exists(path):
            raise UserError(f'search.action=status: {path} is not there, so no search was started with this workdir and storage.')
        queue = open_queue(config, workdir, found)
        slots = slots_of(config, found, queue)
        print(outputs.status_text(config, queue.points(), slots.records()))
        if not slots.records():
            return {'arms': {}, 'front': 0}
        return outputs.write(os.path.join(workdir, 'search'), config, found, slots.records())

    return hosts.on_first(show)


def finalists(config, workdir: str, found: Setting) -> dict[str, Any]:
    """Trains the best candidates of a finished search in full; the best of them becomes the winner."""

    def best():
        slots = slots_of(config, found, open_queue(config, workdir, found))
        if not slots.finished():
            raise UserError(f'search.action=finalists needs a finished search: {len(slots.records())} of its slots are done; run it first.')
        return outputs.best_ones(slots.records())[: config.search.finalists]

    return in_full.finalists(config, workdir, found, on_process_0(best))


def proxy_check(config, workdir: str, found: Setting) -> dict[str, Any]:
    """Trains random candidates as proxies with several seeds and in full."""
    rng = random.Random(f'{config.seed} proxy check')
    return in_full.proxy_check(
        config, workdir, found, [found.space.sample(rng) for _ in range(config.search.checked)], scorer(config, workdir, found)
    )


def compiles_ahead(config) -> bool:
    """Whether the next candidate is compiled while this one trains: only where candidates are trained."""
    return config.search.compile_ahead and config.search.evaluation == 'train'


def arms(config, found: Setting) -> dict[str, strategies.Strategy]:
    """The strategy, and random search beside it."""
    names = dict.fromkeys((config.search.strategy, 'random'))
    return {name: strategies.strategy(name, found.space, config.search, config.seed) for name in names}


def slots_of(config, found: Setting, queue: trials.Queue, **options) -> Slots:
    """The slots of both arms on a queue."""
    return Slots(queue, found.space, arms(config, found), config.search.trials, found.cost, **options)


def evaluate(
    config, found: Setting, slots: Slots | None, score: Score, folder: str, ahead: proxy.Ahead | None, key: str, point: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """(reward, {'result': what is kept beside it}) of a slot. Every process of the worker calls it; slots is on process 0."""
    while True:
        twin = hosts.on_first(lambda: slots.twin(key))
        if twin['result'] is not None:
            return twin['result'].pop('reward'), {'result': twin['result']}
        if not twin['wait']:
            break
        time.sleep(1.0)
    candidate = found.space.from_tokens(point['tokens'])

    def cost_of(seconds):
        return seconds if found.cost is None else found.cost(candidate)

    def go_on(rung, accuracy, seconds):
        return hosts.on_first(lambda: slots.go_on(rung, found.objective(accuracy, cost_of(seconds)), config.search.rung_factor))

    if ahead is not None:
        ahead.wait()
    if config.search.evaluation == 'train':
        jax.clear_caches()  # programs of other candidates, which no run here needs again; while none is compiled ahead
    if ahead is not None and point.get('next') is not None:
        ahead.start(found.space.from_tokens(point['next']))
    kept = score(candidate, os.path.join(folder, point['hash']), go_on, config.seed)
    seconds = kept.pop('step_seconds', None)
    kept |= hosts.on_first(lambda: {'cost': cost_of(seconds), 'rungs': slots.rungs()})
    return (0.0 if kept['failed'] else found.objective(kept['accuracy'], kept['cost'])), {'result': kept}


def scorer(config, workdir: str, found: Setting) -> Score:
    """(candidate, folder, go_on, seed) -> {'accuracy', 'stopped_at', 'failed', 'seconds'}, by config.search.evaluation. Trains the supernet."""
    if config.search.evaluation == 'train':
        return functools.partial(_by_training, config, found)
    if config.search.evaluation == 'supernet':
        return shared_weights(config, workdir, found)
    oracle = Oracle(found.space, config.seed, found.objective, found.space.base.resolution, found.num_classes)
    return lambda candidate, folder, go_on, seed: _scored(oracle.accuracy(candidate), 0.0)


def _by_training(config, found: Setting, candidate, folder, go_on, seed):
    one = config.copy_and_resolve_references()
    one.seed = seed
    return proxy.evaluate(one, found.space, candidate, folder, go_on)


def _scored(accuracy: float, seconds: float) -> dict[str, Any]:
    return {'accuracy': accuracy, 'stopped_at': None, 'failed': None, 'seconds': round(seconds, 2)}


def shared_weights(config, workdir: str, found: Setting) -> Score:
    """Scores by a supernet, which one worker trains while the others wait; all read it from the workdir."""
    one = supernet_config(config)
    space = space_of(one)
    folder = os.path.join(workdir, 'search', 'supernet')

    def train_it(key, point):
        state, _ = supernet_train.train_supernet(one, space, folder)
        return 0.0, {'step': int(state.step)}

    def open_it():
        queue = open_queue(config, workdir, found, '_supernet')
        queue.add({'supernet': {'part': 'all'}})
        return queue

    queue = on_process_0(open_it)
    work(queue, train_it)
    failed = hosts.on_first(lambda: queue.failures())
    if failed:
        raise UserError(f'The supernet could not be trained: {failed["supernet"]}. --config.search.retry=True tries again.')
    state, exp = supernet_train.load_supernet(one, space, folder)
    evaluator, variables = supernet_train.Evaluator(exp, one), state.variables(ema=state.ema is not None)

    def score(candidate, folder, go_on, seed):
        began = time.monotonic()
        accuracy = evaluator.score(variables, candidate)['top1']
        return _scored(accuracy, time.monotonic() - began)

    return score
