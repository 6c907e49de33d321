"""Width, depth and resolution scaling of an architecture: EfficientNet, arXiv 1905.11946, section 3. Standard library only.

The rounding rules are in architectures/rounding.py.
"""

from __future__ import annotations

import dataclasses

from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError

# Grid search on B0 with phi = 1 (arXiv 1905.11946, section 4): depth, width, resolution.
ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15


def scale(architecture: Architecture, *, depth: float = 1.0, width: float = 1.0, resolution: float = 1.0) -> Architecture:
    """Scales an architecture by three multipliers, each relative to what it already has.

    `resolution` is a multiplier of the side in pixels, rounded to the nearest pixel: 1.3 makes 224 to 291.
    For a size in pixels use `dataclasses.replace(architecture, resolution=pixels)`.
    Raises UserError for a multiplier that is not in (0, 16].
    """
    for knob, value in (('depth', depth), ('width', width), ('resolution', resolution)):
        if not 0 < value <= 16:
            raise UserError(
                f'{knob}={value} must be a multiplier in (0, 16]; for pixels use dataclasses.replace(architecture, resolution=...).'
            )
    return dataclasses.replace(
        architecture,
        depth=architecture.depth * depth,
        width=architecture.width * width,
        resolution=round(architecture.resolution * resolution),
    )


def compound(architecture: Architecture, phi: float, alpha: float = ALPHA, beta: float = BETA, gamma: float = GAMMA) -> Architecture:
    """Compound scaling: depth alpha^phi, width beta^phi, resolution gamma^phi (arXiv 1905.11946, equation 3).

    The released B1-B7 are not integer powers of the paper's coefficients: for those take `architectures.get('efficientnet_b3')`.
    """
    return scale(architecture, depth=alpha**phi, width=beta**phi, resolution=gamma**phi)
