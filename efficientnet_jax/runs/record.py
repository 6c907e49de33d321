"""The record of a workdir, one file: WORKDIR/run.json says what runs there, every start of it, and what each mode found.

    {"version": 1,
     "config": of the training run, "network": description of its network (weights/description.py), "train_examples": number,
     "starts": [{"began", "step", "last_step", "seconds", "images", "device", "processes", "versions"}, ...] of the training run,
     "results": {mode: its last result}, "configs": {mode: the config of that}, "commands": {mode: its command line}}

It is written whole or not at all and durably, under a lock, and at the end of a mode after everything else: a mode has finished
when its result is here. config.json, model.json (network and train_examples) and result.json (the newest result) are views of it,
written before it. A damaged record is named once, kept as run.json.damaged, and what is damaged of it is rebuilt from the views. This
module must not import jax: the command reads configs before.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs import recipe, record_kinds, secrets, storage, terminal

FILE = 'run.json'
VERSION = 1
Record = dict[str, Any]
EMPTY: Record = {
    'version': VERSION, 'config': None, 'network': None, 'train_examples': None, 'starts': [], 'results': {}, 'configs': {}, 'commands': {},
}  # fmt: skip


def read(workdir: str) -> Record:
    """The record of a workdir; EMPTY where nothing ran. A damaged one is named on stderr and is what can be rebuilt of it.

    Raises StorageError for one that cannot be read here, UserError for one of another version.
    """
    found, problems = find(workdir)
    for problem in problems:
        terminal.warn_once(problem)
    return found


def find(workdir: str) -> tuple[Record, list[str]]:
    """(record, a sentence for each file of it that is damaged). Raises as read."""
    path = os.path.join(workdir, FILE)
    problems: list[str] = []
    good: Record = {}
    try:
        good = _good_parts(path, storage.read_json(path))
        bad = [name for name in record_kinds.RECORD if name not in good]
        if not bad:
            return good, problems
        what = f'{path} is damaged (without usable {", ".join(bad)})'
    except FileNotFoundError:
        return _rebuilt(workdir, problems), problems  # of a version before this file, or the first run here
    except storage.DamagedFile as error:
        what = error.what
    problems.append(f'{what}; that is rebuilt from config.json, model.json and result.json.')
    return _rebuilt(workdir, problems) | good, problems


def exists(workdir: str) -> bool:
    """Whether something ran in a folder: its record is there, or what it can be rebuilt from."""
    return any(os.path.isfile(os.path.join(workdir, name)) for name in (FILE, 'config.json', 'model.json'))


def config_of(workdir: str) -> dict[str, Any] | None:
    """The config of the training run in a workdir, None where there is none. Raises StorageError where it is damaged beyond rebuilding."""
    found, problems = find(workdir)
    if found['config'] is None and problems:
        raise StorageError(f'{" ".join(problems)} Give --config=FILE, the config that the run was started with.')
    return found['config']


@contextlib.contextmanager
def changing(workdir: str) -> Iterator[Record]:
    """Gives the record to change, alone among processes, and writes it without passwords, unless an exception leaves the context."""
    with storage.exclusive(os.path.join(workdir, '.record.lock')):
        path = os.path.join(workdir, FILE)
        found, problems = find(workdir)
        for problem in problems:
            terminal.warn_once(problem)
        if problems and os.path.exists(path):
            os.replace(path, f'{path}.damaged')
        yield found
        configs = {mode: secrets.public_config(config) for mode, config in found['configs'].items()}
        own = found['config'] and secrets.public_config(found['config'])
        storage.write_json(path, found | {'config': own, 'configs': configs})


def leave(workdir: str, result: dict[str, Any], config: dict[str, Any], show: Callable[[Record], None]) -> None:
    """How a mode ends, on process 0: show(record) writes the page, then come result.json and, last of all, the record."""
    with changing(workdir) as found:
        mode = result['mode']
        for part, value in (('results', result), ('configs', config), ('commands', command())):
            found[part] = {name: one for name, one in found[part].items() if name != mode} | {mode: value}
        show(found)
        storage.write_json(os.path.join(workdir, 'result.json'), result)


def result(mode: str, config: dict[str, Any], step: int, metrics: dict[str, Any], examples: int, seconds: float) -> dict[str, Any]:
    """What a mode found, the content of result.json."""
    return {
        'mode': mode,
        'step': step,
        'metrics': metrics,
        'examples': examples,
        'seconds': round(seconds, 3),
        'config_hash': recipe.config_hash(config),
        **machine(),
    }


def machine() -> dict[str, Any]:
    """{'versions', 'device', 'processes'} of this run."""
    import importlib.metadata

    import jax

    names = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        'versions': {'python': sys.version.split()[0], **versions},
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
    }


def command() -> str:
    """The command line of this process, for a shell, without the passwords of URLs."""
    program, *words = sys.argv or ['']
    start = ['python', program] if program.endswith('.py') else [program]
    if os.path.basename(program) == '__main__.py':
        start = ['python', '-m', os.path.basename(os.path.dirname(program))]
    return shlex.join(map(secrets.public, [*start, *words]))


def _good_parts(path: str, found: Any) -> Record:
    """The parts of a record that are what they must be. Raises DamagedFile for no record and UserError for one of another version."""
    if not isinstance(found, dict) or 'version' not in found:
        raise storage.DamagedFile(path, 'it holds no record')
    if found['version'] != VERSION:
        raise UserError(
            f'{path} is of version {found["version"]}, this program writes {VERSION}; use the version of the program that wrote it.'
        )
    kinds = {'version': int, **record_kinds.RECORD}
    return {name: found[name] for name, kind in kinds.items() if name in found and record_kinds.is_a(found[name], kind)}


def _rebuilt(workdir: str, problems: list[str]) -> Record:
    """What the views config.json, model.json and result.json hold of the record."""
    views: dict[str, Any] = {}
    for name, kind in record_kinds.VIEWS.items():
        try:
            views[name] = storage.read_json(os.path.join(workdir, name))
        except FileNotFoundError:
            continue
        except storage.DamagedFile as error:
            problems.append(f'{error.what}.')
            continue
        if not record_kinds.is_a(views[name], kind):
            problems.append(f'{os.path.join(workdir, name)} is damaged (it does not hold what this project writes).')
            del views[name]
    found = {name: value.copy() if isinstance(value, list | dict) else value for name, value in EMPTY.items()}
    network = views.get('model.json')
    examples = None if network is None else network.pop('train_examples', None)  # of earlier versions: None
    found |= {'config': views.get('config.json'), 'network': network, 'train_examples': examples}
    last = views.get('result.json')
    if last is not None:
        found['results'] = {last['mode']: last}
        if last['mode'] == 'train':
            spent = {'seconds': last['seconds'], 'images': last['examples']}
            machine = {name: last[name] for name in ('device', 'processes', 'versions')}
            found['starts'] = [{'began': None, 'step': 0, 'last_step': last['step'], **spent, **machine}]
    return found
