"""How other code bases lay out the axes of an array: 'torch', 'keras' or 'own'."""

from __future__ import annotations

import numpy as np


def to_ours(array: np.ndarray, kind: str, layout: str) -> np.ndarray:
    """An array of another code base in the layout used here: HWIO convolutions, [k, k, 1, C] depthwise, [in, out] dense."""
    if layout == 'torch':
        if kind in ('conv', 'depthwise'):
            return array.transpose(2, 3, 1, 0)
        if kind == 'gate':
            return array[:, :, 0, 0].T
        return array.T if kind == 'classifier' else array
    if layout == 'keras':
        if kind == 'depthwise':
            return array.transpose(0, 1, 3, 2)
        return array[0, 0] if kind == 'gate' else array
    return array


def to_theirs(array: np.ndarray, kind: str, layout: str) -> np.ndarray:
    """The inverse of `to_ours`."""
    if layout == 'torch':
        if kind in ('conv', 'depthwise'):
            return array.transpose(3, 2, 0, 1)
        if kind == 'gate':
            return array.T[:, :, None, None]
        return array.T if kind == 'classifier' else array
    if layout == 'keras':
        if kind == 'depthwise':
            return array.transpose(0, 1, 3, 2)
        return array[None, None] if kind == 'gate' else array
    return array
