"""Scaling methods: their published numbers, targets met after rounding, options and errors."""

import pytest

from efficientnet_jax import architectures
from efficientnet_jax.study import methods, points

B0 = architectures.get('efficientnet_b0')
MACS = methods.costs('macs')


@pytest.mark.parametrize('method', methods.METHODS)
@pytest.mark.parametrize(('measure', 'target', 'within'), [('macs', 1.8e9, 0.06), ('activations', 2e7, 0.08)])
def test_targets_are_met_after_rounding(method, measure, target, within):
    cost = methods.costs(measure)
    point = methods.solve(B0, method, target, cost)
    assert point.series == method and abs(cost(point.architecture) / target - 1) < within


def test_the_nearest_network_is_found():
    """One more layer or one less in each stage is further away."""
    target = 1.8e9
    found = abs(MACS(methods.solve(B0, 'depth', target, MACS).architecture) - target)
    others = [MACS(methods.scaled(B0, 'depth', 0.0625 * 1.01**i).architecture) for i in range(557)]
    assert found == min(abs(other - target) for other in others)


def test_fast_scaling_grows_activations_like_the_root():
    """Dollar et al. 2021, section 5: d, w, r = s^0.1, s^0.4, s^0.05 at alpha 0.8; compound is alpha 1/3."""
    assert methods.METHODS['fast'](16) == pytest.approx((16**0.1, 16**0.4, 16**0.05))
    d, w, r = methods.METHODS['fast'](16)
    assert d * w**2 * r**2 == pytest.approx(16)
    fast, compound = (methods.solve(B0, name, 64 * 385_814_752, MACS).architecture for name in ('fast', 'compound'))
    activations = methods.costs('activations')
    assert activations(fast) / activations(B0) == pytest.approx(13, abs=1) and activations(compound) / activations(B0) > 29


def test_compound_is_the_papers():
    assert methods.METHODS['compound'](1.2 * 1.1**2 * 1.15**2) == pytest.approx((1.2, 1.1, 1.15))


def test_lacs_passes_through_the_released_points():
    for width, depth, pixels in methods.LACS:
        r = pixels / 224
        assert methods.METHODS['lacs'](depth * width**2 * r**2) == pytest.approx((depth, width, r))


def test_a_resolution_cap_moves_the_rest_to_depth_and_width():
    free = methods.solve(B0, 'compound', 1e10, MACS)
    capped = methods.solve(B0, 'compound', 1e10, MACS, methods.Options(max_resolution=320))
    assert free.architecture.resolution > 400 and capped.architecture.resolution == 320
    assert capped.depth > free.depth and capped.width > free.width and MACS(capped.architecture) == pytest.approx(1e10, rel=0.05)


def test_late_stages_get_all_the_depth():
    point = methods.solve(B0, 'depth', 1e9, MACS, methods.Options(late_stages=2))
    repeats = [row[0] for row in points.rows(point.architecture)]
    assert repeats[:5] == [1, 2, 2, 3, 3] and repeats[5] > 8 and MACS(point.architecture) == pytest.approx(1e9, rel=0.05)


def test_multipliers_are_short():
    point = methods.solve(B0, 'compound', 1.8e9, MACS)
    assert all(len(f'{value:.10g}') <= 6 for value in (point.depth, point.width, point.resolution))
    assert point.label == f'd={point.depth:g} w={point.width:g} r={point.resolution:g}'


def test_a_cost_that_is_dear_is_asked_seldom():
    asked = []

    def cost(architecture):
        asked.append(architecture)
        return MACS(architecture)

    point = methods.solve(B0, 'compound', 1.8e9, cost, most=12)
    assert len(asked) <= 12 and MACS(point.architecture) == pytest.approx(1.8e9, rel=0.25)


@pytest.mark.parametrize(
    ('method', 'target', 'measure', 'message'),
    [
        ('depth', 1e15, 'macs', r'study.target=1e\+15 must be between 1.732e\+08 and 6.332e\+09 for method depth of efficientnet_b0'),
        ('width', 1.0, 'macs', r'study.target=1 must be between'),
        ('resolution', 1e7, 'params', r'cannot be met by method resolution, which leaves efficientnet_b0 at 5.289e\+06 whatever its size'),
    ],
)
def test_impossible_targets(method, target, measure, message):
    with pytest.raises(ValueError, match=message):
        methods.solve(B0, method, target, methods.costs(measure))


@pytest.mark.parametrize('text', ['macs', 'macs:', 'macs:-1', 'macs:nan', 'flops:1e9', 'macs:1e9,x', 'params:inf'])
def test_targets_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r'study.target=.* must be one of macs, params, activations, cycles, a colon and positive numbers'):
        methods.parse_target(text)


def test_targets():
    assert methods.parse_target('params:1e7,2.5e7') == ('params', (1e7, 2.5e7))
