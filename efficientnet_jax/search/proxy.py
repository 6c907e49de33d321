"""The proxy task: a candidate trained for a while by the normal trainer, in a workdir of its own from which it goes on after a kill.

With search.rungs = R and rung_factor = F, candidates are compared after 1/F^R, ..., 1/F of their steps, and at each rung one in F of those
that came there goes on (asynchronous successive halving, arXiv 1810.05934: whoever comes first is not kept waiting). One that is stopped
keeps the accuracy of its rung.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from efficientnet_jax.data import sources
from efficientnet_jax.errors import NotFinite, UserError
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.evaluation.score import best_top1
from efficientnet_jax.runs import hosts, recipe, storage
from efficientnet_jax.search.space import Candidate, Space
from efficientnet_jax.tpu import aot
from efficientnet_jax.training.loop import state_scorer, train
from efficientnet_jax.training.optim import Horizon
from efficientnet_jax.training.setup import Training, training_of

# (rung from 0, accuracy, seconds of an update or None) -> whether the candidate goes on; every process of a worker calls it.
GoOn = Callable[[int, float, float | None], bool]
RESULT = 'evaluation.json'


class HaltedAtRung(Exception):
    """A candidate that was stopped early at `step` with the `accuracy` it had there."""

    def __init__(self, step: int, accuracy: float):
        super().__init__(f'stopped at step {step}')
        self.step, self.accuracy = step, accuracy


def full_config(config, space: Space, candidate: Candidate):
    """The config that trains the candidate in full, on what the search trains on, and evaluates it at its end on what is held out."""
    one = config.copy_and_resolve_references()
    one.update(stages=space.rows(candidate), train_split=config.search.train_split, eval_split=config.search.eval_split)
    horizon = _horizon(one)
    one.eval_every_epochs = horizon.total_steps / horizon.steps_per_epoch
    return one


def proxy_config(config, space: Space, candidate: Candidate):
    """The config that trains it as a proxy, evaluated at its rungs and its end."""
    one, knobs = full_config(config, space, candidate), config.search
    for knob in ('epochs', 'steps', 'warmup_epochs'):
        one[knob] = knobs[knob]
    if knobs.resolution is not None:
        one.resolution = knobs.resolution
    horizon = _horizon(one)
    one.eval_every_epochs = _rungs(knobs, horizon)[0] / horizon.steps_per_epoch
    return one


def _horizon(config) -> Horizon:
    examples = _examples(config.dataset, config.train_split, config.data_dir)
    return Horizon.of(examples, config.batch_size, config.epochs, config.steps)


@functools.cache
def _examples(dataset: str, split: str, data_dir: str | None) -> int:
    return len(sources.open_source(dataset, split, data_dir))


def _rungs(knobs, horizon: Horizon) -> list[int]:
    """Steps of the rungs; without any, the last step."""
    if knobs.rungs is None:
        return [horizon.total_steps]
    first = max(1, horizon.total_steps // knobs.rung_factor**knobs.rungs)
    return [first * knobs.rung_factor**i for i in range(knobs.rungs)]


def check(config, space: Space, candidates: list[Candidate]) -> None:
    """Builds, without compiling, what would be trained of the candidates. Raises UserError for a knob that cannot work."""
    knobs = config.search
    source = sources.open_source(config.dataset, knobs.train_split, config.data_dir)
    for candidate in candidates:
        training_of(full_config(config, space, candidate), source.num_classes, len(source))
        one = proxy_config(config, space, candidate)
        total = _horizon(one).total_steps
        if total < 1:
            raise UserError(f'search.epochs={knobs.epochs}, search.steps={knobs.steps} make no update at batch_size={one.batch_size}.')
        training_of(one, source.num_classes, len(source))
    if knobs.rungs is not None and knobs.rung_factor**knobs.rungs > total:
        raise UserError(
            f'search.rungs={knobs.rungs} of factor {knobs.rung_factor} need {knobs.rung_factor**knobs.rungs} steps or more; the proxy has {total}.'
        )


def evaluate(config, space: Space, candidate: Candidate, folder: str, go_on: GoOn | None = None) -> dict[str, Any]:
    """{'accuracy', 'stopped_at', 'failed', 'seconds', 'step_seconds'} of the candidate's proxy, whose workdir is `folder`.

    What is there already is not trained again. accuracy: of the hold-out, from the moving average where there is one. stopped_at: the
    step of the rung at which it was stopped, or None. failed: why it could not be trained, with accuracy 0, or None. step_seconds: of an
    update, where search.cost asks for it. Every process of a worker calls it. Raises UserError when the folder holds another config.
    """
    one = proxy_config(config, space, candidate)
    return trained(one, folder, go_on, _rungs(config.search, _horizon(one)), config.search)


def trained(one, folder: str, go_on: GoOn | None, rungs: list[int], knobs) -> dict[str, Any]:
    """As evaluate, for any config of a candidate; knobs: config.search."""
    path, began = os.path.join(folder, RESULT), time.monotonic()
    identity = recipe.config_hash(as_dict(one))
    known = hosts.on_first(lambda: storage.read_json(path) if os.path.exists(path) else None)
    if known is not None:
        if known['config_hash'] != identity:
            raise UserError(f'{folder} holds the candidate under another config; choose another --workdir, or remove {folder}.')
        return {name: value for name, value in known.items() if name != 'config_hash'}
    found = {'accuracy': 0.0, 'stopped_at': None, 'failed': None}
    if knobs.cost == 'step_seconds':
        found['step_seconds'] = step_seconds(one)
    try:
        scores = train(one, folder, evaluate=_evaluation(go_on, rungs, found.get('step_seconds')))['metrics']
        found['accuracy'] = best_top1(scores)
    except HaltedAtRung as halted:
        found |= {'accuracy': halted.accuracy, 'stopped_at': halted.step}
    except NotFinite as error:
        found['failed'] = str(error)[:300]
    found['seconds'] = round(time.monotonic() - began, 1)

    def keep():
        storage.write_json(path, found | {'config_hash': identity})
        if not knobs.keep_checkpoints:
            shutil.rmtree(os.path.join(folder, 'checkpoints'), ignore_errors=True)

    hosts.on_first(keep)
    return found


def _evaluation(go_on: GoOn | None, rungs: list[int], seconds: float | None):
    """What makes train's scorer of states: as ever, and at a rung it asks whether to go on."""

    def evaluation(setup: Training, source: sources.Source, config):
        score = state_scorer(setup, source, config)

        def score_and_ask(state, interrupt=None):
            scores, step = score(state, interrupt), int(state.step)
            if go_on is not None and step in rungs and step < setup.horizon.total_steps:
                accuracy = best_top1(scores)
                if not go_on(rungs.index(step), accuracy, seconds):
                    raise HaltedAtRung(step, accuracy)
            return scores

        return score_and_ask

    return evaluation


def step_seconds(config, warm_up: int = 3, runs: int = 10) -> float:
    """The median time of an update on this worker's devices, on a batch that is there already."""
    import statistics

    from efficientnet_jax.search.supernet_train import train_batches

    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    setup = training_of(config, source.num_classes, len(source))
    state, step, batch = setup.init(), setup.jit_train_step(), train_batches(setup, config, 1)[0]
    seconds = []
    for _ in range(warm_up + runs):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    # All processes of the worker get process 0's figure: the reward must not differ between them.
    return hosts.on_first(lambda: statistics.median(seconds[warm_up:]))


class Ahead:
    """Compiles the update of the candidate that will probably be next, in a thread, into JAX's compilation cache on disk."""

    def __init__(self, config, space: Space):
        self._config, self._space = config, space
        self._thread: threading.Thread | None = None

    def start(self, candidate: Candidate) -> None:
        """Begins to compile; returns at once."""
        one = proxy_config(self._config, self._space, candidate)

        def compile():
            source = sources.open_source(one.dataset, one.train_split, one.data_dir)
            aot.lower_train(training_of(one, source.num_classes, len(source)), one.batch_size).compile()

        self._thread = threading.Thread(target=compile, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the last one is compiled; it would otherwise be compiled twice."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
