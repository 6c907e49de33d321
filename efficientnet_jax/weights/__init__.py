"""Weights in and out: every published EfficientNet by its own names, with its own preprocessing."""

from efficientnet_jax.weights.limits import Refused
from efficientnet_jax.weights.load import Pretrained, load
from efficientnet_jax.weights.match import Mismatch
from efficientnet_jax.weights.save import save

__all__ = ['Mismatch', 'Pretrained', 'Refused', 'load', 'save']
