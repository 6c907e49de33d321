"""Checkpoints with Orbax: asynchronous, the newest and the best kept, restored straight into their shardings."""

from __future__ import annotations

import json
import os

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

BEST = 'top1'  # the metric that ranks checkpoints: EMA weights where there are any, else raw


class Checkpoints:
    """The checkpoints of one workdir, under WORKDIR/checkpoints/STEP.

    Args:
      directory: absolute path or gs:// URL; made when absent.
      keep_last: newest checkpoints to keep.
      keep_best: best checkpoints to keep by evaluated top-1, beside the newest.
    """

    def __init__(self, directory: str, keep_last: int = 2, keep_best: int = 1, read_only: bool = False):
        self.directory = directory
        policies = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            best = preservation_policy.BestN(get_metric_fn=lambda m: m[BEST], n=keep_best, keep_checkpoints_without_metrics=False)
            policies.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            read_only=read_only,
            create=not read_only,
            # Old checkpoints go only after the new one is complete; a killed save leaves a temporary folder, removed here.
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, state, metrics: dict[str, float] | None = None) -> None:
        """Starts writing in the background. Raises OSError when an earlier or this save failed; older checkpoints stay readable."""
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)
        except Exception as error:  # Orbax raises many kinds, also for the save before
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Blocks until what is being written is complete. Raises OSError when it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(self._manager.latest_step(), error) from error

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the best evaluated checkpoint, or the newest where none was evaluated."""
        scores = {step: self._manager.metrics(step) for step in self.steps()}
        scored = {step: metrics[BEST] for step, metrics in scores.items() if metrics}
        return max(scored, key=lambda step: (scored[step], step)) if scored else self._manager.latest_step()

    def restore_latest(self, abstract_state):
        """(state, step) of the newest readable checkpoint, or (None, 0) when there is none.

        abstract_state is a tree of jax.ShapeDtypeStruct with shardings. A checkpoint that cannot be read is set aside as
        STEP.unreadable with a warning and the one before is used. A checkpoint of other shapes is an error: ValueError.
        """
        while steps := self.steps():
            step = steps[-1]
            try:
                return self.restore(step, abstract_state), step
            except ShapeMismatch:
                raise
            except Exception as error:
                aside = os.path.join(self.directory, f'{step}.unreadable')
                logging.warning('Checkpoint %d in %s cannot be read (%s); it is set aside as %s.', step, self.directory, error, aside)
                if jax.process_index() == 0:
                    os.rename(os.path.join(self.directory, str(step)), aside)
                self._manager.reload()
        return None, 0

    def restore(self, step: int, abstract_state):
        """The state saved at `step`. Raises ShapeMismatch listing every array of another shape."""
        saved = self._manager.item_metadata(step)
        check_shapes(saved.tree if hasattr(saved, 'tree') else saved, abstract_state, f'{self.directory}/{step}')
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

    def _failed(self, step, error) -> OSError:
        kept = ', '.join(map(str, self.steps())) or 'none'
        return OSError(
            f'The checkpoint of step {step} could not be written to {self.directory}: {error}. '
            f'Complete checkpoints there: {kept}. Free space or choose another --workdir, then run the same command to go on from the newest.'
        )


class ShapeMismatch(ValueError):
    """A checkpoint whose arrays have other names or shapes than the model's."""


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
    parts = [f'{len(x)} {name}: {"; ".join(x[:4])}' for name, x in (('missing', missing), ('unused', unused), ('of other shape', shapes)) if x]
    raise ShapeMismatch(f'The checkpoint {where} does not fit this model.{classes} {". ".join(parts)}. Use the config it was trained with.')


def read_config(workdir: str) -> dict | None:
    """The config.json that a training run left in its workdir, or None."""
    path = os.path.join(workdir, 'config.json')
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)
