"""A point of a queue (trials.py) in the hands of the process that evaluates it."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Sequence

from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import hosts


class Claim:
    """A point that this process evaluates. As a context it renews the lease, and an exception inside fails the point for good.

    But hosts.Stopped, KeyboardInterrupt and SystemExit put it back into the queue. All exceptions go on to the caller.

    Attributes:
      key: of the point.
      point: what add() was given; {} for a new one.
      trial: the optuna trial, for suggest_...() (which gives what add() was given) and set_user_attr().
      lost: whether another process took this one for dead; complete() will return False.
    """

    def __init__(self, queue, trial):
        self.trial = trial
        self.key = trial.user_attrs.get('key', f'ask{trial.number}')
        self.point = dict(trial.user_attrs.get('point', {}))
        self.lost = False
        self._queue = queue
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        trial.set_user_attr('worker', f'process {os.getpid()} on {os.uname().nodename}')

    def complete(self, values: float | Sequence[float], **attributes) -> bool:
        """Stores the result, and attributes as user attributes of the trial. False, and nothing stored, where the lease was lost.

        Raises UserError for a value that is not finite: Optuna would store it as a failure.
        """
        import optuna

        values = [float(value) for value in (values if isinstance(values, Sequence) else [values])]
        if not all(math.isfinite(value) for value in values):
            raise UserError(f'values={values} of {self.key} must be finite.')
        self._end()
        with self._queue._alone():
            try:
                for name, value in attributes.items():
                    self.trial.set_user_attr(name, value)
                self._queue._storage.set_trial_state_values(self.trial._trial_id, optuna.trial.TrialState.COMPLETE, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                self.lost = True
        return not self.lost

    def fail(self, why: str) -> None:
        """Ends the point without a result; it is not tried again, unless retry() is called."""
        self._end()
        self._queue._fail(self.trial._trial_id, why)

    def give_back(self) -> None:
        """Puts the point back into the queue: this process was asked to stop."""
        self._end()
        self._queue._fail(self.trial._trial_id, 'given back')
        self._queue._queue_again()

    def __enter__(self) -> Claim:
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, hosts.Stopped | KeyboardInterrupt | SystemExit):
            self.give_back()
        elif error is not None:
            self.fail(f'{kind.__name__}: {error}'[:1000])
        self._end()

    def _renew(self) -> None:
        import optuna

        beat = 0
        while not self._ended.wait(self._queue.lease_seconds / 4):
            beat += 1
            try:
                self._queue._storage.set_trial_user_attr(self.trial._trial_id, 'beat', beat)
            except optuna.exceptions.UpdateFinishedTrialError:
                self.lost = True
                return
            except Exception as error:  # a database that is away for a moment; if it stays away, the lease is over
                print(f'The lease of {self.key} could not be renewed: {error}', file=sys.stderr, flush=True)

    def _end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
