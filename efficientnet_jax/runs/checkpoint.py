"""Checkpoints with Orbax: asynchronous, the newest and the best kept, restored straight into their shardings and checked bit by bit.

Training is a function of (seed, step), so a checkpoint that is complete is never written again, and nothing is deleted before what
takes its place is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import storage
from efficientnet_jax.runs.hosts import everywhere, on_first
from efficientnet_jax.runs.integrity import Damaged, ShapeMismatch, bit_sums, check_finite, check_names, check_shapes, of_the_machine
from efficientnet_jax.runs.mesh import make_mesh, replicated

SCORES = 'scores.json'  # in the folder of checkpoints: {step: top-1 of its evaluation}
INTACT, DAMAGED, UNREACHED = range(3)  # what a host found of a checkpoint; all go by the worst


class Checkpoints:
    """The checkpoints of one workdir, under WORKDIR/checkpoints/STEP. Every host makes the same calls.

    Beside the arrays, each holds a sum of the bits of every array, so that damage which the file format does not notice is found
    when it is restored.

    Args:
      directory: absolute path; made when absent. Raises StorageError where it is a file.
      keep_last: newest checkpoints to keep.
      keep_best: best checkpoints to keep by evaluated top-1, beside the newest.
      read_only: never writes, moves or deletes anything.
    """

    def __init__(self, directory: str, keep_last: int = 2, keep_best: int = 1, read_only: bool = False):
        self.directory = directory
        self._keep_last, self._keep_best, self._read_only = keep_last, keep_best, read_only
        self._saving: int | None = None  # the step that is being written in the background
        if os.path.exists(directory) and not os.path.isdir(directory):
            raise StorageError(f'{directory} must be a folder, and is a file; move it away, or choose another --workdir.')
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.PreserveAll(),  # _settle deletes
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,  # what Orbax would set it to, with a warning
            create=not read_only,
            cleanup_tmp_directories=not read_only,  # of saves that were killed
        )
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=ocp.StandardCheckpointHandler())
        if not read_only:
            on_first(self._finish_deletions)
        self._scores: dict[int, float] = {int(step): score for step, score in on_first(self._read_scores).items()}

    def save(self, step: int, state, top1: float | None = None) -> None:
        """Starts writing in the background. top1: the score of its evaluation. A complete checkpoint of the step stays as it is.

        Raises StorageError, with its step, when this or the save before failed or the directory is gone; older checkpoints stay
        readable. Raises NotFiniteState, with nothing written, for a state with NaN or infinities.
        """
        self._check_there(step)
        self.wait()
        if step not in self.steps():
            check_finite(state)
            metadata = {'sums': bit_sums(state)}
            self._saving = step
            try:
                self._manager.save(step, args=ocp.args.StandardSave(state), custom_metadata=metadata, force=True)
            except Exception as error:  # Orbax raises many kinds
                raise self._failed(error) from error
        if top1 is not None:
            self.score(step, top1)

    def score(self, step: int, top1: float) -> None:
        """Records an evaluation of a step that is saved or being saved."""
        self._scores[step] = float(top1)
        kept = {str(s): self._scores[s] for s in sorted(self._scores) if s == step or s in self.steps()}
        on_first(lambda: storage.write_json(os.path.join(self.directory, SCORES), kept))

    def check(self) -> None:
        """Raises StorageError when what is being written has failed already; returns at once."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Blocks until what is being written is complete and on the disk. Raises StorageError when it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        if self._saving is not None:
            step, self._saving = self._saving, None
            self._settle(step)

    def close(self) -> None:
        """Waits for what is being written, then releases the directory. Raises StorageError as `wait` does."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the best evaluated checkpoint (the latest of equals), or the newest where none was evaluated."""
        return max(self.steps(), key=self._rank, default=None)

    def restore_latest(self, abstract_state, before: int | None = None):
        """(state, step) of the newest intact checkpoint, or (None, 0) when there is none at all. before: only those of smaller steps.

        abstract_state is a tree of jax.ShapeDtypeStruct with shardings. A damaged checkpoint is set aside as STEP.unreadable with a
        warning and the one before is used. Raises ShapeMismatch for a checkpoint of another model or optimizer, StorageError when this
        machine cannot read it now (it stays as it is) and when none of those there is intact: starting afresh must be your decision.
        """
        while steps := [step for step in self.steps() if before is None or step < before]:
            state, problem = self._attempt(steps[-1], lambda step=steps[-1]: self.restore(step, abstract_state))
            if problem is None:
                return state, steps[-1]
            self._set_aside(steps[-1], problem)
        # Also those of an earlier start: the error must not turn into a fresh run when the command is given again.
        damaged = [path.name for path in epath.Path(self.directory).glob('*.unreadable')]
        if damaged and not self.steps():
            names = ', '.join(sorted(damaged, key=lambda name: -int(name.split('.')[0])))
            raise StorageError(
                f'None of the checkpoints in {self.directory} can be read; they are set aside as {names}. '
                'Bring one back from a copy, or choose another --workdir to start afresh.'
            )
        return None, 0

    def restore(self, step: int, abstract_state):
        """The state saved at `step`. Raises ShapeMismatch listing every array of another shape, and Damaged when bits changed."""
        saved, sums = self._metadata(step)
        check_shapes(saved, abstract_state, f'{self.directory}/{step}')
        check_names(set(sums), abstract_state, f'{self.directory}/{step}')
        state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        self._check_bits(step, state, sums)
        return state

    def restore_readable_weights(self, abstract_weights=None, best: bool = False) -> tuple[dict[str, Any], int]:
        """(restore_weights, step) of the newest checkpoint, or the best evaluated one; where it is damaged, of the next, with a warning.

        Raises StorageError when this machine cannot read it now, and when none is intact; ShapeMismatch as restore_weights.
        """
        problems = []
        for step in sorted(self.steps(), key=self._rank if best else None, reverse=True):
            weights, problem = self._attempt(step, lambda step=step: self.restore_weights(step, abstract_weights))
            if problem is None:
                return weights, step
            problems.append(f'{step}: {problem}')
            logging.warning('Checkpoint %d in %s is damaged (%s); the next one is used.', step, self.directory, problem)
        found = '; '.join(problems) or 'no checkpoint is complete'
        raise StorageError(f'{self.directory} has no checkpoint that can be read ({found}). Bring one back from a copy, or train on.')

    def restore_weights(self, step: int, abstract_weights=None) -> dict[str, Any]:
        """{'params', 'batch_stats', 'ema' where it was saved} of `step`, without the optimizer's state, whatever optimizer it was.

        abstract_weights: {'params', 'batch_stats'} of jax.ShapeDtypeStruct with shardings, for the averages as well; None: those that
        were saved, on every device. Raises ShapeMismatch and Damaged as `restore` does.
        """
        saved, sums = self._metadata(step)
        if abstract_weights is None:
            everywhere_alike = replicated(make_mesh())  # on several hosts too: the sums count each array once
            weights = {name: saved[name] for name in ('params', 'batch_stats')}
            abstract_weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere_alike), weights)
        check_shapes(saved, abstract_weights, f'{self.directory}/{step}')
        wanted = abstract_weights | ({'ema': abstract_weights} if saved.get('ema') else {})
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        with contextlib.closing(reader):
            args = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True)
            weights = reader.restore(epath.Path(self.directory) / str(step) / 'default', args=args)
        self._check_bits(step, weights, {name: value for name, value in sums.items() if name.split('/')[0] in wanted})
        return weights

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, to which a rollback must not come back; returns when they are gone for good."""
        self.wait()
        self._delete([later for later in self.steps() if later > step])

    def _rank(self, step: int) -> tuple[float, int]:
        return self._scores.get(step, -1.0), step  # an unscored one ranks below every score

    def _attempt(self, step: int, read):
        """(what read() gives, None), or (None, what is damaged), the same on all hosts. Raises what is no damage."""
        found = problem = failure = None
        verdict = INTACT
        try:
            found = read()
        except ShapeMismatch:
            raise
        except Exception as error:  # whatever a damaged file makes TensorStore or JSON raise
            problem, failure = f'{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ""}', error
            unread = not isinstance(error, Damaged) and of_the_machine(error, os.path.join(self.directory, str(step)))
            verdict = UNREACHED if unread else DAMAGED
        worst = verdict
        if jax.process_count() > 1:
            worst = int(np.max(multihost_utils.process_allgather(np.asarray(verdict))))
        if worst == UNREACHED:
            raise StorageError(
                f'{self.directory}/{step} could not be read here ({problem or "another host could not"}); nothing says that it is damaged, and it '
                'stays as it is. Mend the machine (open files, memory, permissions, mounts), then run the same command.'
            ) from failure
        return (found, None) if worst == INTACT else (None, problem or 'another host could not read it')

    def _metadata(self, step: int) -> tuple[dict, dict[str, int]]:
        """(the tree of what was saved, the bit sums of its arrays) of a checkpoint."""
        metadata = self._manager.metadata(step)
        sums = (metadata.custom_metadata or {}).get('sums')
        if sums is None:
            raise Damaged(f'{self.directory}/{step} has lost its metadata')
        saved = metadata.item_metadata
        saved = saved.tree if hasattr(saved, 'tree') else saved
        if saved is None:
            raise Damaged(f'{self.directory}/{step} has lost the metadata of its arrays')
        return saved, sums

    def _check_bits(self, step: int, tree, wanted: dict[str, int]) -> None:
        sums = bit_sums(tree)
        changed = [name for name, value in wanted.items() if sums.get(name) != value]
        if changed:
            raise Damaged(f'{len(changed)} arrays in {self.directory}/{step} are not what was saved, for example {changed[0]}')

    def _settle(self, step: int) -> None:
        """Puts a complete checkpoint on the disk, and only then deletes those that it makes superfluous."""
        on_first(lambda: storage.sync_tree(os.path.join(self.directory, str(step))))
        steps = self.steps()
        scored = sorted((s for s in steps if s in self._scores), key=self._rank)
        kept = {*steps[-self._keep_last :], *(scored[-self._keep_best :] if self._keep_best else [])}
        self._delete([s for s in steps if s not in kept])

    def _delete(self, steps: list[int]) -> None:
        """By renaming first: one that is half deleted must not look like one that is damaged."""

        def rename():
            for step in steps:
                os.rename(os.path.join(self.directory, str(step)), os.path.join(self.directory, f'{step}.deleted'))
            storage.sync_folder(self.directory)
            self._finish_deletions()

        if steps:
            on_first(rename)
            self._manager.reload()

    def _finish_deletions(self) -> None:
        for path in epath.Path(self.directory).glob('*.deleted'):
            shutil.rmtree(path)

    def _read_scores(self) -> dict[str, float]:
        path = os.path.join(self.directory, SCORES)
        try:
            found = storage.read_json(path)
            return {str(int(step)): float(score) for step, score in found.items()}
        except FileNotFoundError:
            return {}
        except (
            StorageError,
            AttributeError,
            TypeError,
            ValueError,
        ) as error:  # not JSON, or not this JSON: scores can be lost, checkpoints not
            logging.warning('%s cannot be used (%s): which checkpoint is the best is not known any more.', path, error)
            return {}

    def _set_aside(self, step: int, problem: str) -> None:
        aside = os.path.join(self.directory, f'{step}.unreadable')
        logging.warning('Checkpoint %d in %s cannot be read (%s); it is set aside as %s.', step, self.directory, problem, aside)

        def move():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(os.path.join(self.directory, str(step)), aside)

        on_first(move)  # the others list the directory only after it is moved
        self._manager.reload()

    def _check_there(self, step: int) -> None:
        if not everywhere(jax.process_index() != 0 or os.path.isdir(self.directory)):
            raise StorageError(
                f'{self.directory} is gone (removed, renamed or unmounted), so step {step} cannot be saved. '
                'Bring it back and run the same command to resume from its newest checkpoint.'
            )

    def _failed(self, error) -> StorageError:
        step, self._saving = self._saving, None
        kept = ', '.join(str(s) for s in self.steps() if s != step) or 'none'
        return StorageError(
            f'The checkpoint of step {step} could not be written to {self.directory}: {str(error).splitlines()[0] if str(error) else error!r}. '
            f'Complete checkpoints there: {kept}. Free some space, then run the same command to resume from the newest.'
        )
