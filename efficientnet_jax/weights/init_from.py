"""What a run begins with: its own description when it has trained before, else the weights that config.init_from names."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from efficientnet_jax.data.imagenet_classes import class_names as imagenet_names
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.runs import record
from efficientnet_jax.weights import description, from_workdir
from efficientnet_jax.weights.load import FLAVOUR, load


class Start(NamedTuple):
    """What a run takes over from the weights that it begins with."""

    flavour: dict[str, Any]  # fields of Architecture that the weights decide
    preprocess: Preprocess | None  # None: the config's
    num_classes: int
    class_names: tuple[str, ...] | None
    variables: dict[str, Any] | None  # without params/classifier where the classes differ; None when a checkpoint has them


def start(config, directory: str | None, num_classes: int | None = None, new_head: bool = False) -> Start | None:
    """None for a run from scratch without a description.

    directory: the workdir; a run that has checkpoints there does not need the weights that it began with any more.
    num_classes: of the data; None takes the weights' own. new_head: other classes get a new classifier instead of an error.
    Raises what weights.load raises, and UserError for a run.json of another version.
    """
    written = from_workdir.read_description(directory)
    if directory is not None and written is not None and has_checkpoint(directory):
        architecture, count, preprocess, names = description.parse(written, os.path.join(directory, record.FILE))
        return Start(_flavour(architecture), preprocess, count, names, None)
    if config.init_from is None:
        return None
    pretrained = load(config.init_from, config.model, config.init_padding, None if new_head else num_classes)
    variables, count = pretrained.variables, pretrained.module.num_classes
    if num_classes is not None and count != num_classes:
        params = {name: value for name, value in variables['params'].items() if name != 'classifier'}
        variables, count = variables | {'params': params}, num_classes
    names = pretrained.class_names or (imagenet_names() if pretrained.module.num_classes == 1000 else None)
    kept = names if count == pretrained.module.num_classes else None
    return Start(_flavour(pretrained.module.architecture), pretrained.preprocess, count, kept, variables)


def has_checkpoint(directory: str) -> bool:
    """Whether a complete one is there. A run that was killed before its first has its description, but still begins with the weights."""
    checkpoints = os.path.join(directory, 'checkpoints')
    return os.path.isdir(checkpoints) and any(name.isdigit() for name in os.listdir(checkpoints))


def _flavour(architecture) -> dict[str, Any]:
    return {field: getattr(architecture, field) for field in FLAVOUR}
