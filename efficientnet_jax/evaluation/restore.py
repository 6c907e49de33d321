"""The network and weights of a workdir, or of config.init_from where it holds no checkpoint."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.inference import Inference, inference_of
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.evaluation.score import Weights
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.workdir import warn_of_differences
from efficientnet_jax.weights import init_from


class Restored(NamedTuple):
    """Weights on devices, with what computes with them."""

    inference: Inference
    weights: Weights  # 'eval', and 'eval_ema' where there is a moving average
    step: int  # 0: of init_from
    class_names: tuple[str, ...] | None

    @property
    def best(self):
        """The variables to predict with: the moving average where there is one."""
        return self.weights.get('eval_ema', self.weights['eval'])


def restore(config, workdir: str | None, num_classes: int | None = None, best: bool = False, split: bool = True) -> Restored:
    """The newest (or best evaluated) checkpoint of a workdir, else the weights that config.init_from names.

    num_classes: that the weights must have; None: whatever they have. split: over the config's mesh, else over all devices by the batch.
    Raises UserError where there are no weights, or those of another number of classes, before anything of a data set is opened.
    """
    directory = None if workdir is None else os.path.join(os.path.abspath(workdir), 'checkpoints')
    trained = directory is not None and os.path.isdir(directory)
    if not trained and config.init_from is None:
        raise UserError(
            f'workdir={workdir} has no checkpoints; train there first, give the --workdir of a training run, or name weights with '
            '--config.init_from.'
        )
    if trained:
        warn_of_differences(workdir, as_dict(config))
    start = init_from.start(config, workdir, num_classes, new_head=trained)
    if start is None:
        if workdir is not None and init_from.has_checkpoint(workdir):
            raise UserError(
                f'workdir={workdir} has checkpoints, but its run.json does not say of which network. Bring run.json or model.json back from a '
                'copy, or give the training command again, which writes both anew.'
            )
        raise UserError(f'workdir={workdir} has no complete checkpoint; train there first, or give the --workdir of a training run.')
    inference = inference_of(config, num_classes or start.num_classes, start, split=split)
    if not trained:
        return Restored(inference, {'eval': inference.put_variables(start.variables)}, 0, start.class_names)
    # Weights alone: the optimizer's state depends on settings that this mode does not need to repeat, such as frozen layers.
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f'workdir={workdir} has no complete checkpoint; train there first, or give the --workdir of a training run.')
        saved, step = checkpoints.restore_readable_weights(inference.abstract_variables(), best)
    weights = {'eval': {name: saved[name] for name in ('params', 'batch_stats')}}
    if saved.get('ema') is not None:
        weights['eval_ema'] = saved['ema']
    return Restored(inference, weights, step, start.class_names)
