"""When a run logs, evaluates and saves, as pure data: a function of the step, which a test reads without a run."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Events:
    """What follows an update. An evaluation implies that its state is saved with its score, and both imply a line of metrics."""

    log: bool
    evaluate: bool
    save: bool


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The events of all steps, 1 to total_steps. The last step evaluates and saves in any case.

    evaluate_every: steps; None: at the last step alone. saves: saves for each evaluation, evenly spaced, the last of them at the
    evaluation, so that the two periods never miss each other by rounding. save_every: steps, where evaluate_every is None.
    """

    total_steps: int
    log_every: int
    evaluate_every: int | None
    saves: int = 1
    save_every: int | None = None

    def at(self, step: int) -> Events:
        """The events after update number `step`."""
        last = step == self.total_steps
        if self.evaluate_every is None:
            evaluate, save = last, self.save_every is not None and step % self.save_every == 0
        else:
            since = step % self.evaluate_every
            evaluate = last or since == 0
            save = since in {round(self.evaluate_every * k / self.saves) for k in range(1, self.saves)}
        save |= evaluate
        return Events(log=save or step % self.log_every == 0, evaluate=evaluate, save=save)


def schedule_of(config, steps_per_epoch: float, total_steps: int) -> Schedule:
    """From the periods in epochs; inf is never. A period of saving longer than that of evaluating is cut to it."""
    evaluate, save = (_steps(every, steps_per_epoch) for every in (config.eval_every_epochs, config.checkpoint_every_epochs))
    if evaluate is None or evaluate > total_steps:  # evaluated at the end alone
        return Schedule(total_steps, config.log_every_steps, None, save_every=save)
    saves = 1 if save is None else min(evaluate, max(1, round(config.eval_every_epochs / config.checkpoint_every_epochs)))
    return Schedule(total_steps, config.log_every_steps, evaluate, saves=saves)


def _steps(epochs: float, steps_per_epoch: float) -> int | None:
    return None if math.isinf(epochs) else max(1, round(epochs * steps_per_epoch))
