"""What happens when the loss or the gradients are NaN or infinite: an error, or back to a checkpoint and past the bad batch."""

from __future__ import annotations

from efficientnet_jax.errors import NotFinite
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.training.state import TrainState


def roll_back(
    checkpoints: Checkpoints, abstract_state, live: TrainState, bad_step: int, what: str, last: int | None, allowed: int
) -> tuple[TrainState, int]:
    """(state, step) to go on from; the batches up to the bad one are counted as skipped.

    live: the state that the bad update left, for its counts. what: the problem, for the error. last: the step to which the rollback
    before this one went back, None for the first. Where the very next update after that step is bad again, its weights are the problem,
    and an older checkpoint is taken if there is one. allowed: config.nan_rollbacks. Raises NotFinite with the step and what is left when no rollback is allowed any more or nothing was saved.
    """
    checkpoints.wait()
    suspect = last if last is not None and bad_step == last + 1 else None
    count = int(live.rollbacks) + 1
    if count > allowed or not checkpoints.steps():
        raise NotFinite(_message(what, bad_step, checkpoints, allowed, suspect))
    state, step = checkpoints.restore_latest(abstract_state, before=suspect)
    if state is None:
        state, step = checkpoints.restore_latest(abstract_state)
    checkpoints.discard_after(step)
    skipped = int(live.skipped) + bad_step - step
    return state.replace(skipped=state.skipped * 0 + skipped, rollbacks=state.rollbacks * 0 + count), step


def _message(what: str, step: int, checkpoints: Checkpoints, allowed: int, suspect: int | None) -> str:
    """What happened at which step, and what to do."""
    there = checkpoints.steps()
    where = f'the newest checkpoint is step {there[-1]} in {checkpoints.directory}' if there else 'there is no checkpoint yet'
    where += f'; the weights of step {suspect} lead to NaN at once' if suspect is not None else ''
    after = f' after nan_rollbacks={allowed}' if allowed else ''
    hint = '' if allowed else ', or set nan_rollbacks to skip such batches'
    return f'{what} at step {step}{after}; {where}. Lower lr_per_256, lengthen warmup_epochs or use dtype=float32 in a new --workdir{hint}.'
