"""--mode=evaluate: one pass over a whole split, every example counted once, raw and EMA weights."""

from __future__ import annotations

import os
import time

import jax
import numpy as np

from efficientnet_jax.data import sources
from efficientnet_jax.evaluation import confusion
from efficientnet_jax.evaluation.classes import with_classes_of
from efficientnet_jax.evaluation.inference import examples_step
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.evaluation.restore import restore
from efficientnet_jax.evaluation.score import means, outputs_of
from efficientnet_jax.reporting import page
from efficientnet_jax.reporting.progress import Progress
from efficientnet_jax.runs import record
from efficientnet_jax.runs.mesh import check_batch_size


def evaluate(config, workdir: str) -> dict:
    """Scores the newest checkpoint of a workdir, or config.init_from where it has none, on config.eval_split.

    Leaves result.json, log.txt, confused.json, confusion.png, samples.png and report.html there and returns the content of result.json. The
    pictures are of the moving average where there is one. Raises UserError without a checkpoint and init_from, and for weights of other
    classes than the data's.
    """
    started = time.monotonic()
    source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    source = with_classes_of(workdir, source)
    inference, weights, step, _ = restore(config, workdir, source.num_classes)
    check_batch_size('eval_batch_size', config.eval_batch_size, inference.mesh)
    if jax.process_index() == 0:
        os.makedirs(workdir, exist_ok=True)  # with init_from it may be new
    with Progress(workdir, total_steps=-(-len(source) // config.eval_batch_size)) as progress:
        progress.doing(f'Evaluating step {step} on {len(source)} images of {source.name}.')
        limits = {'max_corrupt': config.max_corrupt, 'max_pixels': config.max_pixels}
        outputs = outputs_of(inference.jit(examples_step), weights, source, inference, config.eval_batch_size, progress, **limits)
    scores = {split: means([batch_sums for batch_sums, _ in parts]) for split, parts in outputs.items()}
    split = 'eval_ema' if 'eval_ema' in outputs else 'eval'
    examples = {name: np.concatenate([part[name] for _, part in outputs[split]])[: len(source)] for name in outputs[split][0][1]}
    confused = confusion.confused(examples, source.class_names or tuple(str(i) for i in range(source.num_classes)))
    confused = {'weights': split, 'step': step, 'split': source.name, **confused}
    result = record.result('evaluate', as_dict(config), step, scores, len(source), time.monotonic() - started)
    if jax.process_index() == 0:
        for split, score in scores.items():
            print(f'{split}: top-1 {score["top1"]:.2%}, top-5 {score["top5"]:.2%}, loss {score["loss"]:.4f} over {score["count"]} images')
        print(confusion.lines(confused))
        confusion.write(workdir, confused, examples, source, inference.preprocess, config.max_pixels)
        page.leave(workdir, result, as_dict(config))
    return result
