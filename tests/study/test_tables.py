"""The paper's artefacts: every count, and which printed figures do not follow. Sources of the counts: facts computed once by another counter."""

import dataclasses

import pytest

from efficientnet_jax import architectures
from efficientnet_jax.study import points, tables
from efficientnet_jax.study.points import Point, Printed

# Multiply-adds in billions, to the digits given.
TABLE2 = [0.386, 0.687, 0.994, 1.827, 4.394, 10.27, 19.07, 37.75]
PARAMS2 = [5_288_548, 7_794_184, 9_109_994, 12_233_232, 19_341_616, 30_389_784, 43_040_704, 66_347_960]
TABLE3 = [0.57, 2.22, 2.27, 2.47, 0.30, 1.22, 1.14, 1.20, 1.44, 4.09, 14.57, 16.12, 16.35, 15.9]
TABLE7 = [0.386, 1.575, 1.450, 1.538, 1.80]
FIG3 = {
    'width': [0.39, 0.74, 1.18, 2.39, 5.06, 8.71],
    'depth': [0.39, 0.78, 1.18, 1.58, 2.37, 3.16],
    'resolution': [0.39, 0.72, 0.89, 1.13, 1.46, 1.92, 2.45],
}


def macs(made):
    return [points.counts(point.architecture).macs for point in made]


def to_digits(counts, billions):
    """Whether each count rounds to its figure."""
    return [round(count / 1e9, len(str(b).partition('.')[2])) for count, b in zip(counts, billions, strict=True)] == billions


@pytest.mark.parametrize(('kind', 'billions'), [('table2', TABLE2), ('table3', TABLE3), ('table7', TABLE7)])
def test_counts_of_tables(kind, billions):
    assert to_digits(macs(tables.points(kind)), billions)


def test_parameters_of_table_2():
    assert [points.counts(point.architecture).params for point in tables.points('table2')] == PARAMS2


@pytest.mark.parametrize('axis', FIG3)
def test_counts_of_figure_3(axis):
    assert to_digits(macs(point for point in tables.points('fig3') if point.series == axis), FIG3[axis])


def test_figure_4_sweeps_width_from_four_baselines():
    made = tables.points('fig4')
    assert len(made) == 24 and len({point.network for point in made}) == 24
    assert to_digits(macs(made[:6]), FIG3['width'])
    assert to_digits(macs(made[::6]), [0.386, 0.718, 0.782, 1.466])
    assert [point.architecture.resolution for point in made[::6]] == [224, 291, 224, 291]


def test_figure_8_is_table_7_from_one_base():
    assert {point.network for point in tables.points('fig8')} == {point.network for point in tables.points('table7')}
    assert [point.printed.top1 for point in tables.points('fig8')] == [77.3, 79.0, 77.3, 78.9, 77.3, 79.1, 77.3, 81.1]


def test_flags_are_where_the_printed_figure_is_no_rounding_of_the_count():
    flagged = {
        kind: [point.label for point in tables.points(kind) if points.flag(point, points.counts(point.architecture))]
        for kind in ('table2', 'table3', 'table7')
    }
    assert flagged['table2'] == [f'efficientnet_b{i}' for i in (1, 2, 4, 5, 7)]  # B1's FLOPs and B2's parameters by one last digit
    assert flagged['table7'] == ['d=4', 'w=2', 'r=2']
    assert flagged['table3'] == ['r=2', 'd=1.4 w=1.2 r=1.3', 'd=1.4 w=1.2 r=1.3', 'd=4', 'w=2', 'd=1.4 w=1.2 r=1.3']


def test_the_swapped_rows_of_resnet_50_fit_each_other():
    made = {point.label: point for point in tables.points('table3') if point.series == 'resnet50'}
    deep, wide = (points.counts(made[label].architecture).macs / 1e9 for label in ('d=4', 'w=2'))
    assert abs(deep - 14.7) < 0.2 < abs(deep - 16.2) and abs(wide - 16.2) < 0.2 < abs(wide - 14.7)
    assert 'swapped' in made['d=4'].note and 'swapped' in made['w=2'].note


@pytest.mark.parametrize(
    ('printed', 'exact', 'follows'),
    [
        ('1.8B', 1_849_999_999, True),
        ('1.8B', 1_850_000_001, False),
        ('12M', 12_233_232, True),
        ('0.70B', 686_802_832, False),
        (None, 1, True),
    ],
)
def test_follows(printed, exact, follows):
    assert points.follows(printed, exact) is follows


def test_a_flag_says_by_how_much():
    b0 = architectures.get('efficientnet_b0')
    point = Point(b0, 's', 'base', printed=Printed('6.0M', '0.39B'))
    assert points.flag(point, points.counts(b0)) == 'printed parameters 6.0M are +13.5%'


def test_another_resolution_keeps_the_ratios_and_drops_what_was_printed():
    made = tables.points('table2', resolution=112)
    assert [point.architecture.resolution for point in made] == [112, 120, 130, 150, 190, 228, 264, 300]
    assert all(point.printed == Printed() and not point.note for point in made)


@pytest.mark.parametrize('kind', tables.ARTEFACTS)
def test_every_point_is_an_ordinary_config(kind):
    """knobs() makes the very network again through the config."""
    from configs import default
    from efficientnet_jax.evaluation.network import architecture_of

    for point in tables.points(kind):
        config = default.get_config()
        config.update(points.knobs(point.architecture))
        assert points.network(architecture_of(config)) == point.network


def test_late_stages_and_rounding_become_rows():
    from configs import default
    from efficientnet_jax.evaluation.network import architecture_of

    b0 = dataclasses.replace(architectures.get('efficientnet_b0'), depth_rounding='round')
    point = Point(b0, 's', '', depth=2.3, width=1.2, resolution=1.4, resolution_multiple=8, max_resolution=300, late_stages=2)
    architecture = point.architecture
    assert architecture.resolution == 300
    assert [row[0] for row in points.rows(architecture)] == [1, 2, 2, 3, 3, 9, 2]
    config = default.get_config()
    config.update(points.knobs(architecture))
    assert points.network(architecture_of(config)) == point.network
