"""The paper's scaling tables and figures as data: arXiv 1905.11946 v5, tables 2, 3 and 7, figures 3, 4 and 8.

Printed figures stand as they are printed; whether they follow from the networks is computed beside (points.flag). Notes say what a
reader of the paper has to know about a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from efficientnet_jax import architectures
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.study.points import Point, Printed

# Table 2: EfficientNet B0 to B7 on ImageNet.
_TABLE2 = {
    'efficientnet_b0': Printed('5.3M', '0.39B', 77.1, 93.3),
    'efficientnet_b1': Printed('7.8M', '0.70B', 79.1, 94.4),
    'efficientnet_b2': Printed('9.2M', '1.0B', 80.1, 94.9),
    'efficientnet_b3': Printed('12M', '1.8B', 81.6, 95.7),
    'efficientnet_b4': Printed('19M', '4.2B', 82.9, 96.4),
    'efficientnet_b5': Printed('30M', '9.9B', 83.6, 96.7),
    'efficientnet_b6': Printed('43M', '19B', 84.0, 96.8),
    'efficientnet_b7': Printed('66M', '37B', 84.3, 97.0),
}
_RELEASED = 'the released network needs more than any rounding of the printed figure'

_COMPOUND = {'depth': 1.4, 'width': 1.2, 'resolution': 1.3}
_GUESSED = 'coefficients not printed; those of MobileNetV1 taken'
_SWAPPED = 'd=4 and w=2 of ResNet-50 look swapped in print: see the other row'
# Table 3: scaling up MobileNets and ResNet. (model, multipliers, printed, note)
_TABLE3 = (
    ('mobilenet_v1', {}, Printed(None, '0.6B', 70.6), ''),
    ('mobilenet_v1', {'width': 2}, Printed(None, '2.2B', 74.2), ''),
    ('mobilenet_v1', {'resolution': 2}, Printed(None, '2.2B', 72.7), ''),
    (
        'mobilenet_v1',
        _COMPOUND,
        Printed(None, '2.3B', 75.6),
        'depth rounded up per run of equal blocks; 2.18B with depth rounded to nearest',
    ),
    ('mobilenet_v2', {}, Printed(None, '0.3B', 72.0), ''),
    ('mobilenet_v2', {'depth': 4}, Printed(None, '1.2B', 76.8), ''),
    ('mobilenet_v2', {'width': 2}, Printed(None, '1.1B', 76.4), ''),
    ('mobilenet_v2', {'resolution': 2}, Printed(None, '1.2B', 74.8), ''),
    ('mobilenet_v2', _COMPOUND, Printed(None, '1.3B', 77.4), _GUESSED),
    ('resnet50', {}, Printed(None, '4.1B', 76.0), ''),
    ('resnet50', {'depth': 4}, Printed(None, '16.2B', 78.1), _SWAPPED),
    ('resnet50', {'width': 2}, Printed(None, '14.7B', 77.7), _SWAPPED),
    ('resnet50', {'resolution': 2}, Printed(None, '16.4B', 77.5), ''),
    (
        'resnet50',
        _COMPOUND,
        Printed(None, '16.7B', 78.8),
        f'{_GUESSED}; inner filters rounded to multiples of 8, 15.86B with the outputs rounded',
    ),
)

_SINGLE = 'a single-dimension row that does not follow from the released B0; the paper does not say why'
# Table 7, also the ends of figure 8 and the models of figure 7.
_TABLE7 = (
    ('baseline', {}, Printed(None, '0.4B', 77.3), ''),
    ('depth', {'depth': 4}, Printed(None, '1.8B', 79.0), _SINGLE),
    ('width', {'width': 2}, Printed(None, '1.8B', 78.9), _SINGLE),
    ('resolution', {'resolution': 2}, Printed(None, '1.9B', 79.1), _SINGLE),
    ('compound', _COMPOUND, Printed(None, '1.8B', 81.1), ''),
)

# Figure 3: one dimension of B0 at a time.
FIG3 = {
    'width': (1.0, 1.4, 1.8, 2.6, 3.8, 5.0),
    'depth': (1.0, 2.0, 3.0, 4.0, 6.0, 8.0),
    'resolution': (1.0, 1.3, 1.5, 1.7, 1.9, 2.2, 2.5),
}
# Figure 4: (depth, resolution) of the four baselines whose width is swept; the widths, not printed, are taken from figure 3.
FIG4 = ((1.0, 1.0), (1.0, 1.3), (2.0, 1.0), (2.0, 1.3))


def label(depth: float = 1, width: float = 1, resolution: float = 1) -> str:
    """'d=1.4 w=1.2 r=1.3', the parts that are not 1; 'base' when none is."""
    parts = [f'{name}={factor:g}' for name, factor in (('d', depth), ('w', width), ('r', resolution)) if factor != 1]
    return ' '.join(parts) or 'base'


def table2(base: Callable[[str], Architecture]) -> list[Point]:
    """B0 to B7."""
    notes = dict.fromkeys(('efficientnet_b4', 'efficientnet_b5', 'efficientnet_b7'), _RELEASED)
    return [Point(base(name), 'EfficientNet', name, printed=row, note=notes.get(name, '')) for name, row in _TABLE2.items()]


def table3(base: Callable[[str], Architecture]) -> list[Point]:
    """MobileNets and ResNet-50 scaled by one dimension and by all."""
    return [Point(base(name), name, label(**factors), **factors, printed=row, note=note) for name, factors, row, note in _TABLE3]


def table7(base: Callable[[str], Architecture]) -> list[Point]:
    """B0 scaled by one dimension and by all."""
    b0 = base('efficientnet_b0')
    return [Point(b0, series, label(**factors), **factors, printed=row, note=note) for series, factors, row, note in _TABLE7]


def fig8(base: Callable[[str], Architecture]) -> list[Point]:
    """Accuracy against cost from B0 along each dimension and the compound; the printed ends are table 7's."""
    first, *ends = table7(base)
    return [dataclasses.replace(point, series=end.series) for end in ends for point in (first, end)]


def fig3(base: Callable[[str], Architecture]) -> list[Point]:
    """B0 along each dimension alone."""
    b0 = base('efficientnet_b0')
    return [Point(b0, axis, label(**{axis: factor}), **{axis: factor}) for axis, factors in FIG3.items() for factor in factors]


def fig4(base: Callable[[str], Architecture]) -> list[Point]:
    """B0 along width, at four pairs of depth and resolution."""
    b0, points = base('efficientnet_b0'), []
    for depth, resolution in FIG4:
        note = 'the caption says 299 pixels for r=1.3' if resolution == 1.3 else ''
        for width in FIG3['width']:
            factors = {'depth': depth, 'width': width, 'resolution': resolution}
            points.append(Point(b0, f'd={depth:g} r={resolution:g}', label(**factors), **factors, note=note))
    return points


ARTEFACTS = {'table2': table2, 'table3': table3, 'table7': table7, 'fig3': fig3, 'fig4': fig4, 'fig8': fig8}


def points(kind: str, resolution: int | None = None) -> list[Point]:
    """The points of an artefact. resolution: pixels that take the place of a model's 224; others keep their ratio to it.

    Where that changes the networks, the printed figures and the notes on them are left out.
    """
    scale = 1.0 if resolution is None else resolution / 224

    def base(name: str) -> Architecture:
        named = architectures.get(name)
        return named if scale == 1 else dataclasses.replace(named, resolution=max(8, round(named.resolution * scale)))

    made = ARTEFACTS[kind](base)
    return made if scale == 1 else [dataclasses.replace(point, printed=Printed(), note='') for point in made]
