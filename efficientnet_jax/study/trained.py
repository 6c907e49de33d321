"""Accuracy for the points of a study: each network and seed is one run of the normal trainer, pulled from a shared queue.

The same command on any number of machines makes any number of workers: each adds the points (which are there once), evaluates until
none is left, and writes the same table. With a storage that all reach, workdirs may be local.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from efficientnet_jax.data import sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import architecture_of, as_dict
from efficientnet_jax.evaluation.score import best
from efficientnet_jax.queue import trials
from efficientnet_jax.runs import hosts, recipe
from efficientnet_jax.study.points import Point, knobs, network
from efficientnet_jax.training.loop import train
from efficientnet_jax.training.setup import training_of

# Knobs of config.study that do not decide which points there are and how they are trained.
RUNTIME = ('train', 'seeds', 'storage', 'name', 'lease_seconds', 'retry', 'xla_flops', 'cycles', 'compiles', 'images', 'checkpoints')


def accuracies(config, workdir: str, points: list[Point]) -> dict[str, dict[str, Any]]:
    """{network: {'top1', 'top1_low', 'top1_high', 'seeds', 'seconds'}} over config.study.seeds seeds, when all are done.

    A network whose runs all failed is not in it. Raises UserError, before anything is trained, for a config with which a point cannot
    be trained, and what trials.open_study raises.
    """
    runs = runs_of(config, points)
    queue = hosts_queue(config, workdir, runs)
    work(queue, lambda key, run: evaluate(config, workdir, key, run))
    results = hosts.on_first(lambda: {result['key']: result['attributes'] for result in queue.results()} if queue else None)
    return summary(points, config.seed, config.study.seeds, results)


def runs_of(config, points: list[Point]) -> dict[str, dict[str, Any]]:
    """{key: knobs of the run}, a network once a seed; the same network's seeds follow each other, for the compilation cache."""
    runs = {}
    for point in points:
        for seed in range(config.seed, config.seed + config.study.seeds):
            runs[key_of(point, seed)] = knobs(point.architecture) | {'seed': seed}
    return runs


def key_of(point: Point, seed: int) -> str:
    """The run's key in the queue and its folder's name."""
    return f'{point.base.name}_{point.architecture.resolution}px_{point.network}_s{seed}'


def hosts_queue(config, workdir: str, runs: dict[str, dict[str, Any]]) -> trials.Queue | None:
    """The queue on process 0 of this worker, None on its others. All check that every network can be trained."""
    check(config, runs)
    opened = []

    def open_it():
        settings = {k: v for k, v in as_dict(config.study).items() if k not in RUNTIME}
        settings = recipe.flatten(recipe.recipe_of(as_dict(config)) | {'study': settings})
        storage = config.study.storage or f'journal:{os.path.join(os.path.abspath(workdir), "study", "trials.journal")}'
        queue = trials.open_study(storage, config.study.name or config.study.kind, settings, lease_seconds=config.study.lease_seconds)
        if config.study.retry:
            queue.retry()
        queue.add(runs)
        opened.append(queue)

    hosts.on_first(open_it)
    return opened[0] if opened else None


def check(config, runs: dict[str, dict[str, Any]]) -> None:
    """Builds, without compiling, what each run would train. Raises UserError with the knob that cannot work."""
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    for key, run in runs.items():
        one = config_of(config, run)
        training_of(one, source.num_classes, len(source))
        built = network(architecture_of(one))
        if built not in key:
            raise UserError(f'{key} comes out as network {built} from {run}: model, depth, width and stages cannot express it.')


def config_of(config, run: dict[str, Any]):
    """The config of one run: the study's, with the run's model, depth, width, stages, resolution and seed."""
    one = config.copy_and_resolve_references()
    stages = run['stages']
    one.update({**run, 'stages': None if stages is None else tuple(tuple(row) for row in stages)})
    return one


def evaluate(config, workdir: str, key: str, run: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Trains one run, or goes on with it; (top-1, what is kept beside it). Every process of the worker calls it."""
    began = time.monotonic()
    jax.clear_caches()  # programs of other networks, which no run here needs again
    result = train(config_of(config, run), os.path.join(workdir, 'study', 'points', key))
    scores = best(result['metrics'])
    kept = {'top1': scores['top1'], 'top5': scores['top5'], 'step': result['step'], 'config_hash': result['config_hash']}
    return scores['top1'], kept | {'seconds': round(time.monotonic() - began, 1)}


def work(queue: trials.Queue | None, evaluate: Callable[[str, dict], tuple[float, dict]], poll_seconds: float = 1.0) -> None:
    """Evaluates points until none waits or runs, here or elsewhere. queue: on process 0 of this worker, None on its others.

    A point that raises is failed with the reason, and the next one is taken; a stop (hosts.Stopped) is given on.
    """
    while True:
        claims: list[trials.Claim] = []

        def take(claims=claims) -> dict[str, Any]:
            claim = queue.claim()
            if claim is not None:
                claims.append(claim)
                return {'key': claim.key, 'point': claim.point}
            queue.reap()
            return {'finished': queue.finished()}

        taken = hosts.on_first(take)
        if taken.get('finished'):
            return
        if 'finished' in taken:
            time.sleep(poll_seconds)
            continue
        try:
            with claims[0] if claims else contextlib.nullcontext():
                value, kept = evaluate(taken['key'], taken['point'])
                if claims:
                    claims[0].complete(value, **kept)
        except hosts.Stopped:
            raise
        except Exception as error:
            if jax.process_count() > 1:  # the other processes of this worker may wait for this one
                raise
            print(f'{taken["key"]} failed: {error}', file=sys.stderr, flush=True)


def summary(points: list[Point], first_seed: int, seeds: int, results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means and extremes over the seeds of each network that has results."""
    summaries = {}
    for point in points:
        runs = [results[key] for seed in range(first_seed, first_seed + seeds) if (key := key_of(point, seed)) in results]
        if runs:
            top1 = [run['top1'] for run in runs]
            summaries[point.network] = {
                'top1': math.fsum(top1) / len(top1),
                'top1_low': min(top1),
                'top1_high': max(top1),
                'seeds': len(top1),
                'seconds': round(statistics.mean(run['seconds'] for run in runs), 1),
            }
    return summaries
