"""Architectures as data: one row a stage, one dataclass a model. Standard library only.

The rows are those of the authors' code; models, counters, studies and the search all walk `Architecture.blocks()`.
"""

from __future__ import annotations

import difflib

from efficientnet_jax.architectures.families import ARCHITECTURES
from efficientnet_jax.architectures.rows import OPS, SKIPS, Architecture, Block, Stage, stages
from efficientnet_jax.errors import UserError

__all__ = ['ARCHITECTURES', 'OPS', 'SKIPS', 'Architecture', 'Block', 'Stage', 'get', 'names', 'stages']


def names() -> tuple[str, ...]:
    """All model names."""
    return tuple(ARCHITECTURES)


def get(name: str) -> Architecture:
    """The architecture of that name. Raises UserError with near names."""
    if name not in ARCHITECTURES:
        short = [full for full in ARCHITECTURES if name and full.endswith(f'_{name}')]  # 'b3' for efficientnet_b3
        near = short[:3] or difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.5) or names()
        raise UserError(f'model={name!r} is not an architecture; near names: {", ".join(near)}. All: architectures.names().')
    return ARCHITECTURES[name]
