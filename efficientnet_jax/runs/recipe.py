"""Which options of a config decide the result of a run, and which the network."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Options that say how a run is run and watched, not what it computes: they may change when it is resumed.
RUNTIME_KNOBS = (
    'mesh', 'data_dir', 'eval_batch_size', 'eval_every_epochs', 'checkpoint_every_epochs', 'keep_last', 'keep_best', 'log_every_steps',
    'nan_rollbacks', 'max_corrupt', 'max_pixels', 'cache', 'export', 'study', 'supernet', 'plan', 'search',
)  # fmt: skip

# Options that change what a trained network computes; the other preprocessing is the run's own
# (its record), and so is one of these that is None here.
NETWORK_KNOBS = ('model', 'depth', 'width', 'stages', 'resolution', 'eval_crop_fraction', 'dtype', 'dataset')
OWN_WHEN_NONE = ('resolution', 'eval_crop_fraction')


def recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that decides the result."""
    return {key: value for key, value in config.items() if key not in RUNTIME_KNOBS}


def config_hash(config: dict[str, Any]) -> str:
    """12 hexadecimal digits of the recipe."""
    return hashlib.sha256(json.dumps(recipe_of(config), sort_keys=True).encode()).hexdigest()[:12]


def flatten(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'augment.crop': 'random', ...}"""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value})
    return flat


def network_name(config: dict[str, Any]) -> str:
    """The model with what scales it: 'efficientnet_b0 (depth 0.2, width 0.25)'."""
    scaled = [f'{option} {config[option]:g}' for option in ('depth', 'width') if config.get(option) not in (None, 1)]
    own = ['own stages'] if config.get('stages') else []
    return f'{config["model"]} ({", ".join([*scaled, *own])})' if scaled or own else str(config['model'])
