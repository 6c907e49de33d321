"""EfficientNets in JAX/Flax: models, published recipe, scaling studies, architecture search.

    import efficientnet_jax as enj
    enj.models.build('efficientnet_b0'), enj.counting.count(enj.architectures.get('efficientnet_b3')), enj.weights.load('b0.pth')

Importing the package imports neither jax nor anything else: each part is imported when it is first named.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = '0.1.0'
PUBLIC = ('architectures', 'counting', 'data', 'errors', 'models', 'scaling', 'weights')
__all__ = ['__version__', *PUBLIC]


def __getattr__(name: str) -> ModuleType:
    if name in PUBLIC:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public: {", ".join(PUBLIC)}')


def __dir__() -> list[str]:
    return sorted(__all__)
