"""The main job from config to result on ImageNet's own TFDS builder with mock data, and without the parts that can be off."""

import json
import os
import pathlib

import pytest

from configs import b0
from efficientnet_jax.evaluation.evaluate import evaluate
from efficientnet_jax.training.loop import train
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')


@pytest.mark.slow
def test_two_steps_of_b0_on_mock_imagenet(tmp_path):
    import tensorflow_datasets as tfds

    config = b0.get_config()
    config.batch_size, config.eval_batch_size, config.steps, config.resolution = 8, 8, 2, 64
    with tfds.testing.mock_data(num_examples=24):
        result = train(config, str(tmp_path))
    assert result['step'] == 2 and result['metrics']['eval']['count'] == 24
    assert pathlib.Path(tmp_path, 'augmented.png').stat().st_size > 1000


def test_everything_that_can_be_off_is_off(tmp_path, data_dir):
    config = tiny.get_config()
    config.data_dir = data_dir
    config.ema_decay = None
    config.augment.crop, config.augment.flip = 'resize', None
    config.dropout = config.drop_path = config.label_smoothing = config.weight_decay = 0.0
    config.keep_best, config.steps = 0, 2
    result = train(config, str(tmp_path))
    assert set(result['metrics']) == {'eval'} and result['metrics']['eval']['count'] == 297
    lines = [json.loads(line) for line in pathlib.Path(tmp_path, 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['split']) for line in lines] == [(2, 'train'), (2, 'eval')]
    assert {'loss', 'top1', 'learning_rate', 'images_per_sec', 'input_wait'} <= set(lines[0])
    assert {'run.json', 'config.json', 'curves.png', 'result.json', 'augmented.png', 'log.txt', 'report.html'} <= set(os.listdir(tmp_path))
    assert list(result['seconds_to_first_step']) == ['imports', 'data', 'init', 'compile']
    again = evaluate(config, str(tmp_path))
    assert again['metrics'] == result['metrics']
    assert {'confused.json', 'confusion.csv', 'confusion.png', 'samples.png'} <= set(os.listdir(tmp_path))
    assert json.loads(pathlib.Path(tmp_path, 'confused.json').read_text())['examples'] == 297
    assert set(json.loads(pathlib.Path(tmp_path, 'run.json').read_text())['results']) == {'train', 'evaluate'}
