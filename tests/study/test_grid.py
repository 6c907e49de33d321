"""The grid of alpha, beta, gamma: how many networks the nominal points are, what they really cost, and errors."""

import pytest

from efficientnet_jax import architectures
from efficientnet_jax.study import grid, methods, points

B0 = architectures.get('efficientnet_b0')
B0_MACS = 385_814_752


def ratios(made):
    return [points.counts(point.architecture).macs / B0_MACS for point in made]


def test_75_nominal_points_are_46_networks():
    made, triples = grid.grid(B0)
    assert (triples, len(made), len({point.network for point in made})) == (75, 46, 46)
    assert ratios(made) == sorted(ratios(made))
    assert (round(ratios(made)[0], 2), round(ratios(made)[-1], 2)) == (1.89, 3.25)
    assert sum(abs(ratio - 2) <= 0.1 for ratio in ratios(made)) == 4


def test_depth_rounded_to_nearest_keeps_the_ratio_better():
    made, triples = grid.grid(B0, depth_rounding='round')
    assert triples == 75 and (round(min(ratios(made)), 2), round(max(ratios(made)), 2)) == (1.75, 2.40)


def test_resolution_multiple():
    assert all(point.architecture.resolution % 32 == 0 for point in grid.grid(B0, resolution_multiple=32)[0])
    one_pixel = {point.architecture.resolution for point in grid.grid(B0, resolution_multiple=1)[0]}
    assert {235, 246, 258, 269} < one_pixel


def test_the_papers_point_is_in_nominally_and_not_really():
    def paper(made):
        return [point for point in made if (point.depth, point.width, point.resolution) == (1.2, 1.1, 1.15)]

    (point,) = paper(grid.grid(B0, resolution_multiple=1)[0])
    assert point.architecture.resolution == 258 and ratios([point])[0] == pytest.approx(2.57, abs=0.01)
    assert not paper(grid.grid(B0, constraint='macs', cost=methods.costs('macs'))[0])


def test_constraint_on_the_real_cost():
    made, triples = grid.grid(B0, constraint='macs', cost=methods.costs('macs'), tolerance=0.05)
    assert made and triples >= len(made)
    assert all(abs(ratio - 2) <= 0.05 for ratio in ratios(made))


def test_cost_is_asked_once_a_network():
    asked = []

    def cost(architecture):
        asked.append(points.network(architecture))
        return methods.costs('macs')(architecture)

    grid.grid(B0, step=0.2, constraint='cycles', cost=cost, tolerance=1.0)
    assert len(asked) == len(set(asked)) + 1  # the base is also the point 1, 1, 1


def test_triples_of_one_network_are_noted():
    made, triples = grid.grid(B0)
    others = sum(int(point.note.split()[1]) for point in made if point.note)
    assert others == triples - len(made)


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        (
            {'ratio': 50.0},
            r'study.constraint=nominal has no point with a ratio of 50.0 \+- 0.1; the nearest is 5.378 at .*\(1.4, 1.4, 1.4\)',
        ),
        ({'step': 0.3, 'tolerance': 0.01}, r'Set study.tolerance=0.\d\d, a smaller study.step or study.highest'),
    ],
)
def test_no_solution(knobs, message):
    with pytest.raises(ValueError, match=message):
        grid.grid(B0, **knobs)


def test_factors_are_without_noise():
    assert grid.factors(1.4, 0.05) == [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4]
    assert grid.factors(1.0, 0.05) == [1.0]
