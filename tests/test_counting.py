"""Exact counts. Sources: torchvision's num_params (B0-B7), tensorflow/tpu lite/README.md, timm (B8, L2, EdgeTPU S, MnasNet)."""

import dataclasses

import pytest

from efficientnet_jax import architectures, counting, scaling
from efficientnet_jax.architectures import rounding

# name: (parameters, multiply-adds at the model's own resolution, blocks)
PINNED = {
    'efficientnet_b0': (5_288_548, 385_814_752, 16),
    'efficientnet_b1': (7_794_184, 686_802_832, 23),
    'efficientnet_b2': (9_109_994, 993_561_872, 23),
    'efficientnet_b3': (12_233_232, 1_827_141_392, 26),
    'efficientnet_b4': (19_341_616, 4_393_771_024, 32),
    'efficientnet_b5': (30_389_784, 10_266_384_752, 39),
    'efficientnet_b6': (43_040_704, 19_067_593_536, 45),
    'efficientnet_b7': (66_347_960, 37_745_884_192, 55),
    'efficientnet_b8': (87_413_142, 62_597_461_568, 61),
    'efficientnet_l2': (480_309_308, 475_703_653_280, 88),
    'efficientnet_l2_475': (480_309_308, 170_892_857_680, 88),
    'efficientnet_lite0': (4_652_008, 385_187_552, 16),
    'efficientnet_lite1': (5_416_680, 600_185_232, 21),
    'efficientnet_lite2': (6_092_072, 859_736_272, 21),
    'efficientnet_lite3': (8_197_096, 1_383_321_872, 24),
    'efficientnet_lite4': (13_006_568, 2_553_034_336, 30),
    'efficientnet_edgetpu_s': (5_438_392, 2_352_307_840, 18),
    'efficientnet_edgetpu_m': (6_899_496, 3_660_284_288, 24),
    'efficientnet_edgetpu_l': (10_589_712, 9_661_894_048, 27),
    'mnasnet_a1': (3_887_038, 311_579_072, 16),
    'mnasnet_b1': (4_383_312, 314_415_872, 17),
    'mnasnet_small': (2_030_264, 68_339_184, 15),
    'mobilenet_v1': (4_231_976, 568_740_352, 13),
    'mobilenet_v2': (3_504_872, 300_774_272, 17),
    'resnet50': (25_557_032, 4_089_184_256, 16),
}


def test_every_model_is_pinned():
    assert set(PINNED) == set(architectures.names()) - {'tiny'}  # which other tests add (tests/tiny.py)


@pytest.mark.parametrize('name', PINNED)
def test_counts(name):
    architecture = architectures.get(name)
    assert (*counting.count(architecture), len(architecture.blocks())) == PINNED[name]


def test_count_follows_resolution_and_classes():
    b0 = architectures.get('efficientnet_b0')
    params, macs = counting.count(b0, num_classes=10)
    assert params == 5_288_548 - 990 * 1281
    assert macs == 385_814_752 - 990 * 1280
    assert counting.count(b0, resolution=448)[1] == pytest.approx(4 * 385_814_752, rel=0.01)


def test_layers_are_named_in_order_and_counts_sum():
    rows = counting.layers(architectures.get('efficientnet_b0'))
    assert [rows[0].name, rows[1].name, rows[-2].name, rows[-1].name] == ['stem', 'stage1_block1/depthwise', 'head', 'classifier']
    # "B0 activations (conv outputs)" without squeeze-excite: torchvision and pycls count 6.7 million.
    assert sum(row.activations for row in rows) == pytest.approx(6.75e6, rel=0.01)


def test_regular_convolutions_count_by_hand():
    stages = (architectures.Stage(2, 5, 2, 1, 16, 0.25, 'conv', 'pool'),)
    net = architectures.Architecture('net', stages, resolution=32, stem=8, head=None)
    stem, classifier = 27 * 8 + 16, 16 * 10 + 10
    first = 25 * 8 * 16 + 32 + (16 * 2 + 2 + 2 * 16 + 16)  # squeeze-excite of 8 / 4 filters on 16
    second = 25 * 16 * 16 + 32 + (16 * 4 + 4 + 4 * 16 + 16)
    macs = 256 * 27 * 8 + 64 * 25 * (8 * 16 + 16 * 16) + 2 * 16 * 2 + 2 * 16 * 4 + 160
    assert counting.count(net, num_classes=10) == (stem + first + second + classifier, macs)
    assert [block.residual for block in net.blocks()] == [False, 'pool']


def test_unknown_name_lists_near_names():
    with pytest.raises(ValueError, match=r"model='efficientnet-b0' is not an architecture; near names: efficientnet_b0"):
        architectures.get('efficientnet-b0')


def test_bad_resolution():
    with pytest.raises(ValueError, match='resolution=0 must be at least 1 pixel'):
        counting.count(architectures.get('efficientnet_b0'), resolution=0)


def test_stem_head_and_outer_repeats_of_lite_are_fixed():
    lite4 = architectures.get('efficientnet_lite4')
    assert (lite4.stem_filters, lite4.head_filters) == (32, 1280)
    per_stage = [sum(b.name.startswith(f'stage{s}_') for b in lite4.blocks()) for s in range(1, 8)]
    assert per_stage == [1, 4, 4, 6, 6, 8, 1]


@pytest.mark.parametrize(
    ('width', 'stem', 'head'),
    [
        (1.0, 32, 1280),
        (1.1, 32, 1408),
        (1.2, 40, 1536),
        (1.4, 48, 1792),
        (1.6, 48, 2048),
        (1.8, 56, 2304),
        (2.0, 64, 2560),
        (4.3, 136, 5504),
    ],
)
def test_round_filters(width, stem, head):
    assert (rounding.round_filters(32, width), rounding.round_filters(1280, width)) == (stem, head)


def test_round_filters_never_falls_more_than_a_tenth():
    for filters in range(8, 400, 4):
        for width in (0.5, 0.75, 1.1, 1.4):
            rounded = rounding.round_filters(filters, width)
            assert rounded % 8 == 0 and rounded >= min(8, 0.9 * filters * width)


def test_round_repeats():
    assert [rounding.round_repeats(3, d) for d in (1.0, 1.1, 1.4, 3.1)] == [3, 4, 5, 10]
    assert [rounding.round_repeats(3, d, 'round') for d in (1.0, 1.1, 1.5, 3.1)] == [3, 3, 5, 9]


# arXiv 1905.11946 tables 3 and 7; multiply-adds in billions counted exactly, the single-dimension rows of ResNet-50 are swapped in print.
SCALED = [
    ('mobilenet_v1', {'width': 2}, 2.22),
    ('mobilenet_v1', {'resolution': 2}, 2.27),
    ('mobilenet_v1', {'depth': 1.4, 'width': 1.2, 'resolution': 1.3}, 2.47),
    ('mobilenet_v2', {'depth': 4}, 1.22),
    ('mobilenet_v2', {'width': 2}, 1.14),
    ('mobilenet_v2', {'resolution': 2}, 1.20),
    ('mobilenet_v2', {'depth': 1.4, 'width': 1.2, 'resolution': 1.3}, 1.44),
    ('resnet50', {'depth': 4}, 14.57),
    ('resnet50', {'width': 2}, 16.12),
    ('resnet50', {'resolution': 2}, 16.35),
    ('resnet50', {'depth': 1.4, 'width': 1.2, 'resolution': 1.3}, 15.95),
    ('efficientnet_b0', {'depth': 4}, 1.575),
    ('efficientnet_b0', {'width': 2}, 1.450),
    ('efficientnet_b0', {'resolution': 2}, 1.538),
    ('efficientnet_b0', {'depth': 1.4, 'width': 1.2, 'resolution': 1.3}, 1.80),
]


@pytest.mark.parametrize(('name', 'factors', 'billions'), SCALED)
def test_scaled_counts(name, factors, billions):
    macs = counting.count(scaling.scale(architectures.get(name), **factors))[1]
    assert macs / 1e9 == pytest.approx(billions, abs=0.005)


def test_scale_multiplies_what_is_there():
    b3 = scaling.scale(architectures.get('efficientnet_b3'), depth=2, width=1.5, resolution=1.1)
    assert (b3.depth, b3.width, b3.resolution) == (2.8, pytest.approx(1.8), 330)


def test_compound():
    scaled = scaling.compound(architectures.get('efficientnet_b0'), 2)
    assert (scaled.depth, scaled.width, scaled.resolution) == (pytest.approx(1.44), pytest.approx(1.21), 296)


@pytest.mark.parametrize('knob', ['depth', 'width', 'resolution'])
@pytest.mark.parametrize('value', [0, -1, 300])
def test_scale_rejects(knob, value):
    with pytest.raises(ValueError, match=f'{knob}={value} must be a multiplier'):
        scaling.scale(architectures.get('efficientnet_b0'), **{knob: value})


def test_architectures_are_values():
    b0 = architectures.get('efficientnet_b0')
    assert dataclasses.replace(b0, resolution=224) == b0
    assert hash(b0) == hash(dataclasses.replace(b0))
