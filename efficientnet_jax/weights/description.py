"""What this project writes beside arrays, as JSON: the architecture with its flavour, the preprocessing and the classes' names.

It comes back from files of strangers, so each field is checked before a network is walked.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, NamedTuple

from efficientnet_jax.architectures import Architecture, Stage, stages
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.models.batch_norm import ACTIVATIONS
from efficientnet_jax.weights.limits import printable

VERSION = 1
MAX_CLASSES = 1_000_000
MAX_BLOCKS = 1000
MAX_NAME = 512  # characters, of a model or class
MAX_TEXT = 50  # characters of a wrong value that a message shows


class Range(NamedTuple):
    """Numbers that a field may have. kind: int or float; a float may be written as a whole number."""

    kind: type
    least: float
    most: float
    none: bool = False  # whether it may be None

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them. NaN is not."""
        if value is None:
            return self.none
        return type(value) in ((int,) if self.kind is int else (int, float)) and self.least <= value <= self.most

    def __str__(self) -> str:
        number = 'a whole number' if self.kind is int else 'a number'
        return f'{number} from {self.least} to {self.most}{" or null" if self.none else ""}'


FILTERS = Range(int, 1, 65536)
RESOLUTION = Range(int, 1, 8192)
ARCHITECTURE = {
    'width': Range(float, 0.01, 16),
    'depth': Range(float, 0.01, 16),
    'resolution': RESOLUTION,
    'dropout': Range(float, 0, 0.999),
    'drop_path': Range(float, 0, 0.999),
    'activation': tuple(ACTIVATIONS),
    'stem': FILTERS,
    'stem_kernel': Range(int, 1, 31),
    'stem_pool': (True, False),
    'head': Range(int, 1, 65536, none=True),
    'fixed_stem_and_head': (True, False),
    'depth_rounding': ('ceil', 'round'),
    'divisor': Range(int, 1, 1024),
    'padding': ('same', 'symmetric'),
    'bn_momentum': Range(float, 0, 1),
    'bn_epsilon': Range(float, 0, 1),
}  # a Range, or the values themselves


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


def parse(content: Any, where: str) -> tuple[Architecture, int, Preprocess | None, tuple[str, ...] | None]:
    """(architecture, number of classes, preprocess, class names). Raises UserError with the file, the field and the rule."""
    try:
        return _parsed(content)
    except UserError as error:
        raise UserError(f'{where}: its description is wrong: {printable(error, 500)}') from error
    except Exception as error:
        text = f'{type(error).__name__}: {printable(error)}'
        raise UserError(f'{where} was described by another version of this project ({text}); use the version that wrote it.') from error


def _parsed(content):
    if content['version'] != VERSION:
        raise ValueError(f'version {str(content["version"])[:MAX_TEXT]}, here {VERSION}')
    architecture = _architecture(content['architecture'])
    num_classes = content['num_classes']
    if not Range(int, 1, MAX_CLASSES).holds(num_classes):
        raise _wrong('num_classes', num_classes, Range(int, 1, MAX_CLASSES))
    preprocess = content['preprocess']
    if preprocess is not None:
        preprocess = _preprocess(preprocess)
    names = content['class_names']
    if names is not None:
        if not isinstance(names, list) or len(names) != num_classes or not all(_is_name(name) for name in names):
            raise UserError(f'class_names must be null or {num_classes} texts of one line, at most {MAX_NAME} characters each.')
        names = tuple(names)
    return architecture, num_classes, preprocess, names


def _architecture(fields: dict[str, Any]) -> Architecture:
    rows = [dataclasses.astuple(Stage(**row)) for row in fields['stages'][: MAX_BLOCKS + 1]]
    architecture = Architecture(**(fields | {'stages': stages(rows)}))
    if not _is_name(architecture.name):
        raise _wrong('name', architecture.name, f'a text of one line, at most {MAX_NAME} characters')
    for field, rule in ARCHITECTURE.items():
        value = getattr(architecture, field)
        # `in` alone would take 1 for True and 1.0 for 1.
        fits = rule.holds(value) if isinstance(rule, Range) else any(type(value) is type(one) and value == one for one in rule)
        if not fits:
            raise _wrong(field, value, rule if isinstance(rule, Range) else f'one of {", ".join(json.dumps(one) for one in rule)}')
    blocks = sum(math.ceil(stage.repeats * architecture.depth) for stage in architecture.stages)
    if blocks > MAX_BLOCKS:
        raise _wrong('stages', f'{blocks} blocks', f'at most {MAX_BLOCKS} blocks after depth scaling')
    return architecture


def _preprocess(fields: dict[str, Any]) -> Preprocess:
    for name, values in fields.items():
        if name in ('mean', 'std'):
            if not isinstance(values, list) or not all(Range(float, -1e6, 1e6).holds(value) for value in values):
                raise _wrong(name, values, 'three numbers')
        elif name == 'resolution' and not RESOLUTION.holds(values):
            raise _wrong(name, values, RESOLUTION)
        elif name == 'crop' and type(values) is int and values > 8192:
            raise _wrong(name, values, 'at most 8192 pixels')
    # JSON has lists where the record has tuples.
    record: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Preprocess(**record)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MAX_NAME


def _wrong(field: str, value: Any, rule: Any) -> UserError:
    return UserError(f'{field}={str(value)[:MAX_TEXT]!r} must be {rule}.')
