"""One pass over a split, every example counted once, for one or more sets of weights."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.evaluation.inference import Inference, eval_step
from efficientnet_jax.reporting.progress import Progress
from efficientnet_jax.runs.mesh import put

TELL_SECONDS = 5  # between the lines that say how far an evaluation is
Weights = dict[str, dict[str, Any]]  # {'eval': variables, 'eval_ema': their moving average, where there is one}
Scores = dict[str, dict[str, float]]  # {'eval': {loss, top1, top5, count}, ...}


class Interrupted(Exception):
    """A pass was asked to stop before its end."""


def scorer(inference: Inference, source: sources.Source, batch_size: int, **limits: int) -> Callable[..., Scores]:
    """score(weights, interrupt=None) -> Scores, compiled at its first call: means over all examples, on every host the same.

    limits: max_corrupt and max_pixels of pipeline.eval_batches.
    """
    step = inference.jit(eval_step)

    def score(weights: Weights, interrupt: Callable[[], bool] | None = None) -> Scores:
        outputs = outputs_of(step, weights, source, inference, batch_size, interrupt=interrupt, **limits)
        return {split: means(batch_sums) for split, batch_sums in outputs.items()}

    return score


def outputs_of(
    step,
    weights: Weights,
    source: sources.Source,
    inference: Inference,
    batch_size: int,
    progress: Progress | None = None,
    interrupt: Callable[[], bool] | None = None,
    **limits: int,
) -> dict[str, list]:
    """{'eval': what step(variables, batch) gives for each batch of the source, on the host, ...} for each of the weights.

    progress: told of batches as of steps. interrupt: asked after every batch, on every host; raises Interrupted where it says so.
    limits: max_corrupt and max_pixels of pipeline.eval_batches.
    """
    outputs: dict[str, list] = {split: [] for split in weights}
    data = inference.mesh.shape['data']
    batch_size = min(batch_size, -(-len(source) // data) * data)  # a last batch is filled up to it: a few images must not cost a whole one
    given = limits | {'process_index': jax.process_index(), 'process_count': jax.process_count()}
    batches = pipeline.eval_batches(source, batch_size=batch_size, preprocess=inference.preprocess, **given)
    on_devices = pipeline.prefetch(batches, functools.partial(put, inference.mesh))
    told = time.monotonic()
    for done, batch in enumerate(on_devices, start=1):
        for split, variables in weights.items():
            outputs[split].append(step(variables, batch))
        if interrupt is not None and done * batch_size < len(source):  # a pass that is complete is not thrown away
            # Else all batches are queued before the first is computed, and a stop waits for them.
            jax.block_until_ready([parts[-1] for parts in outputs.values()])
            if interrupt():
                on_devices.close()
                raise Interrupted(f'after batch {done} of {-(-len(source) // batch_size)}')
        if progress is not None and done * batch_size < len(source) and time.monotonic() - told >= TELL_SECONDS:
            jax.block_until_ready(outputs)  # what is told is done, not queued
            progress.show(done)
            told = time.monotonic()
    return jax.device_get(outputs)


def means(batch_sums: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Metric sums of batches -> means over their examples, and count."""
    total = {name: sum(float(part[name]) for part in batch_sums) for name in batch_sums[0]}
    count = total.pop('count')
    return {name: value / count for name, value in total.items()} | {'count': int(count)}


def best(scores: Scores) -> dict[str, float]:
    """The scores that count: of the moving average where there is one."""
    return scores.get('eval_ema') or scores['eval']


def best_top1(scores: Scores) -> float:
    """The top-1 that ranks checkpoints and candidates."""
    return best(scores)['top1']
