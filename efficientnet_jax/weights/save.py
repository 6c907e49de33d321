"""Writing weights for other code bases: their names and layouts in safetensors or npz, with a description so that nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from efficientnet_jax import architectures
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import description, layouts, names

CONTAINERS = ('.safetensors', '.npz')


def save(
    variables: dict[str, Any],
    path: str,
    name_or_architecture: str | Architecture,
    format: str = 'timm',
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes variables to a .safetensors or .npz file; `load` gives the same bits back, padding, epsilon and preprocessing included.

    variables: {'params': ..., 'batch_stats': ...} of a module of that architecture; arrays stay float32.
    name_or_architecture: give the module's own architecture (module.architecture): its padding, epsilon and activation are written.
    format: whose names the arrays get: 'timm', 'torchvision', 'efficientnet_pytorch', 'keras', 'tensorflow' or 'own'.
    Raises UserError for another suffix, a format that lacks the architecture, and variables that are not the architecture's.
    """
    if not path.endswith(CONTAINERS):
        raise UserError(f'path={path!r} must end in {" or ".join(CONTAINERS)}.')
    architecture = architectures.get(name_or_architecture) if isinstance(name_or_architecture, str) else name_or_architecture
    if format not in names.NAMINGS:
        raise UserError(f'format={format!r} must be one of {", ".join(names.known(architecture))}.')
    leaves = jax.tree_util.tree_flatten_with_path({key: variables[key] for key in ('params', 'batch_stats')})[0]
    ours = {'/'.join(key.key for key in keys): np.asarray(leaf) for keys, leaf in leaves}
    bias = ours.get('params/classifier/bias')
    num_classes = 1000 if bias is None else len(bias)
    rows = names.arrays(architecture, format, num_classes)
    differ = [row.path for row in rows if row.path not in ours or ours[row.path].shape != row.shape]
    unused = sorted(ours.keys() - {row.path for row in rows})
    if differ or unused:
        listed = ', '.join((differ + unused)[:6])
        raise UserError(
            f'variables are not those of {architecture.name}: {len(differ)} missing or of other shape, {len(unused)} unused ({listed}). '
            'Give the architecture that the module has (module.architecture).'
        )
    layout = names.NAMINGS[format].layout
    theirs: dict[str, Any] = {row.theirs: np.ascontiguousarray(layouts.to_theirs(ours[row.path], row.kind, layout)) for row in rows}
    note = json.dumps(description.describe(architecture, num_classes, preprocess, class_names))
    partial = path + '.partial'  # a run that is killed here leaves no half file under the final name
    if path.endswith('.npz'):
        with open(partial, 'wb') as f:
            np.savez(f, efficientnet_jax=np.array(note), **theirs)
    else:
        from safetensors.numpy import save_file

        save_file(theirs, partial, metadata={'format': 'pt', 'efficientnet_jax': note})
    os.replace(partial, path)
