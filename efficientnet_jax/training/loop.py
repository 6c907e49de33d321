"""Training: from a config to a trained model, resumed by itself where the workdir holds a checkpoint.

Order of a step, which resume relies on: update, line of metrics, evaluation, checkpoint, then stop if asked, or take the next batch.
A run that is killed at any moment and started again ends with the same weights: all that it needs is the checkpoint of a step. One
that is asked to stop writes the line of the updates since the last one, saves, and evaluates when it goes on, if that was due.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable

import jax

from efficientnet_jax.data import sources
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.evaluation.score import Interrupted, Scores, best_top1, scorer
from efficientnet_jax.reporting import page
from efficientnet_jax.reporting.pictures import contact_sheet, draw_curves, short
from efficientnet_jax.reporting.progress import Progress, Startup, clock
from efficientnet_jax.runs import hosts, recipe, record
from efficientnet_jax.runs import workdir as workdirs
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.integrity import NotFiniteState
from efficientnet_jax.runs.mesh import replicated
from efficientnet_jax.training.log import TrainLog
from efficientnet_jax.training.rollback import roll_back
from efficientnet_jax.training.setup import Training, training_of
from efficientnet_jax.training.state import TrainState
from efficientnet_jax.training.step import seen_pixels
from efficientnet_jax.training.stream import Stream
from efficientnet_jax.weights import description, init_from

SHEET_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that stay the same from its first step to its last."""

    hold: workdirs.Hold
    first_step: int  # of this start
    setup: Training
    source: sources.Source
    checkpoints: Checkpoints
    log: TrainLog
    stream: Stream
    stop: hosts.StopNotice
    progress: Progress
    startup: Startup
    update: Callable  # (state, batch) -> (state, metrics)
    score: Callable[..., Scores]  # (state, interrupt)
    nan_rollbacks: int
    batch_size: int

    def images(self, step: int) -> int:
        """That this start has trained on when it is at a step."""
        return max(0, step - self.first_step) * self.batch_size


def state_scorer(setup: Training, source: sources.Source, config) -> Callable[..., Scores]:
    """score(state, interrupt) -> {'eval': {loss, top1, top5, count}, 'eval_ema': ...}, on all of a split."""
    score = scorer(setup.inference, source, config.eval_batch_size, max_corrupt=config.max_corrupt, max_pixels=config.max_pixels)
    return lambda state, interrupt=None: score(setup.weights_of(state), interrupt)


def train(config, workdir: str, build=training_of, evaluate=state_scorer, began: float | None = None) -> dict:
    """Trains, evaluates on schedule and leaves metrics.jsonl, log.txt, tensorboard/, augmented.png, checkpoints/, curves.png, report.html and
    the record (runs/record.py): run.json with its views config.json and result.json.

    build and evaluate replace what makes the objects of the run and what scores a state, with the same arguments
    (search/supernet_train.py). began: time.monotonic() when the process began, for the seconds to the first step; None: now.
    Returns the content of result.json. Raises UserError for a config that cannot work (before anything is compiled) or a workdir
    in use, NotFinite with the step when the loss or gradients are NaN or Inf and config.nan_rollbacks does not help, StorageError
    when the workdir cannot be written, hosts.Stopped when asked to stop (SIGTERM, preemption) and saved.
    """
    startup, started = Startup(began), time.monotonic()
    source, eval_source = open_sources(config, startup)
    start = init_from.start(config, workdir, source.num_classes, new_head=True)
    setup = build(config, source.num_classes, len(source), start=start)
    total = setup.horizon.total_steps
    with contextlib.ExitStack() as stack:  # whatever way a run ends, others can have its workdir and SIGTERM again
        data = workdirs.TrainingData(source.class_names, source.num_classes, len(source))
        hold = stack.enter_context(workdirs.hold(workdir, as_dict(config), data, started))
        stop = stack.enter_context(contextlib.closing(hosts.StopNotice()))
        progress = stack.enter_context(Progress(workdir, total))
        checkpoints = Checkpoints(os.path.join(os.path.abspath(workdir), 'checkpoints'), config.keep_last, config.keep_best)
        stack.callback(checkpoints.release)
        state, first_step = checkpoints.restore_latest(setup.abstract_state())
        if state is None or not hold.described:
            hold.describe(description.describe(setup.module.architecture, source.num_classes, setup.preprocess, source.class_names))
        if state is None:
            state = setup.init(None if start is None else start.variables)
        elif first_step >= total and (result := hold.finished()):
            checkpoints.close()
            progress.say(f'Finished already: {workdir} holds step {first_step} of {total} and its result.')
            return result
        else:
            progress.say(f'Resuming {workdir} at step {first_step} of {total}.')
        log = stack.enter_context(contextlib.closing(TrainLog(workdir, first_step, config.batch_size, setup.learning_rate, progress)))
        stream = stack.enter_context(contextlib.closing(Stream(config, setup, source)))
        hold.start(first_step)
        run = Run(
            hold, first_step, setup, source, checkpoints, log, stream, stop, progress, startup,
            update=setup.jit_train_step(), score=evaluate(setup, eval_source, config), nan_rollbacks=config.nan_rollbacks, batch_size=config.batch_size,
        )  # fmt: skip
        startup.spent_on('init')
        state, scores = steps(run, state, first_step)
        return finish(run, state, scores, config)


def steps(run: Run, state: TrainState, step: int) -> tuple[TrainState, Scores]:
    """The updates after `step` with all that follows them; the last state and its scores. Raises hosts.Stopped and NotFinite."""
    schedule, total = run.setup.schedule, run.setup.schedule.total_steps
    run.stream.start(step + int(state.skipped))
    back_to = scores = None
    # A stop saves before the evaluation of its step, which is owed then; that of the last step is made again where no result was written.
    owed = step > 0 and schedule.at(step).evaluate and (step == total or not run.checkpoints.scored(step))
    if owed:
        run.log.drop_scores(step)
    while step < total or owed:
        stopping = False
        if not owed:
            state, step = one_update(run, state, step), step + 1
            stopping = run.stop.asked()
        due, owed = schedule.at(step), False
        if (due.log or stopping) and (bad := run.log.first_bad(step)):
            state, step = go_back(run, state, *bad, back_to)
            back_to = step
            if stopping:
                raise stopped(run, step)
            continue
        if due.log or stopping:
            run.checkpoints.check()
            run.log.write_line(step, run.stream.waited())
        scores = None
        if due.evaluate and not stopping:
            with contextlib.suppress(Interrupted):
                scores = run.score(state, run.stop.asked)
                run.log.write_scores(step, scores)
            stopping = scores is None
        if due.save or stopping:
            run.log.flush()
            try:
                run.checkpoints.save(step, state, None if scores is None else best_top1(scores))
            except NotFiniteState as error:
                state, step = go_back(run, state, step, str(error), back_to)
                back_to = step
            run.hold.progress(step, run.images(step))
        if stopping:
            raise stopped(run, step)
    return state, scores


def go_back(run: Run, state: TrainState, bad_step: int, what: str, last: int | None) -> tuple[TrainState, int]:
    """As roll_back, with the metrics and the stream taken back too."""
    state, step = roll_back(run.checkpoints, run.setup.abstract_state(), state, bad_step, what, last, run.nan_rollbacks)
    run.progress.say(f'NaN or Inf at step {bad_step}: back to step {step}, and past the bad batch; rollback {int(state.rollbacks)}.')
    run.log.rewind(step)
    run.stream.start(step + int(state.skipped))
    return state, step


def one_update(run: Run, state: TrainState, step: int) -> TrainState:
    """The state after the next batch. The first update also tells where the time went, and shows the batch."""
    batch, first = run.stream.next(), not run.startup.compiled
    if first:
        run.startup.spent_on('data')
        run.progress.doing('Compiling the train step, which takes up to minutes.')
    state, metrics = run.update(state, batch)
    run.log.add(metrics)
    if first:
        jax.block_until_ready(metrics)
        run.startup.spent_on('compile')
        run.progress.started(step + 1, run.startup)
        if step == 0:
            draw_inputs(run.setup, batch, run.source.class_names, os.path.join(run.hold.workdir, 'augmented.png'))
        run.log.meter.restart()
        run.stream.waited()
    return state


def stopped(run: Run, step: int) -> hosts.Stopped:
    """Waits until the checkpoint is complete, and says so."""
    run.checkpoints.close()
    return hosts.Stopped(f'Asked to stop at step {step} of {run.setup.schedule.total_steps}; saved. Give the same command again to go on.')


def finish(run: Run, state: TrainState, scores: Scores, config) -> dict:
    """What a run leaves at its end, with the record last; its result."""
    run.checkpoints.close()
    total, workdir = run.setup.schedule.total_steps, run.hold.workdir
    result = run.hold.finish(record.result('train', as_dict(config), total, scores, run.images(total), 0.0))
    if rollbacks := int(state.rollbacks):
        result |= {'rollbacks': rollbacks, 'skipped_batches': int(state.skipped)}
    if run.startup.compiled:
        result['seconds_to_first_step'] = run.startup.parts
    if jax.process_index() == 0:
        title = recipe.network_name(as_dict(config))
        draw_curves(os.path.join(workdir, 'metrics.jsonl'), os.path.join(workdir, 'curves.png'), title)
        page.leave(workdir, result, as_dict(config))
    run.progress.say(f'Done after {clock(result["seconds"])}: {workdir}/report.html shows it, result.json has the figures.')
    return result


def open_sources(config, startup: Startup) -> tuple[sources.Source, sources.Source]:
    """The training and the evaluation split."""
    import tensorflow  # noqa: F401 here, so that its seconds count as imports and not as data

    startup.spent_on('imports')
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    if config.cache:
        source = sources.CachedSource(source)
    eval_source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    startup.spent_on('data')
    return source, eval_source


def draw_inputs(setup: Training, batch, class_names, path: str) -> None:
    """A contact sheet of the first images of a batch as the network sees them at step 0, written by process 0."""
    see = jax.jit(functools.partial(seen_pixels, setup.recipe, count=SHEET_IMAGES), out_shardings=replicated(setup.mesh))
    seen = jax.device_get(see(batch))
    if jax.process_index() == 0:
        names = class_names or range(setup.module.num_classes)
        contact_sheet(seen['image'], [short(names[label]) for label in seen['label']], path)
