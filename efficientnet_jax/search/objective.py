"""What a search maximises: accuracy and a cost in one number.

    mnas      ACC x (cost / T)^w          MnasNet's soft constraint; EfficientNet took w = -0.07, T = 400e6 multiply-adds, no latency
    mnas_hard ACC x min(1, (cost / T)^w)  nothing to win below T; with w = -1 MnasNet's hard constraint (its alpha = 0, beta = -1)
    absolute  ACC + w x |cost / T - 1|    TuNAS: what comes out lies at T, not wherever accuracy and cost exchange best

Sources: arXiv 1905.11946 section 4, arXiv 1807.11626 section 3, arXiv 2008.06120 section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from efficientnet_jax import counting
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.runs import options

REWARDS: dict[str, Callable[[float, float, float], float]] = {  # of accuracy, cost / T, w
    'mnas': lambda accuracy, ratio, w: accuracy * ratio**w,
    'mnas_hard': lambda accuracy, ratio, w: accuracy * min(1.0, ratio**w),
    'absolute': lambda accuracy, ratio, w: accuracy + w * abs(ratio - 1),
}
COSTS = {
    'macs': 'multiply-adds of an image',
    'params': 'parameters',
    'activations': 'outputs of convolutions and classifier of an image',
    'cycles': 'estimated TPU cycles of an image (cycles.py)',
    'step_seconds': 'seconds of an update on the devices here, measured before a candidate is trained',
}


class Objective(NamedTuple):
    """reward: a key of REWARDS. cost: a key of COSTS. target: T, in the cost's unit. w: negative."""

    reward: str
    cost: str
    target: float
    w: float

    def __call__(self, accuracy: float, cost: float) -> float:
        return REWARDS[self.reward](accuracy, cost / self.target, self.w)


def objective(config) -> Objective:
    """The objective of config.search. Raises UserError for a name that there is not, a target that is not positive or a w that is not negative."""
    search = config.search
    for name in ('reward', 'cost', 'target', 'w'):
        options.check_value(f'search.{name}', search[name])
    return Objective(search.reward, search.cost, search.target, search.w)


def counted(cost: str, architecture: Architecture, resolution: int, num_classes: int) -> int:
    """'macs', 'params' or 'activations' of a network at `resolution` pixels."""
    layers = counting.layers(architecture, resolution, num_classes)
    return sum(getattr(layer, cost) for layer in layers)


def pareto_front(points: Iterable[Any], cost: Callable[[Any], float], accuracy: Callable[[Any], float]) -> list[Any]:
    """The points that no other beats: none is cheaper and at least as accurate. In the order of rising cost."""
    front: list[Any] = []
    for point in sorted(points, key=lambda p: (cost(p), -accuracy(p))):
        if not front or accuracy(point) > accuracy(front[-1]):
            front.append(point)
    return front
