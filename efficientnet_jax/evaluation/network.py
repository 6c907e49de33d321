"""The network of a config: its architecture, its module and what its images go through."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import jax.numpy as jnp

from efficientnet_jax import architectures, models, scaling
from efficientnet_jax.data.preprocess import NORMALISATIONS, Preprocess
from efficientnet_jax.runs import options

DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}


class Network(NamedTuple):
    """A module and how images are prepared for it."""

    module: models.MBConvNet
    preprocess: Preprocess


def network_of(config, num_classes: int, start=None) -> Network:
    """start: weights.init_from.Start, whose flavour and preprocessing replace the config's; None from scratch.

    Raises UserError for an option of the network that cannot work.
    """
    options.check(config)
    preprocess = preprocess_of(config, None if start is None else start.preprocess)
    flavour = {} if start is None else start.flavour
    architecture = dataclasses.replace(architecture_of(config), resolution=preprocess.resolution, **flavour)
    return Network(models.build(architecture, num_classes, DTYPES[config.dtype]), preprocess)


def architecture_of(config) -> architectures.Architecture:
    """The named architecture with the config's stages, scaling, resolution, dropout, drop_path and bn_momentum where they are set."""
    overrides = {knob: config[knob] for knob in ('resolution', 'dropout', 'drop_path', 'bn_momentum') if config[knob] is not None}
    if config.stages is not None:
        overrides['stages'] = architectures.stages(config.stages)
    return scaling.scale(dataclasses.replace(architectures.get(config.model), **overrides), depth=config.depth, width=config.width)


def preprocess_of(config, of_weights: Preprocess | None = None) -> Preprocess:
    """How images are prepared: the config's options, or the weights' own where only resolution and eval_crop_fraction override."""
    if of_weights is not None:
        overrides = {'resolution': config.resolution, 'crop': config.eval_crop_fraction}
        return dataclasses.replace(of_weights, **{knob: value for knob, value in overrides.items() if value is not None})
    crop = config.eval_crop_padding if config.eval_crop_fraction is None else config.eval_crop_fraction
    resolution = architecture_of(config).resolution
    return Preprocess(resolution, crop, config.interpolation, **NORMALISATIONS[config.normalisation])


def as_dict(config) -> dict[str, Any]:
    """A config as plain JSON types."""
    return json.loads(config.to_json())
