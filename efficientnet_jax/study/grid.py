"""Step 1 of compound scaling: the grid of alpha, beta, gamma under alpha * beta^2 * gamma^2 = 2 (arXiv 1905.11946, section 3.3).

The constraint can be held by the network that is built instead of by the three numbers: rounding to whole blocks, multiples of 8
filters and of some pixels moves the real ratio of B0's nominal points to between 1.89 and 3.25 (depth rounded up, 8 pixels).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from efficientnet_jax import scaling
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError
from efficientnet_jax.study import points
from efficientnet_jax.study.points import Point
from efficientnet_jax.study.tables import label

CONSTRAINTS = ('nominal', 'macs', 'cycles')
DEPTH_ROUNDINGS = ('ceil', 'round')
PAPER = (scaling.ALPHA, scaling.BETA, scaling.GAMMA)


def factors(highest: float, step: float) -> list[float]:
    """1, 1 + step, ... up to `highest`, without the noise of binary fractions."""
    return [round(1 + i * step, 10) for i in range(int((highest - 1) / step + 1e-9) + 1)]


def nominal_ratio(alpha: float, beta: float, gamma: float) -> float:
    """alpha * beta^2 * gamma^2, which the paper sets to 2: multiply-adds over the base, but for rounding."""
    return alpha * beta**2 * gamma**2


def grid(
    base: Architecture,
    *,
    ratio: float = 2.0,
    tolerance: float = 0.1,
    highest: float = 1.4,
    step: float = 0.05,
    constraint: str = 'nominal',
    cost: Callable[[Architecture], float] | None = None,
    depth_rounding: str = 'ceil',
    resolution_multiple: int = 8,
) -> tuple[list[Point], int]:
    """(points, how many of alpha, beta, gamma they stand for): each network once, the cheapest first.

    A point is in when its ratio is within `tolerance` of `ratio`: alpha * beta^2 * gamma^2 for constraint 'nominal', else the network's
    cost (a function of the architecture, multiply-adds or cycles) over that of the base. Of the triples that make one network the one
    whose product is nearest to `ratio` (or the paper's 1.2, 1.1, 1.15) names it, and a note says how many others there are.

    Raises UserError when no point meets the constraint, with the nearest.
    """
    base = dataclasses.replace(base, depth_rounding=depth_rounding)
    axis = factors(highest, step)
    triples = list(itertools.product(axis, axis, axis))
    if constraint == 'nominal':
        ratios = {triple: nominal_ratio(*triple) for triple in triples}
    else:
        base_cost, of_network, ratios = cost(base), {}, {}
        for triple in triples:
            point = _point(base, triple, resolution_multiple)
            if point.network not in of_network:
                of_network[point.network] = cost(point.architecture) / base_cost
            ratios[triple] = of_network[point.network]
    inside = [triple for triple in triples if abs(ratios[triple] - ratio) <= tolerance + 1e-9]
    if not inside:
        nearest = min(triples, key=lambda triple: abs(ratios[triple] - ratio))
        raise UserError(
            f'study.constraint={constraint} has no point with a ratio of {ratio} +- {tolerance}; the nearest is {ratios[nearest]:.3f} at '
            f'alpha, beta, gamma = {nearest}. Set study.tolerance={abs(ratios[nearest] - ratio) + 0.005:.2f}, a smaller study.step or study.highest.'
        )
    return _networks(base, inside, ratio, resolution_multiple), len(inside)


def networks(base: Architecture, *, highest: float, step: float, depth_rounding: str, resolution_multiple: int) -> list[Architecture]:
    """All that a constraint on the real cost has to look at, the base among them."""
    base = dataclasses.replace(base, depth_rounding=depth_rounding)
    axis = factors(highest, step)
    made = [_point(base, triple, resolution_multiple).architecture for triple in itertools.product(axis, axis, axis)]
    return [base, *{points.network(architecture): architecture for architecture in made}.values()]


def _networks(base, triples, ratio: float, resolution_multiple: int) -> list[Point]:
    same: dict[str, list] = {}
    for triple in triples:
        same.setdefault(_point(base, triple, resolution_multiple).network, []).append(triple)
    made = []
    for group in same.values():
        named = PAPER if PAPER in group else min(group, key=lambda triple: abs(nominal_ratio(*triple) - ratio))
        note = f'also {len(group) - 1} other triple{"s" if len(group) > 2 else ""}' if len(group) > 1 else ''
        made.append(dataclasses.replace(_point(base, named, resolution_multiple), note=note))
    return sorted(made, key=lambda point: points.counts(point.architecture).macs)


def _point(base: Architecture, triple: tuple[float, float, float], resolution_multiple: int) -> Point:
    alpha, beta, gamma = triple
    return Point(base, 'grid', label(*triple), alpha, beta, gamma, resolution_multiple)
