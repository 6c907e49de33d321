"""Checkpoints with Orbax: asynchronous, the newest and the best kept, restored straight into their shardings and checked bit by bit."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs.hosts import everywhere
from efficientnet_jax.runs.mesh import make_mesh, replicated

BEST = 'top1'  # the metric that ranks checkpoints: EMA weights where there are any, else raw
NOT_EVALUATED = -1.0  # ranks below every score


class Checkpoints:
    """The checkpoints of one workdir, under WORKDIR/checkpoints/STEP.

    Beside the arrays, each holds a sum of the bits of every array, so that damage which the file format does not notice is found
    when it is restored, and a small JSON `note`: what else the loop needs to go on exactly.

    Args:
      directory: absolute path or gs:// URL; made when absent.
      keep_last: newest checkpoints to keep.
      keep_best: best checkpoints to keep by evaluated top-1, beside the newest.
      read_only: never writes, moves or deletes anything.
    """

    def __init__(self, directory: str, keep_last: int = 2, keep_best: int = 1, read_only: bool = False):
        self.directory = directory
        policies = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            policies.append(preservation_policy.BestN(get_metric_fn=_score, n=keep_best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=_score,  # without it Orbax neither writes the scores nor reads them back
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,  # what Orbax would set it to, with a warning
            create=not read_only,
            # Old checkpoints go only after the new one is complete; a killed save leaves a temporary folder, removed here.
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(directory, options=options, item_handlers=ocp.StandardCheckpointHandler())

    def save(self, step: int, state, top1: float | None = None) -> None:
        """Starts writing in the background. A complete checkpoint of the same step stays: it holds the same bits.

        Raises StorageError when this or an earlier save failed, or the directory is gone; older checkpoints stay readable.
        """
        self._check_there(step)
        if step in self._manager.all_steps():
            return
        try:
            score = {BEST: NOT_EVALUATED if top1 is None else float(top1)}
            metadata = {'sums': bit_sums(state)}
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=score, custom_metadata=metadata, force=True)
        except Exception as error:  # Orbax raises many kinds, also for the save before
            raise self._failed(step, error) from error

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Blocks until what is being written is complete. Raises OSError when it failed."""
        step = self._manager.latest_step()
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Waits for what is being written, then releases the directory. Raises OSError as `wait` does."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the best evaluated checkpoint (the latest of equals), or the newest where none was evaluated."""
        scores = {step: _score(self._manager.metrics(step) or {}) for step in self.steps()}
        return max(scores, key=lambda step: (scores[step], step)) if scores else None

    def restore_latest(self, abstract_state, before: int | None = None):
        """(state, step, note) of the newest intact checkpoint, or (None, 0, {}) when there is none at all.

        abstract_state is a tree of jax.ShapeDtypeStruct with shardings. A checkpoint that cannot be read, or whose bits are not
        those that were saved, is set aside as STEP.unreadable with a warning and the one before is used. Raises ShapeMismatch
        for a checkpoint of another model, and OSError when none of those there is intact: starting afresh must be your decision.
        """
        while steps := [step for step in self.steps() if before is None or step < before]:
            step = steps[-1]
            state = problem = None
            try:
                state = self.restore(step, abstract_state)
            except (ShapeMismatch, PermissionError):
                raise
            except Exception as error:  # whatever a damaged file makes TensorStore or JSON raise
                problem = f'{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ""}'
            if everywhere(problem is None):
                return state, step
            self._set_aside(step, problem or 'another host could not read it')
        # Also those of an earlier start: the error must not turn into a fresh run when the command is given again.
        damaged = [path.name for path in epath.Path(self.directory).glob('*.unreadable')]
        if damaged:
            names = ', '.join(sorted(damaged, key=lambda name: -int(name.split('.')[0])))
            raise StorageError(
                f'None of the checkpoints in {self.directory} can be read; they are set aside as {names}. '
                'Bring one back from a copy, or choose another --workdir to start afresh.'
            )
        return None, 0

    def restore(self, step: int, abstract_state):
        """(state, note) saved at `step`. Raises ShapeMismatch listing every array of another shape, and Damaged when bits changed."""
        saved, custom = self._metadata(step)
        check_shapes(saved, abstract_state, f'{self.directory}/{step}')
        state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        self._check_bits(step, state, custom['sums'])
        return state

    def restore_weights(self, step: int, abstract_weights=None) -> dict[str, Any]:
        """{'params', 'batch_stats', 'ema' where it was saved} of `step`, without the optimizer's state, whatever optimizer it was.

        abstract_weights: {'params', 'batch_stats'} of jax.ShapeDtypeStruct with shardings, for the averages as well; None: those that
        were saved, on every device. Raises ShapeMismatch and Damaged as `restore` does.
        """
        saved, custom = self._metadata(step)
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
        self._check_bits(step, weights, {name: value for name, value in custom['sums'].items() if name.split('/')[0] in wanted})
        return weights

    def _metadata(self, step: int) -> tuple[dict, dict]:
        """(the tree of what was saved, {'sums', 'note'}) of a checkpoint."""
        metadata = self._manager.metadata(step)
        custom = metadata.custom_metadata or {}
        if 'sums' not in custom:
            raise Damaged(f'{self.directory}/{step} has lost its metadata')
        saved = metadata.item_metadata
        saved = saved.tree if hasattr(saved, 'tree') else saved
        if saved is None:
            raise Damaged(f'{self.directory}/{step} has lost the metadata of its arrays')
        return saved, custom

    def _check_bits(self, step: int, tree, wanted: dict[str, int]) -> None:
        sums = bit_sums(tree)
        changed = [name for name, value in wanted.items() if sums.get(name) != value]
        if changed:
            raise Damaged(f'{len(changed)} arrays in {self.directory}/{step} are not what was saved, for example {changed[0]}')

    def _set_aside(self, step: int, problem: str) -> None:
        aside = epath.Path(self.directory) / f'{step}.unreadable'
        logging.warning('Checkpoint %d in %s cannot be read (%s); it is set aside as %s.', step, self.directory, problem, aside)
        if jax.process_index() == 0:
            if aside.exists():
                aside.rmtree()
            (epath.Path(self.directory) / str(step)).rename(aside)
        everywhere(True)  # the others list the directory only after it is moved
        self._manager.reload()

    def _check_there(self, step: int) -> None:
        if jax.process_index() == 0 and not epath.Path(self.directory).is_dir():
            raise StorageError(
                f'{self.directory} is gone (removed, renamed or unmounted), so step {step} cannot be saved. '
                'Bring it back and run the same command to go on from its newest checkpoint.'
            )

    def _failed(self, step, error) -> OSError:
        kept = ', '.join(str(s) for s in self.steps() if s != step) or 'none'
        return OSError(
            f'The checkpoint of step {step} could not be written to {self.directory}: {error}. '
            f'Complete checkpoints there: {kept}. Free some space, then run the same command to go on from the newest.'
        )


class ShapeMismatch(UserError):
    """A checkpoint whose arrays have other names or shapes than the model's."""


class Damaged(StorageError):
    """A checkpoint whose bits are not those that were saved."""


def _score(metrics: dict[str, float]) -> float:
    return metrics.get(BEST, NOT_EVALUATED)


def bit_sums(tree) -> dict[str, int]:
    """{'params/stem/conv/kernel': sum of its 32-bit words modulo 2^64, ...}, the same on all hosts and for every sharding.

    A change of one word always shows. Computed on the host: as a jitted function of a thousand arrays it takes longer to
    compile than a small model's whole step.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = np.zeros(len(leaves), np.uint64)
    for i, (_, leaf) in enumerate(leaves):
        # Each piece of an array is counted once over all devices and hosts.
        pieces = [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0] if isinstance(leaf, jax.Array) else [leaf]
        for piece in pieces:
            raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            words = raw.view(np.uint32) if raw.size % 4 == 0 else raw
            sums[i] += np.sum(words, dtype=np.uint64)
    if jax.process_count() > 1:
        halves = np.stack([sums & np.uint64(0xFFFFFFFF), sums >> np.uint64(32)]).astype(np.uint32)  # JAX has no 64 bits by default
        halves = multihost_utils.process_allgather(halves).astype(np.uint64)  # [hosts, 2, arrays]
        sums = np.sum(halves[:, 0] + (halves[:, 1] << np.uint64(32)), axis=0, dtype=np.uint64)
    return {'/'.join(_key(k) for k in path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def flat_shapes(tree) -> dict[str, tuple[int, ...]]:
    """{'params/stem/kernel': (3, 3, 3, 32), ...} of a tree of arrays or of Orbax metadata."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))[0]
    return {'/'.join(_key(k) for k in path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, 'shape')}


def _key(k) -> str:
    """A tree path's part as Orbax names it: dict key, attribute or index."""
    return str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))


def check_shapes(saved, wanted, where: str) -> None:
    """Raises ShapeMismatch with the diff unless both trees have the same weights (params and batch_stats)."""
    have = {k: v for k, v in flat_shapes(saved).items() if k.startswith(('params/', 'batch_stats/'))}
    want = {k: v for k, v in flat_shapes(wanted).items() if k.startswith(('params/', 'batch_stats/'))}
    missing, unused = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    shapes = [f'{k} {have[k]} there, {want[k]} here' for k in sorted(want.keys() & have.keys()) if want[k] != have[k]]
    if not (missing or unused or shapes):
        return
    classifier = 'params/classifier/bias'
    classes = ''
    if classifier in have and classifier in want and have[classifier] != want[classifier]:
        classes = f' It was trained for {have[classifier][0]} classes; the data set here has {want[classifier][0]}.'
    parts = [
        f'{len(x)} {name}: {"; ".join(x[:4])}' for name, x in (('missing', missing), ('unused', unused), ('of other shape', shapes)) if x
    ]
    raise ShapeMismatch(f'The checkpoint {where} does not fit this model.{classes} {". ".join(parts)}. Use the config it was trained with.')


def read_config(workdir: str) -> dict | None:
    """The config.json that a training run left in its workdir, or None."""
    path = os.path.join(workdir, 'config.json')
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)
