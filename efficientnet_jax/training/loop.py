"""Training: one flat function from a config to a trained model, resumed by itself where the workdir holds a checkpoint.

Order of a step, which resume relies on: update, stop if asked, log, evaluate, checkpoint, then take the next batch. A run that is
killed at any moment and started again writes the same weights and the same metrics.jsonl, but for the wall-clock figures in it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time

import jax

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.errors import NotFinite
from efficientnet_jax.evaluation.evaluate import evaluate_state
from efficientnet_jax.reporting import page
from efficientnet_jax.reporting.pictures import contact_sheet, draw_curves, short
from efficientnet_jax.reporting.progress import Meter, Progress, Startup, clock
from efficientnet_jax.runs import hosts, record
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.mesh import put, replicated
from efficientnet_jax.training.experiment import as_dict, experiment
from efficientnet_jax.training.step import eval_step, seen_pixels
from efficientnet_jax.weights.from_workdir import write_description
from efficientnet_jax.weights.init_from import start as starting

SHEET_IMAGES = 32


def train(config, workdir: str, build=experiment, evaluate=evaluate_state, began: float | None = None) -> dict:
    """Trains, evaluates on schedule and leaves config.json, metrics.jsonl, log.txt, tensorboard/, augmented.png, checkpoints/, curves.png,
    result.json and report.html.

    build and evaluate replace what makes the experiment and what scores a state, with the same arguments (search/supernet_train.py).
    began: time.monotonic() when the process began, for the seconds to the first step; None: now.
    Returns the content of result.json. Raises UserError for a config that cannot work (before anything is compiled) or a workdir
    in use, NotFinite with the step and the last good checkpoint when the loss or gradients are NaN or Inf and config.nan_rollbacks
    does not help, OSError when the workdir cannot be written, hosts.Stopped when asked to stop (SIGTERM, preemption) and saved.
    """
    startup, started = Startup(began), time.monotonic()
    import tensorflow  # noqa: F401 here, so that its seconds count as imports and not as data

    startup.spent_on('imports')
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    if config.cache:
        source = sources.CachedSource(source)
    eval_source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    startup.spent_on('data')
    start = starting(config, workdir, source.num_classes, new_head=True)
    exp = build(config, source.num_classes, len(source), start=start)
    settings = as_dict(config)
    # Whatever way a run ends, also in a notebook that lives on, others can have its workdir and SIGTERM again.
    total_steps = exp.horizon.total_steps
    with (
        record.claim_workdir(workdir, settings),
        contextlib.closing(hosts.StopNotice()) as stop,
        Progress(workdir, total_steps) as progress,
    ):
        checkpoints = Checkpoints(os.path.join(os.path.abspath(workdir), 'checkpoints'), config.keep_last, config.keep_best)
        state, first_step, note = checkpoints.restore_latest(exp.abstract_state())
        window = note.get('window', [])  # metrics of the steps since the last log line, when the run was stopped between two lines
        skipped, rollbacks = note.get('skipped', 0), note.get('rollbacks', 0)
        if state is None:
            if jax.process_index() == 0:
                write_description(workdir, exp.module.architecture, source.num_classes, exp.preprocess, source.class_names)
            state = exp.init(None if start is None else start.variables)
        elif first_step >= total_steps and not window and (result := trained(workdir)):
            checkpoints.close()
            progress.say(f'Finished already: {workdir} holds step {first_step} of {total_steps} and its result.')
            return result
        else:
            progress.say(f'Resuming {workdir} at step {first_step} of {total_steps}.')

        step_fn = exp.jit_train_step()
        eval_fn = jax.jit(functools.partial(eval_step, exp.module, exp.recipe), out_shardings=replicated(exp.mesh))
        rate = exp.learning_rate

        def batches_after(step):
            """Batch k of the stream belongs to step k + 1, but for the batches that rollbacks have skipped."""
            stream = pipeline.train_batches(
                source, batch_size=config.batch_size, resolution=exp.preprocess.resolution, seed=config.seed, start_step=step + skipped,
                augment=exp.augment, interpolation=exp.preprocess.interpolation, max_corrupt=config.max_corrupt,
                process_index=jax.process_index(), process_count=jax.process_count(),
            )  # fmt: skip
            return pipeline.prefetch(stream, functools.partial(put, exp.mesh))

        def due(step, every_epochs):
            every = max(1, round(every_epochs * exp.horizon.steps_per_epoch))
            return step % every == 0 or step == total_steps

        batches, writer = batches_after(first_step), record.MetricWriter(workdir, first_step)
        step, scores, between_lines, meter = first_step, None, bool(window), Meter(config.batch_size)
        startup.spent_on('init')
        try:
            while step < total_steps or between_lines:
                if not between_lines:
                    batch = next(batches)
                    if 'compile' not in startup.parts:
                        startup.spent_on('data')
                        progress.doing('Compiling the train step, which takes up to minutes.')
                    state, metrics = step_fn(state, batch)
                    step += 1
                    window.append(metrics)
                    meter.step()
                    if 'compile' not in startup.parts:
                        jax.block_until_ready(metrics)
                        startup.spent_on('compile')
                        progress.started(step, startup)
                        if step == 1:
                            draw_inputs(exp, batch, source.class_names, os.path.join(workdir, 'augmented.png'))
                        meter.restart()
                        batches.waited = 0.0
                    if stop.at(step):
                        window = [floats(metrics) for metrics in window]
                        if first_not_finite(window) is None:
                            checkpoints.save(step, state, note={'window': window, 'skipped': skipped, 'rollbacks': rollbacks})
                        checkpoints.close()
                        raise hosts.Stopped(f'Asked to stop at step {step} of {total_steps}; saved. Give the same command again to go on.')
                between_lines = False

                evaluating, saving = due(step, config.eval_every_epochs), due(step, config.checkpoint_every_epochs)
                if step % config.log_every_steps == 0 or evaluating or saving:
                    window = [floats(metrics) for metrics in window]
                    bad = first_not_finite(window)
                    if bad is not None:
                        bad_step = step - len(window) + 1 + bad
                        checkpoints.wait()
                        rollbacks += 1
                        if rollbacks > config.nan_rollbacks or not checkpoints.steps():
                            raise NotFinite(not_finite_message(window[bad], bad_step, checkpoints, config.nan_rollbacks))
                        state, step, _ = checkpoints.restore_latest(exp.abstract_state())
                        skipped += bad_step - step  # the next batch is the one after the bad one
                        progress.say(
                            f'NaN or Inf at step {bad_step}: back to step {step} and past {bad_step - step} batches, time {rollbacks}.'
                        )
                        batches.close()
                        writer.close()
                        batches, writer, window = batches_after(step), record.MetricWriter(workdir, step), []
                        meter.restart()
                        continue
                    means, speed = mean_metrics(window), meter.read(batches.waited)
                    writer.write(step, 'train', **means, learning_rate=float(rate(step - 1)), **speed)
                    figures = {'images_s': round(speed['images_per_sec']), 'wait': f'{speed["input_wait"]:.0%}'} if speed else {}
                    progress.show(step, loss=means['loss'], top1=means['top1'], **figures)
                    window, batches.waited = [], 0.0
                if evaluating:
                    scores = evaluate(eval_fn, state, eval_source, exp, config.eval_batch_size, config.max_corrupt)
                    for split, score in scores.items():
                        writer.write(step, split, **score)
                    progress.say(f'step {step}: ' + ', '.join(f'{split} top-1 {score["top1"]:.2%}' for split, score in scores.items()))
                    meter.restart()
                if saving:
                    writer.flush()  # a checkpoint promises that the lines up to its step are there
                    best_by = (scores.get('eval_ema') or scores['eval']) if evaluating else None
                    checkpoints.save(step, state, best_by, note={'skipped': skipped, 'rollbacks': rollbacks})
        finally:
            batches.close()
            writer.close()
        checkpoints.close()
        if scores is None:  # everything was trained before, but the run ended before its result was written
            scores = evaluate(eval_fn, state, eval_source, exp, config.eval_batch_size, config.max_corrupt)

        result = record.result(
            'train', settings, total_steps, scores, (total_steps - first_step) * config.batch_size, time.monotonic() - started
        )
        result |= {'rollbacks': rollbacks, 'skipped_batches': skipped} if rollbacks else {}
        result |= {'seconds_to_first_step': startup.parts} if 'compile' in startup.parts else {}
        if jax.process_index() == 0:
            draw_curves(os.path.join(workdir, 'metrics.jsonl'), os.path.join(workdir, 'curves.png'), title=config.model)
            page.leave(workdir, result, settings)
        progress.say(f'Done after {clock(result["seconds"])}: {workdir}/report.html shows it, result.json has the figures.')
        return result


def draw_inputs(exp, batch, class_names, path: str) -> None:
    """A contact sheet of the first images of a batch as the network sees them at step 0, written by process 0."""
    see = jax.jit(functools.partial(seen_pixels, exp.recipe, count=SHEET_IMAGES), out_shardings=replicated(exp.mesh))
    seen = jax.device_get(see(batch))
    if jax.process_index() == 0:
        names = class_names or range(exp.module.num_classes)
        contact_sheet(seen['image'], [short(names[label]) for label in seen['label']], path)


def trained(workdir: str) -> dict | None:
    """The result that a finished training run left, also when another mode has run there since."""
    return page.results_of(workdir).get('train') if os.path.exists(os.path.join(workdir, 'result.json')) else None


def floats(metrics) -> dict[str, float]:
    """Metrics of a step on the host."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def first_not_finite(window: list[dict[str, float]]) -> int | None:
    """Index of the first step whose loss or gradients are NaN or infinite."""
    return next((i for i, m in enumerate(window) if not (math.isfinite(m['loss']) and math.isfinite(m['grad_norm']))), None)


def not_finite_message(metrics: dict[str, float], step: int, checkpoints: Checkpoints, rollbacks: int) -> str:
    """What happened at which step, and what to do."""
    good = checkpoints.steps()
    where = f'the last good checkpoint is step {good[-1]} in {checkpoints.directory}' if good else 'there is no checkpoint yet'
    tried = f' after nan_rollbacks={rollbacks}' if rollbacks else ', or set nan_rollbacks to skip such batches'
    return (
        f'loss={metrics["loss"]}, grad_norm={metrics["grad_norm"]} at step {step}{tried if rollbacks else ""}; {where}. Lower lr_per_256, '
        f'lengthen warmup_epochs or use dtype=float32 in a new --workdir{"" if rollbacks else tried}.'
    )


def mean_metrics(window: list[dict[str, float]]) -> dict[str, float]:
    """Means over the examples of some steps; of grad_norm, over the steps."""
    count = math.fsum(m['count'] for m in window)
    means = {name: math.fsum(m[name] for m in window) / count for name in ('loss', 'top1', 'top5')}
    return means | {'grad_norm': math.fsum(m['grad_norm'] for m in window) / len(window)}
