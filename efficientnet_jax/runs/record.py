"""What a run leaves in its workdir: config.json, metrics.jsonl, TensorBoard events and result.json."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import sys
from typing import Any, TextIO

import jax

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs import hosts

# Knobs that say how a run is run and watched, not what it computes: they may change when it is resumed.
RUNTIME_KNOBS = (
    'mesh', 'data_dir', 'eval_batch_size', 'eval_every_epochs', 'checkpoint_every_epochs', 'keep_last', 'keep_best', 'log_every_steps',
    'nan_rollbacks', 'max_corrupt', 'max_pixels', 'cache', 'export', 'study', 'supernet', 'plan', 'search',
)  # fmt: skip


# Knobs that change what a trained network computes; the other preprocessing is the run's own
# (model.json), and so is one of these that is None here.
NETWORK_KNOBS = ('model', 'depth', 'width', 'stages', 'resolution', 'eval_crop_fraction', 'dtype', 'dataset')
OWN_WHEN_NONE = ('resolution', 'eval_crop_fraction')


def recipe_of(config: dict) -> dict:
    """The part of a config that decides the result."""
    return {key: value for key, value in config.items() if key not in RUNTIME_KNOBS}


def config_hash(config: dict) -> str:
    """12 hexadecimal digits of the recipe."""
    return hashlib.sha256(json.dumps(recipe_of(config), sort_keys=True).encode()).hexdigest()[:12]


def flatten(config: dict, prefix: str = '') -> dict:
    """{'augment.crop': 'random', ...}"""
    flat = {}
    for key, value in config.items():
        flat.update(flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value})
    return flat


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
            check_same_recipe(workdir, read_json(path), config)
        write_json(path, config)
        return read_text(locks[0].name)

    try:
        holder = hosts.on_first(claim)
        path = os.path.join(workdir, '.lock')
        if not hosts.everywhere(os.path.exists(path) and read_text(path) == holder):
            raise UserError(f'workdir={workdir} is not the same folder on all hosts; choose one on shared storage.')
    except BaseException:
        for lock in locks:
            lock.close()
        raise
    return locks[0] if locks else contextlib.nullcontext()


def check_same_recipe(workdir: str, there: dict, here: dict) -> None:
    """Raises UserError with the knobs that differ."""
    old, new = flatten(recipe_of(there)), flatten(recipe_of(here))
    differ = [f'{k}={old.get(k)!r} there, {new.get(k)!r} here' for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differ:
        raise UserError(
            f'workdir={workdir} holds a run with another config: {"; ".join(differ)}. Choose another --workdir or remove that one.'
        )


def warn_of_differences(workdir: str, config: dict) -> None:
    """Says on stderr which NETWORK_KNOBS are not those that the run in workdir was trained with."""
    path = os.path.join(workdir, 'config.json')
    if jax.process_index() != 0 or not os.path.exists(path):
        return
    there = read_json(path)
    asked = [knob for knob in NETWORK_KNOBS if not (knob in OWN_WHEN_NONE and config[knob] is None)]
    differ = [f'{knob}={config[knob]!r} here, {there.get(knob)!r} there' for knob in asked if config[knob] != there.get(knob)]
    if differ:
        print(f'Warning: {workdir} was trained with another config: {"; ".join(differ)}.', file=sys.stderr, flush=True)


def read_text(path: str) -> str:
    """The content of a text file."""
    with open(path) as f:
        return f.read()


def read_json(path: str):
    """The value in a JSON file."""
    with open(path) as f:
        return json.load(f)


def write_text(path: str, text: str) -> None:
    """Writes a whole file or none: a reader never sees half of it, whatever other processes write there too."""
    partial = f'{path}.{os.uname().nodename}.{os.getpid()}.partial'
    with open(partial, 'w', encoding='utf-8') as f:
        f.write(text)
    os.replace(partial, path)


def csv_text(rows: list[dict[str, Any]], columns: list[str] | None = None) -> str:
    """CSV of some columns, None: of the first row's. Nothing for no rows."""
    if not rows:
        return ''
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_json(path: str, value) -> None:
    """A whole file or none, as write_text."""
    write_text(path, json.dumps(value, indent=2) + '\n')


class MetricWriter:
    """Appends to metrics.jsonl and TensorBoard on process 0; does nothing elsewhere.

    On resume from `step`, lines of later steps are dropped, so that every step stands there exactly once.
    """

    def __init__(self, workdir: str, step: int):
        self._file = self._tensorboard = None
        if jax.process_index() != 0:
            return
        from clu import metric_writers

        path = os.path.join(workdir, 'metrics.jsonl')
        kept = [line for line in read_jsonl(path) if line['step'] <= step]
        write_text(path, ''.join(json.dumps(line) + '\n' for line in kept))
        self._file = open(path, 'a', buffering=1)  # noqa: SIM115 closed by close()
        self._tensorboard = metric_writers.create_default_writer(os.path.join(workdir, 'tensorboard'), asynchronous=False)

    def write(self, step: int, split: str, **metrics: float) -> None:
        """One line {'step', 'split', **metrics}, and the same scalars for TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({'step': step, 'split': split, **metrics}) + '\n')
        self._tensorboard.write_scalars(step, {f'{split}/{name}': value for name, value in metrics.items()})

    def flush(self) -> None:
        """Returns when the lines are on the disk, whatever happens to the machine."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes both files; nothing can be written any more."""
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()


def read_jsonl(path: str) -> list[dict]:
    """The objects of a JSON-lines file; a last line cut off by a crash is left out. Empty when there is no file."""
    if not os.path.exists(path):
        return []
    with open(path) as f:
        lines = f.read().split('\n')
    objects = [json.loads(line) for line in lines[:-1]]
    return objects


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
        'config_hash': config_hash(config),
        'versions': {'python': sys.version.split()[0], **versions},
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
    }
