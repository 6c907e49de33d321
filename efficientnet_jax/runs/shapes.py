"""Whether the arrays of a checkpoint are those of the model here, by name, shape and dtype, told as a diff."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from efficientnet_jax.errors import UserError
from efficientnet_jax.runs.integrity import array_name

WEIGHTS = ('params/', 'batch_stats/')


class ShapeMismatch(UserError):
    """A checkpoint whose arrays have other names, shapes or dtypes than the model's."""


def array_types(tree) -> dict[str, tuple[tuple[int, ...], str]]:
    """{'params/stem/kernel': ((3, 3, 3, 32), 'float32'), ...} of a tree of arrays, of ShapeDtypeStruct or of Orbax metadata."""
    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))[0]
    return {array_name(path): (tuple(leaf.shape), np.dtype(leaf.dtype).name) for path, leaf in leaves if hasattr(leaf, 'shape')}


def check_shapes(saved, wanted, where: str, weights_only: bool = True) -> None:
    """Raises ShapeMismatch with the diff unless both trees have the same arrays.

    weights_only: compares params and batch_stats alone, else also the optimizer's state and moving averages.
    """
    have, want = (
        {name: kind for name, kind in array_types(tree).items() if not weights_only or name.startswith(WEIGHTS)} for tree in (saved, wanted)
    )
    missing, unused = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    both = sorted(want.keys() & have.keys())
    shapes = [f'{k} {have[k][0]} there, {want[k][0]} here' for k in both if want[k][0] != have[k][0]]
    dtypes = [f'{k} {have[k][1]} there, {want[k][1]} here' for k in both if want[k][0] == have[k][0] and want[k][1] != have[k][1]]
    kinds = (('missing', missing), ('unused', unused), ('of other shape', shapes), ('of other dtype', dtypes))
    parts = [f'{len(names)} {kind}: {"; ".join(names[:4])}' for kind, names in kinds if names]
    if parts:
        raise ShapeMismatch(
            f'The checkpoint {where} does not fit this model.{_classes(have, want)} {". ".join(parts)}. Use the config (and, where only '
            'opt_state differs, the version of optax) it was trained with.'
        )


def _classes(have: dict, want: dict) -> str:
    """The most frequent reason, in words."""
    classifier = 'params/classifier/bias'
    there, here = have.get(classifier), want.get(classifier)
    if there is None or here is None or there == here:
        return ''
    return f' It was trained for {there[0][0]} classes; the data set here has {here[0][0]}.'
