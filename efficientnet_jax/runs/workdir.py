"""A workdir belongs to one training run, and to one process of it at a time."""

from __future__ import annotations

import datetime
import os
import time
from typing import Any, NamedTuple, TextIO

import jax

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs import hosts, recipe, record, secrets, storage, terminal

SHOWN = 5  # names of classes in a message


class TrainingData(NamedTuple):
    """What a run must find again when it is resumed, or it would be another run."""

    class_names: tuple[str, ...] | None  # None: unknown
    num_classes: int
    examples: int


def hold(workdir: str, config: dict[str, Any], data: TrainingData | None = None, began: float | None = None) -> Hold:
    """Makes the workdir and holds it for this run, or checks that it holds this same run; writes config.json and the record.

    began: time.monotonic() from which this start's seconds count; None: now. All hosts call it. Raises, on all hosts, UserError when
    the run of another config (with the options that differ) or of other data (with the classes that differ) is there, another process
    holds it or the hosts do not share it, and StorageError when it cannot be written or what it holds is damaged beyond checking.
    """
    if '://' in workdir:
        raise UserError(
            f'workdir={workdir} must be a folder: an object store can neither append metrics nor lock. Mount shared storage (launch/README.md).'
        )
    locks: list[TextIO] = []

    def take() -> dict[str, Any]:
        try:
            os.makedirs(workdir, exist_ok=True)
            locks.append(hosts.lock(workdir))
            storage.remove_partial(workdir)
        except OSError as error:
            raise StorageError(f'workdir={workdir} cannot be written ({error.strerror}); choose another --workdir.') from error
        starts = _enter(workdir, config, data)
        spent = {name: sum(start[name] for start in starts) for name in ('seconds', 'images')}
        return {'holder': storage.read_text(locks[0].name), **spent}

    try:
        message = hosts.on_first(take)
        path = os.path.join(workdir, '.lock')
        if not hosts.everywhere(os.path.exists(path) and storage.read_text(path) == message['holder']):
            raise UserError(f'workdir={workdir} is not the same folder on all hosts; choose one on shared storage.')
    except BaseException:
        for lock in locks:
            lock.close()
        raise
    return Hold(workdir, locks[0] if locks else None, message, time.monotonic() if began is None else began)


class Hold:
    """A workdir that this run holds until `close`, or until the process ends. As a context it is closed at the end.

    Every host makes the same calls; process 0 writes. Raises StorageError when the record cannot be written.
    """

    def __init__(self, workdir: str, lock: TextIO | None, before: dict[str, Any], began: float):
        self.workdir = workdir
        self._lock, self._before, self._began = lock, before, began
        self._own = {}  # what this run alone writes of the record
        if lock is not None:
            found = record.read(workdir)
            self._own = {name: found[name] for name in ('config', 'network', 'train_examples', 'starts')}
        self._last: dict[str, Any] = {}  # this start

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others have the workdir."""
        if self._lock is not None:
            self._lock.close()

    @property
    def described(self) -> bool:
        """Whether the record says what the network is; True on hosts that do not write it."""
        return self._lock is None or self._own['network'] is not None

    def describe(self, network: dict[str, Any]) -> None:
        """Records what the network is (plain JSON), before its first checkpoint. model.json is a view, from which a record is rebuilt."""
        if self._lock is not None:
            view = network | {'train_examples': self._own['train_examples']}
            storage.write_json(os.path.join(self.workdir, 'model.json'), view)
        self._write(network=network)

    def finished(self) -> dict[str, Any] | None:
        """The result of this run where it has finished, whatever else has run in the workdir since."""
        return hosts.on_first(lambda: record.read(self.workdir)['results'].get('train'))

    def start(self, step: int) -> None:
        """Records that a start goes on from a step."""
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        self._last = {'began': began, 'step': step, 'last_step': step, 'seconds': 0.0, 'images': 0, **record.machine()}
        self._write(starts=[*self._own.get('starts', []), self._last])

    def progress(self, step: int, images: int) -> None:
        """Records how far this start is, at every save: images: that it has trained on so far."""
        self._last |= {'last_step': step, 'seconds': round(time.monotonic() - self._began, 3), 'images': images}
        self._write()

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result of this start with the seconds and images of all starts. result: of record.result; the page leaves it."""
        self.progress(result['step'], result['examples'])
        spent = {name: self._before[name] + self._last[name] for name in ('seconds', 'images')}
        return result | {'seconds': round(spent['seconds'], 3), 'examples': spent['images']}

    def _write(self, **parts: Any) -> None:
        if self._lock is None:
            return
        self._own |= parts
        with record.changing(self.workdir) as found:
            found |= self._own


def _enter(workdir: str, config: dict[str, Any], data: TrainingData | None) -> list[dict[str, Any]]:
    """Checks what is there, writes what runs now, and returns the starts before this one."""
    there, problems = record.find(workdir)
    if there['config'] is None and problems and os.path.isdir(os.path.join(workdir, 'checkpoints')):
        raise StorageError(
            f'{" ".join(problems)} Whether {workdir} holds this run cannot be checked: bring one of the two back from a copy, or remove both.'
        )
    if there['config'] is not None:
        check_same_recipe(workdir, there['config'], config)
    if data is not None:
        check_same_data(workdir, there, data)
    with record.changing(workdir) as found:
        if problems or not os.path.exists(os.path.join(workdir, record.FILE)):
            found['results'].pop('train', None)  # result.json alone does not say that a run has finished
        found['config'] = config
        found['train_examples'] = found['train_examples'] if data is None else data.examples
        storage.write_json(os.path.join(workdir, 'config.json'), secrets.public_config(config))
    return found['starts']


def check_same_recipe(workdir: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises UserError with the options that differ."""
    old, new = recipe.flatten(recipe.recipe_of(there)), recipe.flatten(recipe.recipe_of(here))
    differ = [f'{k}={old.get(k)!r} there, {new.get(k)!r} here' for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differ:
        raise UserError(
            f'workdir={workdir} holds a run with another config: {"; ".join(differ)}. Choose another --workdir or remove that one.'
        )


def check_same_data(workdir: str, there: record.Record, data: TrainingData) -> None:
    """Raises UserError with the classes or numbers that are not those of the run in the workdir: its labels, epochs and order follow them."""
    network, examples = there['network'] or {}, there['train_examples']
    changes = class_changes(network.get('class_names'), data.class_names)
    if network and network['num_classes'] != data.num_classes:
        changes.insert(0, f'{network["num_classes"]} classes there, {data.num_classes} here')
    if examples is not None and examples != data.examples:
        changes.append(f'{examples} training images there, {data.examples} here')
    if changes:
        raise UserError(
            f'workdir={workdir} holds a run on other data: {"; ".join(changes)}. Bring the data back as it was, choose another --workdir, or '
            'remove that one.'
        )


def class_changes(there: Any, here: Any) -> list[str]:
    """What is different between two lists of class names, in words; nothing where one of them is unknown."""
    if there is None or here is None or list(there) == list(here):
        return []
    removed, added = ([name for name in one if name not in set(other)] for one, other in ((there, here), (here, there)))
    changes = [f'{word} {_some(names)}' for word, names in (('removed', removed), ('added', added)) if names]
    if not changes:
        first = next((i for i, (old, new) in enumerate(zip(there, here, strict=False)) if old != new), min(len(there), len(here)))
        old, new = (repr(names[first]) if first < len(names) else 'nothing' for names in (there, here))
        changes = [f'the classes are in another order: class {first} is {old} there, {new} here']
    return [f'classes: {change}' if i == 0 else change for i, change in enumerate(changes)]


def _some(names: list[str]) -> str:
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(map(repr, names[:SHOWN])) + more


def warn_of_differences(workdir: str, config: dict[str, Any]) -> None:
    """Says on stderr which NETWORK_KNOBS are not those that the run in workdir was trained with."""
    if jax.process_index() != 0 or (there := record.read(workdir)['config']) is None:
        return
    asked = [knob for knob in recipe.NETWORK_KNOBS if not (knob in recipe.OWN_WHEN_NONE and config[knob] is None)]
    differ = [f'{knob}={config[knob]!r} here, {there.get(knob)!r} there' for knob in asked if config[knob] != there.get(knob)]
    if differ:
        terminal.say(f'Warning: {workdir} was trained with another config: {"; ".join(differ)}.')
