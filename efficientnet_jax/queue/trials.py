"""A queue of evaluations in an Optuna study that any number of processes on any number of hosts share: each is done exactly once.

    queue = trials.open_study('journal:/nfs/grid.journal', 'grid', settings)     # the same line in the starter and in every worker
    queue.add({'d1.2_w1.1': {'depth': 1.2, 'width': 1.1}, ...})                 # fixed points; adding them again adds nothing
    while not queue.finished():
        claim = queue.claim()                                                   # or queue.ask(): a new point from the sampler
        if claim is None:                                                       # others have the rest; some may die
            queue.reap()
            time.sleep(1)
            continue
        with claim:                                                             # renews the lease; an exception fails the point
            claim.complete(accuracy(claim.point), seconds=12.5)
    queue.results()

Storages: `journal:PATH` (a file on a local disk or NFS, not on gcsfuse), `sqlite:///PATH` (one host), `postgresql://...` (any number).

Optuna's own heartbeat covers neither the journal nor ask/tell, so a running point has a lease here: a count in its user attribute
`beat` that its worker raises. Where a count stands still for `lease_seconds` on the clock of who looks (no two clocks are compared),
the worker is taken for dead: reap() fails that trial and puts its point back into the queue, and a worker that was only asleep
finds that its complete() returns False. Whoever is killed, whenever: what is to be done follows from what is stored.

Of several trials with one key only the one with the lowest number that has not failed runs; a copy, which two starters at the same
moment or two reapers can make, ends as a failed trial with `why` = 'duplicate'.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from efficientnet_jax.errors import UserError
from efficientnet_jax.queue import journals, storages
from efficientnet_jax.queue.leases import Claim
from efficientnet_jax.runs import secrets

# Trials of one point that may be lost with their worker before the point is given up: it may be what kills them.
MAX_ATTEMPTS = 5
SETTINGS_SECONDS = 10.0  # that a process waits for the settings of a study that another has just made
AGAIN = ('expired', 'given back')  # values of `why` after which a point is queued again
OWN_ATTRIBUTES = ('key', 'point', 'worker', 'beat', 'why')


def open_study(storage: str, name: str, settings: Mapping[str, Any], *, directions=('maximize',), sampler=None, lease_seconds=60.0):
    """The queue of that name, made if it is not there. All processes give the same settings (plain JSON).

    sampler: an optuna sampler for ask(); None: random. directions: of the values that complete() gets, 'maximize' or 'minimize'.
    Raises UserError for a storage of an unknown kind, a missing driver or a study of this name with other settings (with those
    that differ), OSError when the storage cannot be reached.
    """
    import optuna

    if lease_seconds <= 0:
        raise UserError(f'lease_seconds={lease_seconds} must be positive.')
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storages.open_storage(storage)
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they come back
    sampler = sampler or optuna.samplers.RandomSampler()
    with journals.reading(storage):
        try:  # one process makes the study and writes its settings
            study = optuna.create_study(storage=opened, study_name=name, directions=list(directions), sampler=sampler)
            study.set_user_attr('settings', settings)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(storage=opened, study_name=name, sampler=sampler)
            there = _settings_of(study)
            if there is None:  # who made it died before it wrote them
                study.set_user_attr('settings', settings)
            elif there != settings:
                differ = [
                    f'{k}={there.get(k)!r} there, {settings.get(k)!r} here'
                    for k in sorted(there | settings)
                    if there.get(k) != settings.get(k)
                ]
                raise UserError(
                    f'study {name!r} in {secrets.public(storage)} has other settings: {"; ".join(differ)}. Choose another name, storage or workdir.'
                ) from None
        if [direction.name.lower() for direction in study.directions] != list(directions):
            raise UserError(
                f'study {name!r} in {secrets.public(storage)} has directions {study.directions}, not {directions}; choose another name.'
            )
    lock = storage.removeprefix('sqlite:///') + '.claim' if storage.startswith('sqlite:') else None
    queue = Queue(study, opened, lease_seconds, lock)
    with journals.reading(storage):
        queue.points()
    return queue


class Queue:
    """See the module. `study` is the optuna study: its trials, plots and importances are there for whoever wants them."""

    def __init__(self, study, storage, lease_seconds: float, lock_path: str | None):
        self.study = study
        self.lease_seconds = lease_seconds
        self._storage = storage
        self._lock_path = lock_path
        self._beats: dict[int, tuple[Any, float]] = {}  # trial number: its beat and when this process first saw it

    def add(self, points: Mapping[str, Mapping[str, Any]]) -> int:
        """Queues the points ({key: plain JSON}) whose key is not there yet; how many were new."""
        there = {trial.user_attrs.get('key') for trial in self._trials()}
        new = {key: point for key, point in points.items() if key not in there}
        for key, point in new.items():
            self._enqueue(key, dict(point))
        return len(new)

    def claim(self) -> Claim | None:
        """The next queued point, or None where none waits."""
        import optuna

        waiting = self._storage.get_all_trials(self.study._study_id, deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        for trial in waiting:
            with self._alone():
                try:
                    mine = self._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.RUNNING)
                except optuna.exceptions.UpdateFinishedTrialError:
                    mine = False
            claim = self._claimed(optuna.Trial(self.study, trial._trial_id)) if mine else None
            if claim is not None:
                return claim
        return None

    def ask(self) -> Claim:
        """The next queued point, or a new one for which the sampler answers claim.trial.suggest_...(); its key is 'ask' and its number."""
        while True:
            claim = self.claim()
            if claim is None:
                with self._alone():
                    trial = self.study.ask()
                if 'key' not in trial.user_attrs:
                    trial.set_user_attr('key', f'ask{trial.number}')
                claim = self._claimed(trial)
            if claim is not None:
                return claim

    def reap(self) -> list[str]:
        """Fails the running trials whose lease is over and queues their points again; their keys.

        A lease can only be seen to be over by a process that calls this twice, lease_seconds apart or more.
        """
        import optuna

        keys, now = [], time.monotonic()
        for trial in self._trials():
            if trial.state != optuna.trial.TrialState.RUNNING:
                self._beats.pop(trial.number, None)
                continue
            beat = trial.user_attrs.get('beat')
            seen, since = self._beats.get(trial.number, (None, None))
            if since is None or seen != beat:
                self._beats[trial.number] = (beat, now)
            elif now - since > self.lease_seconds and self._fail(trial._trial_id, 'expired'):
                keys.append(trial.user_attrs.get('key'))
        self._queue_again()
        return keys

    def points(self) -> dict[str, dict[str, Any]]:
        """{key: {'state', 'point', 'attributes', 'number', 'values', 'seconds', 'why'}} of all points, from the trial that counts.

        state: 'waiting', 'running', 'complete' or 'failed'; one that is to be queued again is waiting. point: what add() was given, or
        the parameters that the sampler suggested. attributes: those of complete() and of trial.set_user_attr(). values and seconds: of
        completed points, else None. why: '' or the reason of the failure.
        """
        found = {}
        for key, trials in self._by_key().items():
            trial = next((t for state in ('COMPLETE', 'RUNNING', 'WAITING') for t in trials if t.state.name == state), trials[-1])
            failed = trial.state.name == 'FAIL'
            done = trial.state.name == 'COMPLETE'
            found[key] = {
                'state': ('waiting' if self._due_again(trials) else 'failed') if failed else trial.state.name.lower(),
                'point': _point(trial),
                'attributes': {name: value for name, value in trial.user_attrs.items() if name not in OWN_ATTRIBUTES},
                'number': trial.number,
                'values': list(trial.values) if done else None,
                'seconds': (trial.datetime_complete - trial.datetime_start).total_seconds() if done else None,
                'why': trial.user_attrs.get('why', ''),
            }
        return found

    def counts(self) -> dict[str, int]:
        """{'waiting', 'running', 'complete', 'failed'}: points by their state; copies are not counted."""
        states = [point['state'] for point in self.points().values()]
        return {state: states.count(state) for state in ('waiting', 'running', 'complete', 'failed')}

    def finished(self) -> bool:
        """Whether no point waits or runs."""
        counts = self.counts()
        return counts['waiting'] == counts['running'] == 0

    def results(self) -> list[dict[str, Any]]:
        """[{'key', 'point', 'values', 'attributes', 'number', 'seconds'}] of the completed points in the order of their trials."""
        done = [{'key': key, **point} for key, point in self.points().items() if point['state'] == 'complete']
        return sorted(done, key=lambda result: result['number'])

    def failures(self) -> dict[str, str]:
        """{key: why} of the points that failed and are not queued again."""
        return {key: point['why'] for key, point in self.points().items() if point['state'] == 'failed'}

    def retry(self) -> int:
        """Queues the failed points again, whatever failed them (a person mended it); how many."""
        failed = self.failures()
        for key, trials in self._by_key().items():
            if key in failed:
                self._enqueue(key, _point(trials[-1]))
        return len(failed)

    def _trials(self):
        return self._storage.get_all_trials(self.study._study_id, deepcopy=False)

    def _by_key(self) -> dict[str, list]:
        """{key: its trials in order, copies left out}"""
        groups: dict[str, list] = {}
        for trial in self._trials():
            if trial.user_attrs.get('why') != 'duplicate':
                groups.setdefault(trial.user_attrs.get('key', f'ask{trial.number}'), []).append(trial)
        return groups

    def _enqueue(self, key: str, point: dict[str, Any]) -> None:
        self.study.enqueue_trial(point, user_attrs={'key': key, 'point': point})

    def _queue_again(self) -> None:
        """From what is stored alone: whoever was killed between the failure of a trial and this, the next to look makes up for it."""
        for key, trials in self._by_key().items():
            if {trial.state.name for trial in trials} == {'FAIL'} and self._due_again(trials):
                self._enqueue(key, _point(trials[-1]))

    def _due_again(self, failed: list) -> bool:
        lost = sum(trial.user_attrs.get('why') == 'expired' for trial in failed)  # a stop gives it back, which is nobody's fault
        return failed[-1].user_attrs.get('why') in AGAIN and lost < MAX_ATTEMPTS

    def _claimed(self, trial) -> Claim | None:
        """A claim on a trial that this process has just set to running, or None where another trial of its key comes first."""
        key = trial.user_attrs.get('key', f'ask{trial.number}')
        earlier = [t for t in self._trials() if t.number < trial.number and t.user_attrs.get('key') == key]
        if any(t.state.name != 'FAIL' for t in earlier):
            self._fail(trial._trial_id, 'duplicate')
            return None
        return Claim(self, trial)

    def _fail(self, trial_id: int, why: str) -> bool:
        """Whether the trial was still running, and has failed now."""
        import optuna

        with self._alone():
            try:
                self._storage.set_trial_user_attr(trial_id, 'why', why)
                self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """SQLite reads a trial's state and writes it in two steps: there a lock on a file makes them one. The others need none."""
        if self._lock_path is None:
            yield
            return
        with open(self._lock_path, 'w') as file:  # closing it gives the lock back, and so does a kill
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _point(trial) -> dict[str, Any]:
    return dict(trial.user_attrs.get('point') or trial.params)


def _settings_of(study) -> dict[str, Any] | None:
    """The settings of a study that another process made; it may be about to write them."""
    end = time.monotonic() + SETTINGS_SECONDS
    while 'settings' not in study.user_attrs and time.monotonic() < end:
        time.sleep(0.1)
    return study.user_attrs.get('settings')
