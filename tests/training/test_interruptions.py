"""Stops and NaN in the loop: what is saved, evaluated and said, and what a second start makes up for."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax.data import pipeline
from efficientnet_jax.errors import NotFinite
from efficientnet_jax.runs import hosts
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.training import loop, setup
from efficientnet_jax.training.setup import training_of
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::pytest.PytestUnraisableExceptionWarning')
ONE = functools.partial(training_of, devices=jax.devices()[:1])
TOP1 = {2: 0.9, 4: 0.1, 6: 0.5}


class Notice(hosts.StopNotice):
    """SIGTERM arrives when the loop, or an evaluation, asks for the n-th time."""

    def __init__(self, number):
        super().__init__()
        self._number = number

    def asked(self):
        self._number -= 1
        if self._number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().asked()


@pytest.fixture
def run(tmp_path, data_dir, monkeypatch, compiled_once):
    """run(stop=None, **options): six updates, evaluated and saved every second, on one device; given scores in place of an evaluation."""

    def run(stop=None, evaluate=None, **options):
        config = tiny.get_config()
        config.update(data_dir=data_dir, steps=6, keep_last=1, log_every_steps=6, **options)
        config.eval_every_epochs = config.checkpoint_every_epochs = 2 * 32 / 1500

        def given(setup, source, config):
            def score(state, interrupt=None):
                return {name: {'top1': TOP1[int(state.step)], 'top5': 1.0, 'loss': 1.0, 'count': 297} for name in ('eval', 'eval_ema')}

            return score

        with monkeypatch.context() as patch:
            if stop is not None:
                patch.setattr(hosts, 'StopNotice', lambda: Notice(stop))
            return loop.train(config, str(tmp_path), build=ONE, evaluate=evaluate or given)

    return run


def lines(workdir):
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [(row['step'], row['split']) for row in rows]


def scores(workdir):
    return json.loads((workdir / 'checkpoints' / 'scores.json').read_text())


def test_an_evaluation_that_a_stop_left_out_is_made_at_the_next_start(run, tmp_path):
    with pytest.raises(hosts.Stopped, match=r'Asked to stop at step 2 of 6; saved\.'):
        run(stop=2)
    assert lines(tmp_path) == [(2, 'train')] and Checkpoints(str(tmp_path / 'checkpoints'), read_only=True).steps() == [2]
    run()
    assert [line for line in lines(tmp_path) if line[1] == 'eval_ema'] == [(2, 'eval_ema'), (4, 'eval_ema'), (6, 'eval_ema')]
    assert Checkpoints(str(tmp_path / 'checkpoints'), read_only=True).steps() == [2, 6]  # the best, and the newest


@pytest.mark.parametrize('kept', [0, 1, 2])
def test_a_score_that_was_written_and_not_recorded_is_made_up_for(run, tmp_path, kept):
    """Killed after the lines of an owed evaluation, or between them, and before its score was recorded."""
    with pytest.raises(hosts.Stopped):
        run(stop=2)
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        for split in ('eval', 'eval_ema')[:kept]:
            file.write(json.dumps({'step': 2, 'split': split, 'loss': 1.0, 'top1': 0.9, 'top5': 1.0, 'count': 297}) + '\n')
    run()
    assert sorted(set(lines(tmp_path))) == sorted(lines(tmp_path)) and (2, 'eval_ema') in lines(tmp_path)
    assert scores(tmp_path)['2'] == 0.9


def test_a_stop_inside_an_evaluation_is_obeyed_and_the_evaluation_made_again(run, tmp_path):
    def slow(setup, source, config):
        config.eval_batch_size = 32
        return loop.state_scorer(setup, source, config)

    with pytest.raises(hosts.Stopped, match=r'at step 2 of 6; saved\.'):
        run(stop=4, evaluate=slow)  # the second batch of ten of the first evaluation
    assert lines(tmp_path) == [(2, 'train')] and not (tmp_path / 'checkpoints' / 'scores.json').exists()
    run()
    assert (2, 'eval') in lines(tmp_path) and '2' in scores(tmp_path)


def test_the_last_evaluation_is_made_again_where_no_result_was_written(run, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError('killed here')

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'finish', fails)
        with pytest.raises(RuntimeError, match='killed here'):
            run()
    before = lines(tmp_path)
    result = run()
    assert lines(tmp_path) == before and result['metrics']['eval']['top1'] == TOP1[6]


@pytest.fixture
def poison(monkeypatch):
    """poison(5): the 5th batch of the stream makes the loss NaN; poison(weights=2): the update after step 1 blows the weights up instead."""

    def poison(*numbers, weights=None):
        stream, step = pipeline.train_batches, setup.train_step

        def poisoned_stream(*args, start_step, **kwargs):
            for number, batch in enumerate(stream(*args, start_step=start_step, **kwargs), start=start_step + 1):
                yield batch | {'label': np.full_like(batch['label'], -1)} if number in numbers else batch

        def poisoned_step(module, optimizer, recipe, state, batch):
            state, metrics = step(module, optimizer, recipe, state, batch)
            bad = jnp.where(batch['label'][0] < 0, jnp.nan, 0.0)
            metrics = metrics | {'loss': metrics['loss'] + bad}
            if weights is not None:
                bad = jnp.where(state.step == weights, jnp.nan, 0.0)
            return state.replace(params=jax.tree.map(lambda x: x + bad, state.params)), metrics

        monkeypatch.setattr(pipeline, 'train_batches', poisoned_stream)
        monkeypatch.setattr(setup, 'train_step', poisoned_step)

    return poison


def test_a_stop_does_not_claim_to_have_saved_what_is_not_finite(run, tmp_path, poison):
    poison(1)
    with pytest.raises(NotFinite, match=r'loss=nan, .* at step 1; there is no checkpoint yet'):
        run(stop=1)
    assert Checkpoints(str(tmp_path / 'checkpoints'), read_only=True).steps() == []


def test_a_stop_after_nan_goes_back_and_says_to_which_step(run, tmp_path, poison):
    poison(3)
    with pytest.raises(hosts.Stopped, match=r'Asked to stop at step 2 of 6; saved\.'):
        run(stop=3, nan_rollbacks=1)
    assert Checkpoints(str(tmp_path / 'checkpoints'), read_only=True).steps() == [2]


def test_weights_that_an_update_leaves_infinite_are_not_saved(run, tmp_path, poison):
    """The loss of step 4 is finite, its weights are not: the checkpoint of step 4 would be called good."""
    poison(weights=4)
    with pytest.raises(NotFinite, match=r'hold NaN or infinities.* at step 4; the newest checkpoint is step 2'):
        run()
    assert Checkpoints(str(tmp_path / 'checkpoints'), read_only=True).steps() == [2]


def test_where_the_newest_checkpoint_leads_to_nan_at_once_an_older_one_is_taken(run, tmp_path, poison):
    poison(5, 6)  # the first update after step 4, twice
    result = run(nan_rollbacks=2, keep_best=1)
    assert (result['step'], result['rollbacks'], result['skipped_batches']) == (6, 2, 4)
    kept = lines(tmp_path)
    assert kept == sorted(kept, key=lambda line: line[0]) and len(set(kept)) == len(kept)
