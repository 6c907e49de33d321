"""Evaluation: one pass over a whole split, every example counted once, raw and EMA weights."""

from __future__ import annotations

import functools
import os
import time

import jax
import numpy as np

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation import confusion
from efficientnet_jax.reporting import page
from efficientnet_jax.reporting.progress import Progress
from efficientnet_jax.runs import record
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.mesh import put, replicated
from efficientnet_jax.training.experiment import Experiment, as_dict, experiment
from efficientnet_jax.training.state import TrainState
from efficientnet_jax.training.step import examples_step
from efficientnet_jax.weights.init_from import Start
from efficientnet_jax.weights.init_from import start as starting

TELL_SECONDS = 5  # between the lines that say how far an evaluation is


def evaluate_state(
    eval_fn, state: TrainState, source: sources.Source, exp: Experiment, batch_size: int, max_corrupt: int = 0
) -> dict[str, dict[str, float]]:
    """{'eval': {loss, top1, top5, count}, 'eval_ema': ...}; means over all examples, on every host the same.

    eval_fn is a jitted eval_step. eval_ema is there only if the state has a moving average.
    """
    outputs = outputs_of(eval_fn, state, source, exp, batch_size, max_corrupt)
    return {split: means(sums) for split, sums in outputs.items()}


def outputs_of(
    eval_fn,
    state: TrainState,
    source: sources.Source,
    exp: Experiment,
    batch_size: int,
    max_corrupt: int = 0,
    progress: Progress | None = None,
) -> dict[str, list]:
    """{'eval': what eval_fn gives for each batch of the source, on the host, 'eval_ema': likewise}. progress: told of batches as of steps."""
    variables = {'eval': state.variables()}
    if state.ema is not None:
        variables['eval_ema'] = jax.device_put(state.variables(ema=True), replicated(exp.mesh))  # mesh.shard_state may have split it
    outputs: dict[str, list] = {split: [] for split in variables}
    data = exp.mesh.shape['data']
    batch_size = min(batch_size, -(-len(source) // data) * data)  # a last batch is filled up to it: a few images must not cost a whole one
    hosts = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
    batches = pipeline.eval_batches(source, batch_size=batch_size, preprocess=exp.preprocess, max_corrupt=max_corrupt, **hosts)
    told = time.monotonic()
    for done, batch in enumerate(pipeline.prefetch(batches, functools.partial(put, exp.mesh)), start=1):
        for split, weights in variables.items():
            outputs[split].append(eval_fn(weights, batch))
        if progress is not None and done * batch_size < len(source) and time.monotonic() - told >= TELL_SECONDS:
            jax.block_until_ready(outputs)  # what is told is done, not queued
            progress.show(done)
            told = time.monotonic()
    return jax.device_get(outputs)


def means(sums: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Metric sums of batches -> means over their examples, and count."""
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    count = total.pop('count')
    return {name: value / count for name, value in total.items()} | {'count': int(count)}


def evaluate(config, workdir: str) -> dict:
    """Scores the newest checkpoint of a workdir, or config.init_from where it has none, on config.eval_split.

    Leaves result.json, log.txt, confused.json, confusion.png, samples.png and report.html there and returns the content of result.json. The
    pictures are of the moving average where there is one. Raises UserError without a checkpoint and init_from, and for weights of other
    classes than the data's.
    """
    started = time.monotonic()
    source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    exp, state, step = restore(config, workdir, source.num_classes)
    if jax.process_index() == 0:
        os.makedirs(workdir, exist_ok=True)  # with init_from it may be new
    eval_fn = jax.jit(functools.partial(examples_step, exp.module, exp.recipe), out_shardings=replicated(exp.mesh))
    with Progress(workdir, total_steps=-(-len(source) // config.eval_batch_size)) as progress:
        progress.doing(f'Evaluating step {step} on {len(source)} images of {source.name}.')
        outputs = outputs_of(eval_fn, state, source, exp, config.eval_batch_size, config.max_corrupt, progress)
    scores = {split: means([sums for sums, _ in parts]) for split, parts in outputs.items()}
    split = 'eval_ema' if 'eval_ema' in outputs else 'eval'
    examples = {name: np.concatenate([part[name] for _, part in outputs[split]])[: len(source)] for name in outputs[split][0][1]}
    confused = confusion.confused(examples, source.class_names or tuple(str(i) for i in range(source.num_classes)))
    confused = {'weights': split, 'step': step, 'split': source.name, **confused}
    result = record.result('evaluate', as_dict(config), step, scores, len(source), time.monotonic() - started)
    if jax.process_index() == 0:
        for split, score in scores.items():
            print(f'{split}: top-1 {score["top1"]:.2%}, top-5 {score["top5"]:.2%}, loss {score["loss"]:.4f} over {score["count"]} images')
        print(confusion.lines(confused))
        confusion.write(workdir, confused, examples, source, exp.preprocess)
        page.leave(workdir, result, as_dict(config))
    return result


def restore_best(config, workdir: str | None) -> tuple[Experiment, TrainState, int, tuple[str, ...]]:
    """As `restore` with the best checkpoint and the number of classes that the weights have; also the names of the classes."""
    start = starting(config, workdir)
    source = None if start is not None else sources.open_source(config.dataset, config.eval_split, config.data_dir)
    num_classes = source.num_classes if start is None else start.num_classes
    names = (source if start is None else start).class_names or tuple(str(i) for i in range(num_classes))
    exp, state, step = restore(config, workdir, num_classes, best=True, start=start)
    return exp, state, step, names


def restore(
    config, workdir: str | None, num_classes: int, best: bool = False, start: Start | None = None
) -> tuple[Experiment, TrainState, int]:
    """The model of a config with the weights of the newest (or best) checkpoint in a workdir, or with those of config.init_from.

    start: what weights.start gave for them, when it was called before. Raises UserError with neither of them.
    """
    directory = None if workdir is None else os.path.join(os.path.abspath(workdir), 'checkpoints')
    trained = directory is not None and os.path.isdir(directory)
    if not trained and config.init_from is None:
        raise UserError(
            f'workdir={workdir} has no checkpoints; train there first, give the --workdir of a training run, or name weights with '
            '--config.init_from.'
        )
    if trained:
        record.warn_of_differences(workdir, as_dict(config))
    start = start or starting(config, workdir, num_classes, new_head=trained)
    # The number of training images only sets the length of the schedule, which is not used after training.
    exp = experiment(config, num_classes, train_examples=config.batch_size, start=start)
    if not trained:
        return exp, exp.init(start.variables), 0
    checkpoints = Checkpoints(directory, read_only=True)
    step = checkpoints.best_step() if best else (checkpoints.steps() or [None])[-1]
    if step is None:
        raise UserError(f'workdir={workdir} has no complete checkpoint; train there first, or give the --workdir of a training run.')
    # Weights alone: the optimizer's state depends on settings that this mode does not need to repeat, such as frozen layers.
    abstract = exp.abstract_state()
    weights = checkpoints.restore_weights(step, {'params': abstract.params, 'batch_stats': abstract.batch_stats})
    checkpoints.close()
    state = TrainState(step=step, params=weights['params'], batch_stats=weights['batch_stats'], opt_state=None, ema=weights.get('ema'))
    return exp, state, step
