"""Strict two-sided matching: every array of the file is used and every variable is filled, or the error is the diff."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from efficientnet_jax import architectures
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import layouts, names
from efficientnet_jax.weights.files import File

SHOWN = 6  # arrays of each kind of difference that a message lists


class Mismatch(UserError):
    """A file's arrays are not those of the model. The message is the diff."""


def recognise(file: File, architecture: Architecture) -> str:
    """The naming that most of the file's arrays follow. Raises UserError with what was seen when none explains half of them."""
    scores = {}
    for naming in names.known(architecture):
        theirs = {array.theirs for array in names.arrays(architecture, naming)}
        scores[naming] = len(theirs & file.arrays.keys()) / max(1, len(theirs))
    best = max(scores, key=lambda naming: scores[naming])
    # A model of another depth shares its first blocks, so half of the names is far more than chance.
    if scores[best] < 0.3:
        seen = ', '.join(f'{name} {list(value.shape)}' for name, value in list(file.arrays.items())[:SHOWN])
        raise Mismatch(
            f'{file.where} ({file.kind}, {len(file.arrays)} arrays) has no {architecture.name} in names that are known here '
            f'({", ".join(scores)}). It begins with {seen or "nothing"}.{suggestion(file, architecture)}'
        )
    return best


def match(
    file: File,
    architecture: Architecture,
    naming: str,
    num_classes: int | None = None,
    classifier: bool = True,
    allow_not_finite: bool = False,
) -> dict[str, Any]:
    """{'params': ..., 'batch_stats': ...} as float32.

    num_classes: what the classifier must have; None: what the file has. classifier: False leaves the classifier out, there or not.
    allow_not_finite: takes NaN, infinities and negative variances, which are refused otherwise. Raises Mismatch; UserError for those.
    """
    layout = names.NAMINGS[naming].layout
    found = dict(file.arrays)
    in_file = classes(found, architecture, naming)
    wanted = names.arrays(architecture, naming, in_file or num_classes or 1000)
    if not classifier:
        heads = {array.theirs for array in wanted if array.path.startswith('params/classifier/')}
        found = {name: value for name, value in found.items() if name not in heads}
        wanted = [array for array in wanted if array.theirs not in heads]
    expected = {array.theirs: layouts.to_theirs(np.broadcast_to(np.float32(0), array.shape), array.kind, layout).shape for array in wanted}
    missing = [f'{name} {list(shape)}' for name, shape in expected.items() if name not in found]
    unused = [f'{name} {list(value.shape)}' for name, value in found.items() if name not in expected and not _ignored(name)]
    shapes = [
        f'{name} {list(found[name].shape)} instead of {list(shape)}'
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if missing or unused or shapes:
        diff = '; '.join(_listed(*pair) for pair in (('missing', missing), ('unused', unused), ('of other shape', shapes)) if pair[1])
        raise Mismatch(f'{file.where} does not fit {architecture.name} ({naming} names): {diff}.{suggestion(file, architecture)}')
    if classifier and num_classes is not None and in_file != num_classes:
        raise Mismatch(
            f'{file.where} is for {in_file} classes, num_classes={num_classes} are wanted. To fine-tune it on other classes, '
            'train with --config.init_from: the classifier is then replaced.'
        )
    variables: dict[str, Any] = {'params': {}, 'batch_stats': {}}
    for array in wanted:
        with np.errstate(over='ignore', invalid='ignore'):  # float64 beyond float32 becomes an infinity, which is told below
            value = np.ascontiguousarray(layouts.to_ours(found[array.theirs], array.kind, layout), np.float32)
        if not allow_not_finite:
            _check_finite(value, array, file.where)
        _put(variables, array.path, value)
    return variables


def _check_finite(value: np.ndarray, array: names.Array, where: str) -> None:
    """Raises UserError for values that no trained network has."""
    bad, what = np.count_nonzero(~np.isfinite(value)), 'NaN or infinite'
    if not bad and array.path.endswith('/bn/var'):
        bad, what = np.count_nonzero(value < 0), 'negative, in a variance'
    if bad:
        raise UserError(
            f'{where}: {bad} of {value.size} values of {array.theirs} are {what}: its training diverged or the file is damaged. '
            'weights.load(..., allow_not_finite=True) takes them all the same.'
        )


def suggestion(file: File, architecture: Architecture) -> str:
    """' These arrays are those of ...' where other architectures fit exactly in all names and shapes."""
    fitting = []
    seen = {key: value.shape for key, value in file.arrays.items() if not _ignored(key)}
    for name in architectures.names():
        other = architectures.get(name)
        for naming in names.NAMINGS:
            if not seen or _count(other, naming) != len(seen):
                continue
            wanted = names.arrays(other, naming, classes(file.arrays, other, naming) or 1000)
            layout = names.NAMINGS[naming].layout
            shapes = {a.theirs: layouts.to_theirs(np.broadcast_to(np.float32(0), a.shape), a.kind, layout).shape for a in wanted}
            if shapes == seen and name != architecture.name:
                fitting.append(name)
    return f' These arrays are those of {" or ".join(sorted(set(fitting)))}.' if fitting else ''


@functools.cache
def _count(architecture: Architecture, naming: str) -> int:
    """Arrays of an architecture in another code base; 0 where that has none. Most architectures differ in it."""
    return len(names.arrays(architecture, naming)) if naming in names.known(architecture) else 0


def classes(arrays, architecture: Architecture, naming: str) -> int | None:
    """Classes of the classifier in a file, or None without one."""
    bias = next(a.theirs for a in names.arrays(architecture, naming) if a.path == 'params/classifier/bias')
    return arrays[bias].shape[0] if bias in arrays and arrays[bias].ndim == 1 else None


def _ignored(name: str) -> bool:
    """Keras' own preprocessing layers, which flavours.py reads."""
    return name.split('/')[0].startswith(('normalization', 'rescaling'))


def _listed(word: str, items: list[str]) -> str:
    more = f' and {len(items) - SHOWN} more' if len(items) > SHOWN else ''
    return f'{len(items)} {word}: {", ".join(items[:SHOWN])}{more}'


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *folders, leaf = path.split('/')
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = value
