"""Checkpoints with Orbax: written in the background, the newest and the best kept, restored straight into their shardings, checked bit by bit.

WORKDIR/checkpoints/STEP/default holds the arrays as Orbax writes them, STEP/contents.json what integrity.py needs, and scores.json the
evaluations. A save writes STEP.partial, waits until every byte of it is on the disk, and then renames it: a folder with a number for a
name is complete. It is deleted only after a newer one has its name, and by another rename first, so that a process killed at any
moment leaves at least the last complete checkpoint.

Every host calls every method; process 0 alone renames, deletes and writes the small files.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import checkpoint_reader, checkpoint_scores, durable, integrity
from efficientnet_jax.runs.checkpoint_reader import Damaged, first_line
from efficientnet_jax.runs.hosts import everywhere, on_first

UNREADABLE = '.unreadable'
PARTIAL = '.partial'
LEFTOVER = re.compile(
    rf'\d+(\{UNREADABLE})?({re.escape(PARTIAL)}|{re.escape(durable.REMOVED)}|\.orbax-checkpoint-tmp).*'
)  # of a process that was killed


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      directory: absolute path of WORKDIR/checkpoints; made when absent.
      keep_last: newest checkpoints to keep, at least 1.
      keep_best: best checkpoints to keep by evaluated top-1, beside the newest.
      read_only: never writes, moves or deletes anything.

    Raises StorageError when the directory cannot be made or read.
    """

    def __init__(self, directory: str, keep_last: int = 2, keep_best: int = 1, read_only: bool = False):
        self.directory = directory
        self._folder = pathlib.Path(directory)
        self._keep_last, self._keep_best, self._read_only = max(1, keep_last), keep_best, read_only
        self._thread: threading.Thread | None = None
        self._released = read_only
        self._saving = 0  # step of the background save
        self._error: Exception | None = None  # what ended it
        if not read_only:
            on_first(self._prepare)
            self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._scores = {int(step): top1 for step, top1 in on_first(self._read_scores).items()}

    def save(self, step: int, state, top1: float | None = None) -> None:
        """Starts writing in the background. A step that is there is not written again: it would have the same bits.

        top1: its score, where it was evaluated before. Raises StorageError when the save before failed, with its step, or when the
        directory is gone; complete checkpoints stay. Raises NotFiniteState, with nothing written, for a state with NaN or infinities.
        """
        self.wait()
        new = step not in self._steps(gone=f', so step {step} cannot be saved')
        if new:
            integrity.check_finite(state)
        if top1 is not None:  # first: a checkpoint that is complete must not lack its score
            self.score(step, top1)
        if new:
            arrays = integrity.bit_sums(state)
            try:
                args = ocp.args.Composite(**{checkpoint_reader.ITEM: ocp.args.StandardSave(state)})
                self._writer.save(self._partial(step), args=args)
            except Exception as error:  # Orbax raises many kinds
                raise self._failed(step, error) from error
            self._saving, self._error = step, None
            self._thread = threading.Thread(target=self._complete, args=(step, arrays), name='checkpoint')
            self._thread.start()

    def score(self, step: int, top1: float) -> None:
        """Records an evaluation of a saved step, or of the one that is being saved. Raises StorageError when it cannot be written."""
        self._scores[step] = float(top1)
        self._keep_scores({*self.steps(), step, self._saving})

    def scored(self, step: int) -> bool:
        """Whether an evaluation of a step is recorded, the same on all hosts."""
        return step in self._scores

    def check(self) -> None:
        """Raises StorageError, with its step, when the background save has failed already; returns at once."""
        if self._thread is not None and self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Returns when the checkpoint that is being written is complete and on the disk. Raises StorageError, with its step, when it failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error = None, self._error
        if error is not None:  # no agreement: a host whose save failed ends, and the others find it lost
            raise self._failed(self._saving, error) from error
        everywhere(True)  # process 0 gives the checkpoint its name

    def close(self) -> None:
        """Waits for what is being written, then releases Orbax's threads. Raises StorageError as `wait` does."""
        try:
            self.wait()
        finally:
            self.release()

    def release(self) -> None:
        """Ends the background save of a process that is alone, and frees Orbax's threads, however the run ended. Safe after close."""
        if self._released:
            return
        self._released = True
        if jax.process_count() > 1:  # one of several must not wait for hosts that may be gone
            return
        if self._thread is not None:
            self._thread.join()
        self._writer.close()

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        return self._steps()

    def best_step(self) -> int | None:
        """Step of the best evaluated checkpoint (the latest of equals), or the newest where none was evaluated."""
        return next(iter(checkpoint_scores.ranked(self.steps(), self._scores)), None)

    def restore_latest(self, abstract_state, before: int | None = None) -> tuple[Any, int]:
        """(state, step) of the newest intact checkpoint, or (None, 0) when there is none at all.

        abstract_state: a tree of jax.ShapeDtypeStruct with shardings. before: only checkpoints of smaller steps.
        One that is damaged is set aside as STEP.unreadable with a warning and the one before is used. Raises ShapeMismatch for
        a checkpoint of another model, and StorageError when one cannot be restored for any other reason (it stays where it is) or
        when none of those there is intact: starting afresh must be your decision.
        """
        self.wait()
        steps = [step for step in self.steps() if before is None or step < before]
        return self._first_intact(steps[::-1], lambda step: self.restore(step, abstract_state), before)

    def restore(self, step: int, abstract_state):
        """The state of `step`, as checkpoint_reader.restore_state."""
        return checkpoint_reader.restore_state(self._path(step), abstract_state)

    def restore_weights(self, step: int, abstract_weights=None) -> dict[str, Any]:
        """The weights of `step`, as checkpoint_reader.restore_weights."""
        return checkpoint_reader.restore_weights(self._path(step), abstract_weights)

    def restore_readable_weights(self, abstract_weights=None, best: bool = False) -> tuple[dict[str, Any], int]:
        """(weights, step) of the newest intact checkpoint, or of the best as `best_step` ranks them; a warning names each damaged one.

        Raises as restore_weights, and StorageError where none is intact or there is none.
        """
        steps = checkpoint_scores.ranked(self.steps(), self._scores) if best else self.steps()[::-1]
        try:
            weights, step = self._first_intact(steps, lambda step: self.restore_weights(step, abstract_weights))
        except StorageError:
            if set(self.steps()) == set(steps):
                raise
            return self.restore_readable_weights(abstract_weights, best)  # the run that trains here has retired those that were listed
        if weights is None:
            raise StorageError(f'{self.directory} has no complete checkpoint; train there first.')
        return weights, step

    def discard_after(self, step: int) -> None:
        """Removes all newer checkpoints and their scores; returns when that is on the disk. For a rollback, before training goes on."""
        self.wait()
        kept = [there for there in self.steps() if there <= step]
        self._keep_scores(kept)

        def discard():
            for newer in reversed(self._list()):
                if newer > step:
                    durable.change(durable.remove, self._path(newer))

        on_first(discard)

    def _first_intact(self, steps: list[int], restore: Callable[[int], Any], before: int | None = None) -> tuple[Any, int]:
        """(restore(step), step) of the first step that is not damaged."""
        for step in steps:
            try:
                return restore(step), step
            except Damaged as error:
                self._pass_over(step, error)
        if before is not None:  # the caller has later ones
            return None, 0
        # Those of earlier starts count too: the error must not turn into a fresh run when the command is given again.
        aside = self._steps(UNREADABLE)
        if aside or steps:
            names = ', '.join(f'{step}{UNREADABLE}' for step in reversed(aside)) or ', '.join(map(str, steps))
            raise StorageError(
                f'None of the checkpoints in {self.directory} can be read: {names}. Bring one back from a copy, or choose another '
                '--workdir to start afresh.'
            )
        return None, 0

    def _pass_over(self, step: int, error: Damaged) -> None:
        """Warns; sets the checkpoint aside unless this only reads."""
        if self._read_only and step not in self.steps():
            return  # not damaged: the run that trains here has retired it meanwhile
        aside = self._path(step, UNREADABLE)
        then = 'the next one is used' if self._read_only else f'it is set aside as {aside} and the next one is used'
        logging.warning('%s %s.', error, then[0].upper() + then[1:])

        def set_aside():
            if aside.exists():
                durable.change(durable.remove, aside)
            durable.change(durable.rename, self._path(step), aside)

        if not self._read_only:
            on_first(set_aside)

    def _complete(self, step: int, arrays: dict[str, int]) -> None:
        """Ends a save, in the background: on the disk, sealed, named; then old checkpoints go."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                integrity.seal(self._partial(step), arrays)
                durable.rename(self._partial(step), self._path(step))
        except Exception as error:  # handed to `wait`
            self._error = error
            return
        if jax.process_index() == 0:
            self._retire(step)

    def _retire(self, step: int) -> None:
        """Deletes what is neither among the newest nor the best. What cannot be deleted is no reason to end a run."""
        try:
            steps = self._list()
            for old in sorted({*steps} - {step} - checkpoint_scores.kept(steps, dict(self._scores), self._keep_last, self._keep_best)):
                durable.remove(self._path(old))
        except OSError as error:
            logging.warning('Old checkpoints in %s could not be deleted: %s.', self.directory, error)

    def _failed(self, step: int, error: Exception) -> StorageError:
        if jax.process_index() == 0:
            for path in self._folder.glob(f'{step}{PARTIAL}*'):  # takes up space; what threads still write there goes at the next start
                shutil.rmtree(path, ignore_errors=True)
        kept = ', '.join(map(str, self._list())) if self._folder.is_dir() else ''
        return StorageError(
            f'The checkpoint of step {step} could not be written to {self.directory}: {first_line(error)}. Complete checkpoints '
            f'there: {kept or "none"}. Free some space, then give the same command again to go on from the newest.'
        )

    def _prepare(self) -> None:
        """Makes the directory and removes what a killed process left half written or half deleted."""
        if self._folder.exists() and not self._folder.is_dir():
            raise StorageError(
                f'{self.directory} is a file, and checkpoints need a folder there; move it away, or choose another --workdir.'
            )
        durable.change(lambda folder: folder.mkdir(parents=True, exist_ok=True), self._folder)
        for name in os.listdir(self._folder):
            if LEFTOVER.fullmatch(name):
                durable.change(shutil.rmtree, self._folder / name)

    def _keep_scores(self, steps) -> None:
        self._scores = {step: top1 for step, top1 in self._scores.items() if step in steps}
        on_first(lambda: checkpoint_scores.write(self._folder, self._scores))

    def _read_scores(self) -> dict[str, float]:
        try:
            return {str(step): top1 for step, top1 in checkpoint_scores.read(self._folder).items()}
        except OSError as error:
            raise integrity.unreadable(self._folder / checkpoint_scores.FILE, error) from error

    def _path(self, step: int, suffix: str = '') -> pathlib.Path:
        return self._folder / f'{step}{suffix}'

    def _partial(self, step: int) -> pathlib.Path:
        return self._path(step, PARTIAL)

    def _steps(self, suffix: str = '', gone: str = '') -> list[int]:
        """Steps of folders STEP or STEP.suffix, ascending: those that process 0 sees, on every host. gone: said when the directory is."""

        def listing():
            try:
                return self._list(suffix)
            except FileNotFoundError:
                if self._read_only:
                    return []
                raise StorageError(
                    f'{self.directory} is gone (removed, renamed or unmounted){gone}. '
                    'Bring it back and give the same command again to go on from its newest checkpoint.'
                ) from None
            except OSError as error:
                raise integrity.unreadable(self._folder, error) from error

        return on_first(listing)

    def _list(self, suffix: str = '') -> list[int]:
        """Steps of folders STEP or STEP.suffix, ascending, as this host sees them."""
        names = [name.removesuffix(suffix) for name in os.listdir(self._folder) if name.endswith(suffix)]
        return sorted(int(name) for name in names if name.isdecimal())
