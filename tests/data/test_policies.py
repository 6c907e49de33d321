import numpy as np
import pytest

from efficientnet_jax.data import order
from efficientnet_jax.data.augment import policies
from efficientnet_jax.data.augment.policies import Augment

RAND = Augment(policy='randaugment')
AUTO = Augment(policy='autoaugment')
PINNED_MIX = [[1.0, 54.0, 224.0, 44.0, 224.0], [1.0, 0.0, 107.0, 87.0, 224.0], [1.0, 48.0, 142.0, 0.0, 80.0]]
PINNED_ERASE = [[36, 181, 99, 178], [15, 187, 105, 191], [48, 150, 63, 222]]


def seeds(n, seed=0):
    return order.example_seeds(seed, np.zeros(n, np.int64), np.arange(n))


@pytest.mark.parametrize(
    ('name', 'level', 'expected'),
    [
        ('Rotate', 10, 30), ('Rotate', 28, 84), ('ShearX', 9, 0.27), ('TranslateY', 9, 225), ('Cutout', 10, 100), ('Invert', 9, 0),
        ('Color', 0, 0.1), ('Brightness', 10, 1.9), ('Contrast', 28, 5.14), ('SolarizeAdd', 3, 33), ('SolarizeAdd', 28, 308),
        ('Solarize', 3, 76), ('Solarize', 8, 204), ('Solarize', 10, 0), ('Solarize', 28, 204),
        ('Posterize', 6, 2), ('Posterize', 10, 4), ('Posterize', 2, 1), ('Posterize', 0, 1), ('Posterize', 20, 8), ('Posterize', 28, 1),
    ],
)  # fmt: skip
def test_arguments_of_levels(name, level, expected):
    assert policies.argument(name, level, policies.CONSTANTS['autoaugment']) == pytest.approx(expected)


def test_tables():
    numbers, probabilities, arguments = policies.table(AUTO)
    assert numbers.shape == probabilities.shape == arguments.shape == (25, 2)
    numbers, probabilities, arguments = policies.table(RAND)
    assert numbers.shape == (16, 2) and (probabilities == 1).all()
    assert sorted(numbers[:, 0]) == list(range(1, 17))
    cutout = numbers[:, 0] == policies.NUMBER['Cutout']
    translate = numbers[:, 0] == policies.NUMBER['TranslateX']
    assert arguments[cutout, 0] == 40 and arguments[translate, 0] == 100
    _, _, smaller = policies.table(Augment(policy='randaugment', cutout=4, translate=10))
    assert smaller[cutout, 0] == 4 and smaller[translate, 0] == 10


def test_randaugment_draws_every_operation_alike_and_layers_apart():
    drawn = policies.draw(seeds(16000), RAND)
    assert drawn.shape == (16000, 2, 4) and drawn.dtype == np.float32
    for layer in range(2):
        counts = np.bincount(drawn[:, layer, 0].astype(int), minlength=17)
        assert counts[0] == 0 and np.abs(counts[1:] - 1000).max() < 160  # five standard deviations
    assert np.mean(drawn[:, 0, 0] == drawn[:, 1, 0]) == pytest.approx(1 / 16, abs=0.01)
    rotations = drawn[drawn[..., 0] == policies.NUMBER['Rotate']][:, 1]
    assert set(rotations) == {-30, 30} and np.mean(rotations > 0) == pytest.approx(0.5, abs=0.06)
    solarize_add = drawn[drawn[..., 0] == policies.NUMBER['SolarizeAdd']][:, 1]
    assert set(solarize_add) == {110}
    centres = drawn[..., 2:]
    assert centres.min() >= 0 and centres.max() < 1 and np.abs(centres.mean((0, 1)) - 0.5).max() < 0.02


def test_autoaugment_draws_sub_policies_with_their_probabilities():
    drawn = policies.draw(seeds(25000), AUTO)[..., 0].astype(int)
    numbers, probabilities, _ = policies.table(AUTO)
    expected = np.zeros((17, 17))
    for (first, second), (p, q) in zip(numbers, probabilities, strict=True):
        for a, weight_a in ((first, p), (0, 1 - p)):
            for b, weight_b in ((second, q), (0, 1 - q)):
                expected[a, b] += weight_a * weight_b / 25
    seen = np.zeros((17, 17))
    np.add.at(seen, (drawn[:, 0], drawn[:, 1]), 1 / 25000)
    assert np.abs(seen - expected).max() < 0.01


def test_draws_belong_to_the_example():
    all_seeds = seeds(100)
    together = policies.draw(all_seeds, RAND)
    np.testing.assert_array_equal(together[40:60], policies.draw(all_seeds[40:60], RAND))
    assert not np.array_equal(together, policies.draw(seeds(100, seed=1), RAND))
    assert policies.draw(all_seeds[:2], RAND)[..., 0].tolist() == [[13, 4], [12, 9]]  # must not change between versions


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'policy': 'v0'}, "augment.policy='v0' must be one of autoaugment, randaugment or None"),
        ({'on': 'tpu'}, "augment.on='tpu' must be one of host, device"),
        ({'layers': 0}, 'augment.layers=0 must be at least 1'),
        ({'magnitude': -1}, 'augment.magnitude=-1 must be at least 0'),
        ({'cutout': -1}, 'augment.cutout=-1 must be at least 0 pixels, or None for the published constant'),
        ({'translate': -1}, 'augment.translate=-1 must be at least 0 pixels'),
        ({'erase': 1.5}, 'augment.erase=1.5 must be a probability, or None for no erase'),
        ({'mixup': 0}, 'augment.mixup=0 must be above 0, or None for no mixup'),
        ({'cutmix': -1.0}, 'augment.cutmix=-1.0 must be above 0, or None for no cutmix'),
    ],
)
def test_refuses(knobs, message):
    with pytest.raises(ValueError, match=message):
        Augment(**knobs)


def test_mixes_and_boxes_belong_to_the_example_and_do_not_change_between_versions():
    both = Augment(mixup=0.2, cutmix=1.0, erase=0.5)
    all_seeds = seeds(100)
    for drawn in (policies.draw_mix, policies.draw_erase):
        np.testing.assert_array_equal(drawn(all_seeds, both, 224)[40:60], drawn(all_seeds[40:60], both, 224))
    np.testing.assert_allclose(policies.draw_mix(all_seeds[:3], both, 224), PINNED_MIX, atol=1e-5)
    np.testing.assert_array_equal(policies.draw_erase(all_seeds[:3], both, 224), PINNED_ERASE)


def test_mixup_weights_follow_the_beta_distribution():
    weights = policies.draw_mix(seeds(20000), Augment(mixup=0.2), 224)[:, 0]
    samples = np.random.default_rng(0).beta(0.2, 0.2, 20000)
    quantiles = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(weights, quantiles), np.quantile(np.maximum(samples, 1 - samples), quantiles), atol=0.015)


def test_place_of_the_policy():
    assert [Augment(on=on).placed(platform).on for on in (None, 'host', 'device') for platform in ('cpu', 'tpu', 'gpu')] == [
        *('host', 'device', 'device'), *('host',) * 3, *('device',) * 3,
    ]  # fmt: skip
