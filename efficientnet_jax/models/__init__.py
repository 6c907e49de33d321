"""Models in Linen. Needs jax and flax only; import one with `efficientnet_jax.models.build('efficientnet_b0')`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from efficientnet_jax import architectures
from efficientnet_jax.errors import UserError
from efficientnet_jax.models.mbconvnet import REMAT, MBConvNet

__all__ = ['REMAT', 'MBConvNet', 'build']


def build(
    name_or_architecture: str | architectures.Architecture, num_classes: int = 1000, dtype: Any = jnp.float32, **options: Any
) -> MBConvNet:
    """The Linen module of a named or given architecture.

    `module.init(rngs, images, train=False)`; `module.apply(variables, images, train=...)` takes normalised images [N, H, W, 3]
    and returns float32 logits [N, num_classes]; `features=True` returns a dict of endpoints. Options are MBConvNet's attributes
    (batch_norm_group, remat). Raises UserError with near names for an unknown name, and for num_classes below 1.
    """
    if isinstance(name_or_architecture, str):
        name_or_architecture = architectures.get(name_or_architecture)
    if num_classes < 1:
        raise UserError(f'num_classes={num_classes} must be at least 1.')
    return MBConvNet(name_or_architecture, num_classes=num_classes, dtype=dtype, **options)
