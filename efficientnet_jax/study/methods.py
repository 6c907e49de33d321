"""Ways to scale a network to a budget: each takes one number s, about the factor of multiply-adds, and solve() finds it after rounding.

depth, width, resolution: one dimension. compound: alpha^phi, beta^phi, gamma^phi of EfficientNet (arXiv 1905.11946). fast: mostly
width, so that activations, which memory-bound chips pay for, grow like sqrt(s) (Dollar et al. 2021, arXiv 2103.06877, alpha = 0.8).
lacs: latency-aware coefficients that were searched for TPUs (Li et al. 2021, arXiv 2102.05610), here between the released points.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from efficientnet_jax import scaling
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError
from efficientnet_jax.study import points
from efficientnet_jax.study.points import Point
from efficientnet_jax.study.tables import label

FAST_ALPHA = 0.8  # arXiv 2103.06877, section 5: 1/3 is compound scaling, 1 width alone
# (width, depth, pixels) of efficientnet-x-b0 to b7 for TPU: tensorflow/tpu models/official/efficientnet/tpu/efficientnet_x_builder.py.
LACS = (
    (1.0, 1.0, 224), (1.05, 1.09, 229), (1.13, 1.29, 244), (1.27, 1.62, 263), (1.54, 2.38, 299), (1.96, 2.76, 332), (2.75, 3.01, 328),
    (3.26, 3.44, 350),
)  # fmt: skip


class Multipliers(NamedTuple):
    """Of scaling.scale: layers, channels, pixels of a side."""

    depth: float
    width: float
    resolution: float


def _compound(s: float) -> Multipliers:
    phi = math.log(s) / math.log(scaling.ALPHA * scaling.BETA**2 * scaling.GAMMA**2)
    return Multipliers(scaling.ALPHA**phi, scaling.BETA**phi, scaling.GAMMA**phi)


def _fast(s: float, alpha: float = FAST_ALPHA) -> Multipliers:
    return Multipliers(s ** ((1 - alpha) / 2), s ** (alpha / 2), s ** ((1 - alpha) / 4))


def _lacs(s: float) -> Multipliers:
    """Logarithms of the multipliers, linear in that of depth * width^2 * resolution^2 between the released points and beyond both ends."""
    table = [Multipliers(depth, width, pixels / 224) for width, depth, pixels in LACS]
    sizes = [math.log(m.depth * m.width**2 * m.resolution**2) for m in table]
    i = next((i for i, size in enumerate(sizes[1:-1]) if math.log(s) < size), len(sizes) - 2)
    part = (math.log(s) - sizes[i]) / (sizes[i + 1] - sizes[i])
    return Multipliers(*(a * (b / a) ** part for a, b in zip(table[i], table[i + 1], strict=True)))


METHODS: dict[str, Callable[[float], Multipliers]] = {
    'depth': lambda s: Multipliers(s, 1.0, 1.0),
    'width': lambda s: Multipliers(1.0, math.sqrt(s), 1.0),
    'resolution': lambda s: Multipliers(1.0, 1.0, math.sqrt(s)),
    'compound': _compound,
    'fast': _fast,
    'lacs': _lacs,
}
MEASURES = ('macs', 'params', 'activations', 'cycles')
LIMIT = 16.0  # of a multiplier, scaling.scale


class Options(NamedTuple):
    """Of every method: see the knobs of the same names in configs/default.py."""

    resolution_multiple: int = 8
    max_resolution: int | None = None
    late_stages: int | None = None


PLAIN = Options()


def scaled(base: Architecture, method: str, s: float, options: Options = PLAIN) -> Point:
    """The base scaled by a method with the number s."""
    return Point(base, method, '', *METHODS[method](s), *options)


def solve(
    base: Architecture, method: str, target: float, cost: Callable[[Architecture], float], options: Options = PLAIN, most: int | None = None
) -> Point:
    """The point of a method whose cost after rounding is nearest to the target.

    cost: of an architecture, growing with it. most: calls of it, where a compile is behind each; what comes out is within 2 % of the
    target, or the nearest of those that were looked at.
    Raises UserError when the method does not reach the target within multipliers of 1/16 to 16, or cannot change the cost at all.
    """
    found = _by_halving(base, method, target, cost, options) if most is None else _by_steps(base, method, target, cost, options, most)
    point = tidy(scaled(base, method, found, options))
    return dataclasses.replace(point, label=label(point.depth, point.width, point.resolution))


def _by_halving(base, method, target, cost, options) -> float:
    """The number s of solve's point."""
    low, high = _range(method)
    ends = [cost(scaled(base, method, s, options).architecture) for s in (low, high)]
    if ends[0] == ends[1]:
        raise UserError(
            f'study.target={target:.4g} cannot be met by method {method}, which leaves {base.name} at {ends[0]:.4g} whatever its size.'
        )
    if not ends[0] <= target <= ends[1]:
        raise UserError(
            f'study.target={target:.4g} must be between {ends[0]:.4g} and {ends[1]:.4g} for method {method} of {base.name} (multipliers of 1/16 to 16).'
        )
    best = min(zip(ends, (low, high), strict=True), key=lambda end: abs(math.log(end[0] / target)))
    for _ in range(80):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        found = cost(scaled(base, method, middle, options).architecture)
        best = min(best, (found, middle), key=lambda pair: abs(math.log(pair[0] / target)))
        low, high = (middle, high) if found <= target else (low, middle)
        if found == target or high / low < 1 + 1e-9:
            break
    return best[1]


def _by_steps(base, method, target, cost, options, most) -> float:
    """As _by_halving, from the base on by secants of log cost over log s, so that few and no huge networks are looked at."""
    low, high = map(math.log, _range(method))
    base_cost = cost(scaled(base, method, 1.0, options).architecture)
    if not math.isfinite(base_cost):
        raise UserError(f'{base.name} itself does not fit into the memory of study.chip; lower study.cycles_batch.')
    seen = {0.0: math.log(base_cost)}  # log s: log cost
    kept, wanted = {scaled(base, method, 1.0, options).network: seen[0.0]}, math.log(target)
    # Cycles grow with s about as multiply-adds do, which s counts; who asks for far more gets no compile of a monster.
    if not low - math.log(4) <= wanted - seen[0.0] <= high + math.log(4):
        raise UserError(
            f'study.target={target:.4g} is too far from the {base_cost:.4g} of {base.name} for method {method}, whose multipliers are 1/16 to 16.'
        )
    for _ in range(40):
        if min(abs(found - wanted) for found in seen.values()) < 0.02:
            break
        at = _next_step(seen, wanted, low, high)
        if at in seen:
            raise UserError(f'study.target={target:.4g} is not reached by method {method} of {base.name} with multipliers of 1/16 to 16.')
        point = scaled(base, method, math.exp(at), options)
        if point.network not in kept and len(kept) == most:
            break
        if point.network not in kept:
            kept[point.network] = math.log(cost(point.architecture))
        seen[at] = kept[point.network]
    return math.exp(min(seen, key=lambda at: abs(seen[at] - wanted)))


def _next_step(seen: dict[float, float], wanted: float, low: float, high: float) -> float:
    """Where to look next: between the two that enclose the target, else from the nearest on, with the slope of the two nearest."""
    below = max((at for at, found in seen.items() if found <= wanted), default=None)
    above = min((at for at, found in seen.items() if found > wanted), default=None)
    if below is not None and above is not None:
        part = (wanted - seen[below]) / (seen[above] - seen[below]) if seen[above] < math.inf else 0.5
        return below + min(0.9, max(0.1, part)) * (above - below)  # rounding makes steps: never stay at one end
    near, *others = sorted(seen, key=lambda at: abs(seen[at] - wanted))
    slope = (seen[near] - seen[others[0]]) / (near - others[0]) if others else 1.0
    step = (wanted - seen[near]) / max(slope, 0.25)
    return min(high, max(low, near + min(math.log(4), max(-math.log(4), step))))


def _range(method: str) -> tuple[float, float]:
    """The numbers s between which all multipliers are in 1/16 to 16 (found by halving: each grows with s)."""

    def inside(log_s: float) -> bool:
        return all(1 / LIMIT <= multiplier <= LIMIT for multiplier in METHODS[method](math.exp(log_s)))

    ends = []
    for sign in (-1, 1):
        near, far = 0.0, 200.0
        for _ in range(100):
            middle = (near + far) / 2
            near, far = (middle, far) if inside(sign * middle) else (near, middle)
        ends.append(math.exp(sign * near))
    return ends[0], ends[1]


def tidy(point: Point) -> Point:
    """The same network with the shortest multipliers that make it: 1.17, not 1.1666666."""
    built = point.network
    for name in Multipliers._fields:
        for digits in range(10):
            short = dataclasses.replace(point, **{name: round(getattr(point, name), digits)})
            if getattr(short, name) > 0 and short.network == built:
                point = short
                break
    return point


def costs(measure: str, num_classes: int = 1000, cycles: Callable[[Architecture], float] | None = None) -> Callable[[Architecture], float]:
    """A cost function of architectures by its name in MEASURES."""
    if measure == 'cycles':
        return cycles
    return lambda architecture: getattr(points.counts(architecture, num_classes), measure)


def parse_target(text: str) -> tuple[str, tuple[float, ...]]:
    """'macs:4e8,1.8e9' -> ('macs', (4e8, 1.8e9)). Raises UserError with the form that is wanted."""
    measure, _, values = text.partition(':')
    try:
        targets = tuple(float(value) for value in values.split(','))
    except ValueError:
        targets = ()
    if measure not in MEASURES or not targets or not all(0 < target < math.inf for target in targets):
        raise UserError(
            f'study.target={text!r} must be one of {", ".join(MEASURES)}, a colon and positive numbers: macs:1.8e9 or params:1e7,2e7.'
        )
    return measure, targets
