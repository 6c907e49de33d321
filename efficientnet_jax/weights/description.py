"""What this project writes beside arrays, as JSON: the architecture with its flavour, the preprocessing and the classes' names."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError

VERSION = 1


def describe(architecture: Architecture, num_classes: int, preprocess: Preprocess | None = None, class_names=None) -> dict[str, Any]:
    """Plain JSON types; `parse` is the inverse."""
    content = {
        'version': VERSION,
        'architecture': dataclasses.asdict(architecture),
        'num_classes': num_classes,
        'preprocess': None if preprocess is None else dataclasses.asdict(preprocess),
        'class_names': None if class_names is None else list(class_names),
    }
    return json.loads(json.dumps(content))


def _tuples(recipe: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the record has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in recipe.items()}


def parse(content: dict[str, Any], where: str) -> tuple[Architecture, int, Preprocess | None, tuple[str, ...] | None]:
    """(architecture, number of classes, preprocess, class names). Raises UserError for what this version did not write."""
    try:
        fields = dict(content['architecture'])
        fields['stages'] = tuple(Stage(**stage) for stage in fields['stages'])
        recipe = content['preprocess']
        if recipe is not None:
            recipe = Preprocess(**_tuples(recipe))
        names = content['class_names']
        return Architecture(**fields), int(content['num_classes']), recipe, None if names is None else tuple(names)
    except (KeyError, TypeError) as error:
        raise UserError(f'{where} was described by another version of this project ({error}); use the version that wrote it.') from error
