"""A point of a study: one network with what the paper prints about it, and the exact counts beside."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, NamedTuple

from efficientnet_jax import architectures, counting, scaling
from efficientnet_jax.architectures import Architecture, rounding


class Printed(NamedTuple):
    """Figures as a source prints them: '1.8B' says more about its precision than 1.8e9. None: not printed."""

    params: str | None = None
    macs: str | None = None
    top1: float | None = None  # per cent
    top5: float | None = None


NOT_PRINTED = Printed()


@dataclasses.dataclass(frozen=True)
class Point:
    """One network. The multipliers are those of scaling.scale, on `base`; late_stages puts the
    depth into the last so many stages alone."""

    base: Architecture
    series: str  # points of one series are one line in a plot
    label: str
    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0
    resolution_multiple: int = 1  # pixels are rounded to multiples of it
    max_resolution: int | None = None  # pixels
    late_stages: int | None = None
    target: float | None = None  # for which it was solved
    printed: Printed = NOT_PRINTED
    note: str = ''

    @property
    def architecture(self) -> Architecture:
        """The network, its sizes rounded."""
        pixels = round_to_multiple(self.base.resolution * self.resolution, self.resolution_multiple)
        pixels = pixels if self.max_resolution is None else min(pixels, max(self.max_resolution, self.base.resolution))
        depth = self.depth if self.late_stages is None else 1.0
        scaled = scaling.scale(dataclasses.replace(self.base, resolution=pixels), depth=depth, width=self.width)
        if self.late_stages is None:
            return scaled
        rows = list(scaled.stages)
        for i in range(max(0, len(rows) - self.late_stages), len(rows)):
            rows[i] = dataclasses.replace(rows[i], repeats=rounding.round_repeats(rows[i].repeats, self.depth, scaled.depth_rounding))
        return dataclasses.replace(scaled, stages=tuple(rows))

    @property
    def network(self) -> str:
        """10 hexadecimal digits of what is built; points with the same are the same network."""
        return network(self.architecture)


def round_to_multiple(pixels: float, multiple: int) -> int:
    """The nearest multiple (half rounds up), at least one."""
    return max(1, int(pixels / multiple + 0.5)) * multiple


def network(architecture: Architecture) -> str:
    """10 hexadecimal digits of the layers and the resolution of an architecture: points that coincide after rounding have the same."""
    built = (
        architecture.stem_filters, architecture.stem_kernel, architecture.stem_pool, architecture.head_filters, architecture.resolution,
        architecture.activation, [dataclasses.astuple(block) for block in architecture.blocks()],
    )  # fmt: skip
    return hashlib.sha256(repr(built).encode()).hexdigest()[:10]


class Counts(NamedTuple):
    """Exact, of one image; activations are the outputs of convolutions."""

    params: int
    macs: int
    activations: int


def counts(architecture: Architecture, num_classes: int = 1000) -> Counts:
    """Exact counts at the architecture's own resolution."""
    rows = counting.layers(architecture, None, num_classes)
    return Counts(*(sum(getattr(row, name) for row in rows) for name in Counts._fields))


def knobs(architecture: Architecture) -> dict[str, Any]:
    """Values for the config's model, stages, depth, width and resolution that make this architecture, however it was scaled.

    Depth that was not rounded up, or stretched some stages only, becomes rows of stages with the repeats written out.
    """
    named = architectures.get(architecture.name)
    values = {'model': architecture.name, 'depth': architecture.depth / named.depth, 'width': architecture.width / named.width}
    values |= {'resolution': architecture.resolution, 'stages': None}
    if architecture.stages != named.stages or architecture.depth_rounding != named.depth_rounding:
        values |= {'stages': rows(architecture), 'depth': 1 / named.depth}
    return values


def rows(architecture: Architecture) -> tuple[tuple, ...]:
    """Rows for config.stages (architectures.stages) whose repeats are those after depth scaling."""
    made = []
    for i, stage in enumerate(architecture.stages):
        repeats = sum(block.name.startswith(f'stage{i + 1}_') for block in architecture.blocks())
        made.append(dataclasses.astuple(dataclasses.replace(stage, repeats=repeats)))
    return tuple(made)


def follows(printed: str | None, exact: int) -> bool:
    """Whether a printed figure ('1.8B', '12M') is the exact count rounded to as many digits."""
    if printed is None:
        return True
    scale = {'M': 1e6, 'B': 1e9}[printed[-1]]
    decimals = len(printed[:-1].partition('.')[2])
    return abs(exact / scale - float(printed[:-1])) <= 0.5 * 10.0**-decimals * (1 + 1e-9)


def value(printed: str) -> float:
    """'1.8B' -> 1.8e9"""
    return float(printed[:-1]) * {'M': 1e6, 'B': 1e9}[printed[-1]]


def flag(point: Point, exact: Counts) -> str:
    """What of the printed figures does not follow from the network, with the difference of the printed one; '' if all do."""
    parts = []
    for column, word in (('params', 'parameters'), ('macs', 'FLOPs')):
        printed, count = getattr(point.printed, column), getattr(exact, column)
        if not follows(printed, count):
            parts.append(f'printed {word} {printed} are {value(printed) / count - 1:+.1%}')
    return '; '.join(parts)
