"""Training: one flat function from a config to a trained model, resumed by itself where the workdir holds a checkpoint.

Order of a step, which resume relies on: update, log, evaluate, checkpoint, then take the next batch.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import time

import jax
import numpy as np

from efficientnet_jax import report
from efficientnet_jax.checkpoint import Checkpoints
from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.evaluate import evaluate_state
from efficientnet_jax.experiment import as_dict, experiment
from efficientnet_jax.mesh import put, replicated
from efficientnet_jax.plots import draw_curves
from efficientnet_jax.step import eval_step, train_step


class NotFinite(FloatingPointError):
    """The loss or the gradients are NaN or infinite."""


def train(config, workdir: str) -> dict:
    """Trains, evaluates on schedule and leaves config.json, metrics.jsonl, tensorboard/, checkpoints/, curves.png and result.json.

    Returns the content of result.json. Raises ValueError for a config that cannot work (before anything is compiled),
    NotFinite with the step and the last good checkpoint when the loss or gradients are NaN or Inf, OSError when the
    workdir cannot be written.
    """
    started = time.monotonic()
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    eval_source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    exp = experiment(config, source.num_classes, len(source))
    settings = as_dict(config)
    report.claim_workdir(workdir, settings)

    checkpoints = Checkpoints(os.path.join(os.path.abspath(workdir), 'checkpoints'), config.keep_last, config.keep_best)
    result_path = os.path.join(workdir, 'result.json')
    state, first_step = checkpoints.restore_latest(exp.abstract_state())
    total_steps = exp.horizon.total_steps
    progress = report.Progress(total_steps, first_step)
    if state is None:
        state = exp.init()
    elif first_step >= total_steps and os.path.exists(result_path):
        checkpoints.close()
        progress.say(f'Finished already: {workdir} holds step {first_step} of {total_steps} and {result_path}.')
        return report.read_json(result_path)
    else:
        progress.say(f'Resuming {workdir} at step {first_step} of {total_steps}.')

    step_fn = jax.jit(functools.partial(train_step, exp.module, exp.optimizer, exp.recipe), donate_argnums=0, out_shardings=replicated(exp.mesh))
    eval_fn = jax.jit(functools.partial(eval_step, exp.module, exp.recipe), out_shardings=replicated(exp.mesh))
    hosts = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
    batches = pipeline.prefetch(
        pipeline.train_batches(
            source, batch_size=config.batch_size, resolution=exp.preprocess.resolution, seed=config.seed, start_step=first_step,
            augment=config.augment, interpolation=config.interpolation, **hosts,
        ),
        functools.partial(put, exp.mesh),
    )  # fmt: skip
    rate = exp.learning_rate

    def due(step, every_epochs):
        every = max(1, round(every_epochs * exp.horizon.steps_per_epoch))
        return step % every == 0 or step == total_steps

    writer = report.MetricWriter(workdir, first_step)
    pending, scores, since = [], None, time.monotonic()
    try:
        for step in range(first_step + 1, total_steps + 1):
            state, metrics = step_fn(state, next(batches))
            pending.append(metrics)
            evaluating, saving = due(step, config.eval_every_epochs), due(step, config.checkpoint_every_epochs)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                progress.say(f'First step after {time.monotonic() - started:.1f} s.')
            if step % config.log_every_steps == 0 or evaluating or saving:
                means = means_or_raise(jax.device_get(pending), step, checkpoints)
                now = time.monotonic()
                speed = {'images_per_sec': len(pending) * config.batch_size / (now - since), 'input_wait': batches.waited / (now - since)}
                writer.write(step, 'train', **means, learning_rate=float(rate(step - 1)), **speed)
                progress.show(step, loss=means['loss'], top1=means['top1'], images_s=round(speed['images_per_sec']), wait=speed['input_wait'])
                pending, since, batches.waited = [], now, 0.0
            if evaluating:
                scores = evaluate_state(eval_fn, state, eval_source, exp, config.eval_batch_size)
                for split, score in scores.items():
                    writer.write(step, split, **score)
                progress.say(f'step {step}: ' + ', '.join(f'{split} top-1 {score["top1"]:.2%}' for split, score in scores.items()))
                since = time.monotonic()
            if saving:
                checkpoints.save(step, state, (scores.get('eval_ema') or scores['eval']) if evaluating else None)
    finally:
        batches.close()
        writer.close()
    checkpoints.close()
    if scores is None:  # everything was trained before, but the run ended before its result was written
        scores = evaluate_state(eval_fn, state, eval_source, exp, config.eval_batch_size)

    result = report.result('train', settings, total_steps, scores, (total_steps - first_step) * config.batch_size, time.monotonic() - started)
    if jax.process_index() == 0:
        draw_curves(os.path.join(workdir, 'metrics.jsonl'), os.path.join(workdir, 'curves.png'), title=config.model)
        report.write_json(result_path, result)
    return result


def means_or_raise(pending: list[dict[str, np.ndarray]], last_step: int, checkpoints: Checkpoints) -> dict[str, float]:
    """Means of the metrics of the steps up to last_step. Raises NotFinite naming the first step whose loss or gradients are not finite."""
    for step, metrics in zip(itertools.count(last_step - len(pending) + 1), pending, strict=False):
        if not (math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm'])):
            checkpoints.wait()
            good = checkpoints.steps()
            where = f'the last good checkpoint is step {good[-1]} in {checkpoints.directory}' if good else 'there is no checkpoint yet'
            raise NotFinite(
                f'loss={float(metrics["loss"])}, grad_norm={float(metrics["grad_norm"])} at step {step}; {where}. '
                'Lower lr_per_256, lengthen warmup_epochs or use dtype=float32 in a new --workdir.'
            )
    count = sum(m['count'] for m in pending)
    means = {name: float(sum(m[name] for m in pending) / count) for name in ('loss', 'top1', 'top5')}
    return means | {'grad_norm': float(np.mean([m['grad_norm'] for m in pending]))}
