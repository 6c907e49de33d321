"""What a run leaves in its workdir: config.json, metrics.jsonl, TensorBoard events, result.json, and the progress line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from typing import TextIO

import jax

from efficientnet_jax import hosts

# Knobs that say how a run is run and watched, not what it computes: they may change when it is resumed.
RUNTIME_KNOBS = (
    'mesh', 'data_dir', 'eval_batch_size', 'eval_every_epochs', 'checkpoint_every_epochs', 'keep_last', 'keep_best', 'log_every_steps',
    'nan_rollbacks', 'max_corrupt', 'cache', 'export', 'study', 'supernet', 'plan', 'search',
)  # fmt: skip


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
    ValueError when another config's run is there (with the knobs that differ), another process holds it or the hosts do not share
    it, and OSError when it cannot be written.
    """
    if '://' in workdir:
        raise ValueError(
            f'workdir={workdir} must be a folder: an object store can neither append metrics nor lock. Mount shared storage (launch/README.md).'
        )
    locks = []

    def claim():
        try:
            os.makedirs(workdir, exist_ok=True)
            locks.append(hosts.lock(workdir))
        except OSError as error:
            raise OSError(f'workdir={workdir} cannot be written ({error.strerror}); choose another --workdir.') from error
        path = os.path.join(workdir, 'config.json')
        if os.path.exists(path):
            check_same_recipe(workdir, read_json(path), config)
        write_json(path, config)
        return read_text(locks[0].name)

    try:
        holder = hosts.on_first(claim)
        path = os.path.join(workdir, '.lock')
        if not hosts.everywhere(os.path.exists(path) and read_text(path) == holder):
            raise ValueError(f'workdir={workdir} is not the same folder on all hosts; choose one on shared storage.')
    except BaseException:
        for lock in locks:
            lock.close()
        raise
    return locks[0] if locks else contextlib.nullcontext()


def check_same_recipe(workdir: str, there: dict, here: dict) -> None:
    """Raises ValueError with the knobs that differ."""
    old, new = flatten(recipe_of(there)), flatten(recipe_of(here))
    differ = [f'{k}={old.get(k)!r} there, {new.get(k)!r} here' for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differ:
        raise ValueError(
            f'workdir={workdir} holds a run with another config: {"; ".join(differ)}. Choose another --workdir or remove that one.'
        )


def read_text(path: str) -> str:
    with open(path) as f:
        return f.read()


def read_json(path: str):
    with open(path) as f:
        return json.load(f)


def write_json(path: str, value) -> None:
    """Writes a whole file or none: a reader never sees half of it."""
    partial = f'{path}.partial'
    with open(partial, 'w') as f:
        json.dump(value, f, indent=2)
        f.write('\n')
    os.replace(partial, path)


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
        with open(f'{path}.partial', 'w') as f:
            f.writelines(json.dumps(line) + '\n' for line in kept)
        os.replace(f'{path}.partial', path)
        self._file = open(path, 'a', buffering=1)  # noqa: SIM115 closed by close()
        self._tensorboard = metric_writers.create_default_writer(os.path.join(workdir, 'tensorboard'), asynchronous=False)

    def write(self, step: int, split: str, **metrics: float) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps({'step': step, 'split': split, **metrics}) + '\n')
        self._tensorboard.write_scalars(step, {f'{split}/{name}': value for name, value in metrics.items()})

    def flush(self) -> None:
        """Returns when the lines are on the disk, whatever happens to the machine."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
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


class Progress:
    """One line that renews itself on a terminal, plain lines elsewhere. Silent except on process 0."""

    def __init__(self, total_steps: int, first_step: int):
        self._total, self._first, self._start = total_steps, first_step, time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, step: int, **figures) -> None:
        if jax.process_index() != 0:
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / max(1, step - self._first) * (self._total - step)
        shown = '  '.join(f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}' for name, value in figures.items())
        line = f'step {step}/{self._total}  {shown}  ETA {clock(left)}'
        print(f'\r\033[K{line}' if self._terminal else line, end='' if self._terminal else '\n', file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if jax.process_index() == 0:
            print(f'\r\033[K{text}' if self._terminal else text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """'1:02:03' or '2:03'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
