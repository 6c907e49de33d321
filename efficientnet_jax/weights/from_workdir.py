"""Weights of a training run of this project, and what its record says they are; the model.json of an export says the same."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax
import numpy as np

from efficientnet_jax.architectures import Architecture
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import record, storage
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.weights import description

DESCRIPTION = 'model.json'  # in the folder of an export


def write_description(folder: str, architecture: Architecture, num_classes: int, preprocess: Preprocess, class_names=None) -> None:
    """Writes FOLDER/model.json, from which what serves an export knows the model."""
    content = description.describe(architecture, num_classes, preprocess, class_names)
    storage.write_json(os.path.join(folder, DESCRIPTION), content)


def read_description(workdir: str | None) -> dict[str, Any] | None:
    """What the network of a workdir is, from which predict, evaluate and weights.load know it without the weights it began with."""
    return None if workdir is None else record.read(workdir)['network']


def arrays(path: str) -> tuple[dict[str, np.ndarray], str]:
    """({'params/stem/kernel': ...}, workdir) of the best checkpoint of a workdir, or of the checkpoint WORKDIR/checkpoints/STEP.

    The moving average where there is one. Raises UserError without a complete checkpoint, checkpoint.Damaged when its bits changed.
    """
    path = os.path.abspath(path)
    inside = os.path.isdir(os.path.join(path, 'checkpoints'))
    directory = os.path.join(path, 'checkpoints') if inside else os.path.dirname(path)
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        if inside and not checkpoints.steps():
            raise UserError(f'{path} has no complete checkpoint yet; train on, or name another workdir.')
        saved = checkpoints.restore_readable_weights(best=True)[0] if inside else checkpoints.restore_weights(int(os.path.basename(path)))
    chosen = saved.get('ema', saved)
    leaves = jax.tree_util.tree_flatten_with_path(chosen)[0]
    return {'/'.join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}, os.path.dirname(directory)


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """(arrays by their names here, description) of a workdir or a checkpoint in it."""
    found, workdir = arrays(path)
    return found, read_description(workdir)
