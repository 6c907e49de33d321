"""What a run leaves in its workdir: config.json, metrics.jsonl, TensorBoard events and result.json."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

import jax

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs import hosts, recipe, storage


def claim_workdir(workdir: str, config: dict) -> TextIO | contextlib.nullcontext:
    """Makes the workdir, holds it for this run and writes config.json, or checks that it holds this same run.

    Returns a context that holds the workdir until it is left or the process ends; on process 0 it is the lock. Raises, on all hosts,
    UserError when another config's run is there (with the knobs that differ), another process holds it or the hosts do not share
    it, and OSError when it cannot be written.
    """
    if '://' in workdir:
        raise UserError(
            f'workdir={workdir} must be a folder: an object store can neither append metrics nor lock. Mount shared storage (launch/README.md).'
        )
    locks = []

    def claim():
        try:
            os.makedirs(workdir, exist_ok=True)
            locks.append(hosts.lock(workdir))
        except OSError as error:
            raise StorageError(f'workdir={workdir} cannot be written ({error.strerror}); choose another --workdir.') from error
        path = os.path.join(workdir, 'config.json')
        if os.path.exists(path):
            check_same_recipe(workdir, storage.read_json(path), config)
        storage.write_json(path, config)
        return storage.read_text(locks[0].name)

    try:
        holder = hosts.on_first(claim)
        path = os.path.join(workdir, '.lock')
        if not hosts.everywhere(os.path.exists(path) and storage.read_text(path) == holder):
            raise UserError(f'workdir={workdir} is not the same folder on all hosts; choose one on shared storage.')
    except BaseException:
        for lock in locks:
            lock.close()
        raise
    return locks[0] if locks else contextlib.nullcontext()


def check_same_recipe(workdir: str, there: dict, here: dict) -> None:
    """Raises UserError with the knobs that differ."""
    old, new = recipe.flatten(recipe.recipe_of(there)), recipe.flatten(recipe.recipe_of(here))
    differ = [f'{k}={old.get(k)!r} there, {new.get(k)!r} here' for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differ:
        raise UserError(
            f'workdir={workdir} holds a run with another config: {"; ".join(differ)}. Choose another --workdir or remove that one.'
        )


def warn_of_differences(workdir: str, config: dict) -> None:
    """Says on stderr which recipe.NETWORK_KNOBS are not those that the run in workdir was trained with."""
    path = os.path.join(workdir, 'config.json')
    if jax.process_index() != 0 or not os.path.exists(path):
        return
    there = storage.read_json(path)
    asked = [knob for knob in recipe.NETWORK_KNOBS if not (knob in recipe.OWN_WHEN_NONE and config[knob] is None)]
    differ = [f'{knob}={config[knob]!r} here, {there.get(knob)!r} there' for knob in asked if config[knob] != there.get(knob)]
    if differ:
        print(f'Warning: {workdir} was trained with another config: {"; ".join(differ)}.', file=sys.stderr, flush=True)


def result(mode: str, config: dict, step: int, metrics: dict, examples: int, seconds: float) -> dict:
    """The record of a run, the content of result.json."""
    import importlib.metadata

    versions = {
        name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')
    }
    return {
        'mode': mode,
        'step': step,
        'metrics': metrics,
        'examples': examples,
        'seconds': round(seconds, 3),
        'config_hash': recipe.config_hash(config),
        'versions': {'python': sys.version.split()[0], **versions},
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
    }
