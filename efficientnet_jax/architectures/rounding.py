"""The released rounding of filters and repeats after scaling.

Source: tensorflow/tpu models/official/efficientnet/efficientnet_model.py (round_filters, round_repeats).
"""

from __future__ import annotations

import math


def round_filters(filters: int, width: float, divisor: int = 8) -> int:
    """Number of filters after width scaling: nearest multiple of `divisor`, never more than 10 % below filters * width."""
    if width == 1.0:
        return filters
    scaled = filters * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float, rounding: str = 'ceil') -> int:
    """Number of block repeats after depth scaling. The released models round up; 'round' is for studies (half rounds up)."""
    if rounding == 'ceil':
        return math.ceil(depth * repeats)
    return max(1, math.floor(depth * repeats + 0.5))
