"""EfficientNets in JAX/Flax: models, published recipe, scaling studies, architecture search.

Importing the package imports nothing else; take the module you need, for example `efficientnet_jax.models`.
"""

__version__ = '0.1.0'
