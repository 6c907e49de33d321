"""Exported files against the live network, each in its own runtime, and what export refuses."""

import functools
import json
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest

from efficientnet_jax import architectures, models, weights
from efficientnet_jax.data.preprocess import LITE, Preprocess
from efficientnet_jax.export.export import FORMATS, Differs, calibration_images, export, some_images, spread
from efficientnet_jax.export.export import compare as compare_with
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')
RECIPE = Preprocess(16, 0.9, 'bilinear', **LITE)
NAMES = [f'digit {i}' for i in range(10)]


@pytest.fixture(scope='module')
def config_of(tmp_path_factory):
    """Configs of the tiny network with random weights, checked on a folder of pictures."""
    folder = tmp_path_factory.mktemp('export')
    module = models.build('tiny', 10)
    variables = jax.device_get(module.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32)))
    # Far apart, as trained logits are: int8 cannot order what is equal.
    variables['params']['classifier']['kernel'] = 200 * variables['params']['classifier']['kernel']
    weights.save(variables, str(folder / 'tiny.npz'), architectures.get('tiny'), 'timm', RECIPE, NAMES)
    (folder / 'pictures').mkdir()
    random = np.random.default_rng(0)
    for i in range(40):  # blocks of colour: more than noise of one mean
        blocks = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        PIL.Image.fromarray(blocks.repeat(6, 0).repeat(6, 1)).save(folder / 'pictures' / f'{i}.png')

    def config_of(**knobs):
        config = tiny.get_config()
        config.init_from = str(folder / 'tiny.npz')
        config.export.images = str(folder / 'pictures')
        config.export.check_images = 40
        for knob, value in knobs.items():
            config.export[knob] = value
        return config

    return config_of


@pytest.fixture(scope='module', params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=['normalised', 'pixels'])
def exported(config_of, tmp_path_factory, request):
    """(whether pixels go in, result, folder) of all formats."""
    workdir = tmp_path_factory.mktemp('workdir')
    return request.param, export(config_of(formats=FORMATS, pixels=request.param), str(workdir)), workdir / 'export'


def test_every_format_computes_what_the_network_does(exported):
    pixels, result, folder = exported
    assert json.loads((folder / 'report.json').read_text()) == result
    assert (result['mode'], result['examples']) == ('export', 40)
    assert result['input'] == f'{"uint8" if pixels else "float32"} [N, 16, 16, 3]'
    artefacts = result['artefacts']
    assert set(artefacts) == set(FORMATS)
    for name, artefact in artefacts.items():
        assert pathlib.Path(artefact['path']).exists() and artefact['bytes'] > 10_000 and artefact['beyond'] == []
        if name != 'tflite_int8':
            assert artefact['max_difference'] < 1e-5 and artefact['same_top1'] == 1
    assert artefacts['stablehlo']['platforms'] == ['cpu', 'cuda', 'tpu']
    assert artefacts['tflite_int8']['max_difference'] > 1e-3 and artefacts['tflite_int8']['mean_difference'] < 0.05
    for name in ('tflite', 'tflite_int8'):  # depthwise convolutions are operators of their own, not sums of shifted products
        operators = artefacts[name]['operators']
        assert operators['DEPTHWISE_CONV_2D'] == 3 and not {'PAD', 'SLICE', 'STRIDED_SLICE'} & operators.keys()


def test_a_file_needs_nothing_of_this_project_and_takes_any_batch(exported):
    pixels, _, folder = exported
    called = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes())).call
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8 if pixels else np.float32)
    five, two = (np.asarray(called(part)) for part in (images, images[:2]))
    assert five.shape == (5, 10) and (not pixels or np.allclose(five.sum(-1), 1))
    np.testing.assert_allclose(two, five[:2], rtol=1e-4, atol=1e-5)
    assert json.loads((folder / 'model.json').read_text())['class_names'] == NAMES


def test_a_difference_ends_the_run_with_its_figures(config_of, tmp_path):
    with pytest.raises(Differs, match=r'tflite: largest difference .* beyond export.tolerance=0.0, over 40 images'):
        export(config_of(formats=('tflite',), tolerance=0.0), str(tmp_path))
    assert json.loads((tmp_path / 'export/report.json').read_text())['artefacts']['tflite']['beyond']


def test_limits():
    knobs, live = tiny.get_config().export, np.eye(4, dtype=np.float32) * 8
    compare = functools.partial(compare_with, probabilities=False)
    nothing = {'max_difference': 0, 'mean_difference': 0, 'same_top1': 1, 'same_clear_top1': 1, 'clear': 4}
    nothing |= {'judged': 4, 'same_judged_top1': 1, 'beyond': []}
    assert compare(live, live, knobs, quantised=False) == nothing
    off = live + np.float32([0, 0, 0, 0.8])
    assert compare(live, off, knobs, quantised=False)['max_difference'] == pytest.approx(0.1)
    assert compare(live, off, knobs, quantised=False)['beyond'] and not compare(live, off, knobs, quantised=True)['beyond']
    assert 'same top-1 for 75.0% of 4' in compare(live, live[[0, 1, 2, 0]], knobs, quantised=True)['beyond'][0]
    assert compare(live, live * np.nan, knobs, quantised=False)['beyond']


@pytest.mark.parametrize('probabilities', [False, True], ids=['logits', 'probabilities'])
def test_int8_may_change_what_the_network_is_not_clear_about(probabilities):
    shares = np.float32(10 * [[0.6, 0.3, 0.1], [0.44, 0.45, 0.11], [0.2, 0.1, 0.7]])
    other = np.float32(10 * [[0.6, 0.3, 0.1], [0.46, 0.43, 0.11], [0.2, 0.1, 0.7]])
    live, other = (shares, other) if probabilities else (np.log(shares), np.log(other))
    knobs = tiny.get_config().export
    figures = compare_with(live, other, knobs, probabilities, quantised=True)
    assert (figures['same_clear_top1'], figures['clear'], figures['beyond']) == (1, 20, [])
    assert figures['same_top1'] == pytest.approx(2 / 3)
    few = compare_with(live[:12], other[:12], knobs, probabilities, quantised=True)  # 8 clear ones: then all are looked at
    assert (few['same_judged_top1'], few['judged'], len(few['beyond'])) == (pytest.approx(2 / 3), 12, 1)
    assert (few['same_clear_top1'], few['clear']) == (1, 8) and 'of 12 images, too few of them clear' in few['beyond'][0]
    none = compare_with(live[1::3], other[1::3], knobs, probabilities, quantised=True)
    assert (none['same_clear_top1'], none['clear'], none['judged']) == (None, 0, 10)


def test_an_export_removes_what_an_earlier_one_left(config_of, tmp_path):
    older = tmp_path / 'export'
    (older / 'saved_model').mkdir(parents=True)
    for name in ('saved_model/saved_model.pb', 'model.tflite', 'model_int8.tflite', 'notes.txt'):
        (older / name).write_text('old')
    export(config_of(formats=('stablehlo',)), str(tmp_path))
    assert sorted(path.name for path in older.iterdir()) == ['model.json', 'model.stablehlo', 'notes.txt', 'report.json']


def test_int8_is_calibrated_on_other_images_than_it_is_checked_on(config_of):
    images, shared = calibration_images(config_of(check_images=10, calibration_images=20), RECIPE)
    checked = some_images(config_of(), 'validation', RECIPE, 10)
    assert len(images) == 20 and shared == 0 and not {image.tobytes() for image in images} & {image.tobytes() for image in checked}
    images, shared = calibration_images(config_of(check_images=40, calibration_images=20), RECIPE)
    assert len(images) == shared == 20


def test_images_are_spread_over_a_split():
    assert spread(range(100), 5) == [0, 25, 50, 74, 99] and spread(['a', 'b'], 9) == ['a', 'b']


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'formats': ('onnx',)}, r"export.formats=\('onnx',\) must be one or more of stablehlo, savedmodel, tflite, tflite_int8"),
        ({'formats': ()}, r'export.formats=\(\) must be one or more of'),
        ({'check_images': 0}, 'export.check_images=0 must be at least 1'),
        ({'calibration_images': 0}, 'export.calibration_images=0 must be at least 1'),
    ],
)
def test_errors(config_of, tmp_path, knobs, message):
    with pytest.raises(ValueError, match=message):
        export(config_of(**knobs), str(tmp_path))
    assert not (tmp_path / 'export').exists()
