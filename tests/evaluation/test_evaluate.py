"""What evaluate leaves beside the scores: confusion, pairs, pictures. That the scores do not depend on batches is tested in test_mesh.py."""

import csv
import json
import pathlib

import numpy as np
import pytest

from efficientnet_jax.data import sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation import confusion
from efficientnet_jax.evaluation.evaluate import evaluate
from efficientnet_jax.evaluation.inference import inference_of
from efficientnet_jax.evaluation.restore import restore
from efficientnet_jax.evaluation.score import outputs_of
from efficientnet_jax.runs import recipe, storage
from efficientnet_jax.runs.workdir import warn_of_differences
from efficientnet_jax.training.loop import train
from tests import tiny
from tests.runs.test_faults import start_cluster

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')
NAMES = ('cat, house', 'dog', 'cow')


def examples(**changes):
    found = {
        'label': np.array([0, 0, 0, 0, 1, 1, 2, 2, 2], np.int32),
        'predicted': np.array([0, 1, 1, 2, 0, 1, 2, 1, 0], np.int32),
        'probability': np.linspace(0.9, 0.5, 9, dtype=np.float32),
        'mask': np.array([1, 1, 1, 1, 1, 1, 1, 1, 0], bool),
    }
    return found | changes


def test_confusions_are_counted_by_hand():
    found = confusion.confused(examples(), NAMES)
    assert found['matrix'] == [[1, 2, 1], [1, 1, 0], [0, 1, 1]]  # the last, masked, is in none
    assert found['examples'] == 8
    pairs = [(pair['label'], pair['predicted'], pair['count'], pair['of'], pair['share']) for pair in found['pairs']]
    first, *others = NAMES
    dog, cow = others
    assert pairs == [(first, dog, 2, 4, 0.5), (first, cow, 1, 4, 0.25), (dog, first, 1, 2, 0.5), (cow, dog, 1, 2, 0.5)]
    assert confusion.lines({'weights': 'eval', **found}).startswith('most confused (eval): cat, house taken for dog: 2 of 4 (50.0%); ')


def test_many_classes_have_pairs_and_no_matrix(tmp_path):
    names = tuple(f'class {i}' for i in range(confusion.MATRIX_CLASSES + 1))
    found = confusion.confused(examples(), names)
    assert found['matrix'] is None and len(found['pairs']) == 4
    assert confusion.confused(examples(), names[:-1])['matrix'] is not None


def test_no_mistakes():
    right = examples(predicted=examples()['label'])
    found = confusion.confused(right, NAMES)
    assert found['pairs'] == [] and confusion.lines({'weights': 'eval', **found}) == 'most confused (eval): none'
    chosen = list(confusion.chosen_samples(right).items())
    assert [(heading.split(':')[0], len(indices)) for heading, indices in chosen] == [('right', 8), ('wrong (is → taken for)', 0)]


def test_samples_are_the_same_each_time_and_mistakes_the_surest_first():
    (_, right), (_, wrong) = confusion.chosen_samples(examples()).items()
    assert right.tolist() == [0, 5, 6] and wrong.tolist() == [1, 2, 3, 4, 7]
    labels = [confusion.label_of(examples(), i, NAMES) for i in (0, 1)]
    assert labels == ['cat, 90%', 'cat\n→ dog, 85%']


def test_a_few_images_are_no_whole_batch(data_dir):
    config = tiny.get_config()
    config.data_dir, config.eval_split = data_dir, 'test[:12]'
    source = sources.open_source('digits', 'test[:12]', data_dir)
    inference = inference_of(config, 10)
    found = outputs_of(lambda variables, batch: batch['image'].shape, {'eval': {}}, source, inference, batch_size=304)
    assert [shape[0] for shape in found['eval']] == [16]  # 12 filled up to the 8 devices


@pytest.mark.slow
def test_what_is_left_and_what_is_said(tmp_path, data_dir, capsys, monkeypatch):
    config = tiny.get_config()
    config.data_dir, config.steps = data_dir, 2
    workdir = str(tmp_path)
    trained = train(config, workdir)
    assert list(trained['seconds_to_first_step']) == ['imports', 'data', 'init', 'compile']
    capsys.readouterr()
    result = evaluate(config, workdir)
    shown = capsys.readouterr()
    assert 'most confused (eval_ema): ' in shown.out and 'Warning' not in shown.err
    names = {'confused.json', 'confusion.csv', 'confusion.png', 'samples.png', 'report.html', 'run.json', 'log.txt'}
    assert names <= {path.name for path in tmp_path.iterdir()}
    found = json.loads((tmp_path / 'confused.json').read_text())
    with open(tmp_path / 'confusion.csv') as f:
        matrix = np.array([row[1:] for row in list(csv.reader(f))[1:]], int)
    assert matrix.shape == (10, 10) and matrix.sum() == found['examples'] == 297
    assert np.trace(matrix) / 297 == pytest.approx(result['metrics']['eval_ema']['top1'])
    results = json.loads((tmp_path / 'run.json').read_text())['results']
    assert results == {'train': json.loads(json.dumps(trained)), 'evaluate': json.loads(json.dumps(result))}

    assert train(config, workdir) == results['train']  # finished, whatever has run since
    capsys.readouterr()
    config.dtype, config.log_every_steps = 'bfloat16', 7  # the second changes nothing
    config.resolution = None  # nor does this: the run's own is taken
    config.eval_batch_size = 104
    monkeypatch.setattr('efficientnet_jax.evaluation.score.TELL_SECONDS', 0)
    assert evaluate(config, workdir)['metrics']['eval']['count'] == 297
    warning, doing, *steps = capsys.readouterr().err.splitlines()
    assert warning == f"Warning: {workdir} was trained with another config: dtype='bfloat16' here, 'float32' there."
    assert doing.startswith('Evaluating step 2 on 297 images of digits') and [line[:8] for line in steps] == [
        'step 1/3',
        'step 2/3',
    ]


def test_a_warning_names_each_knob_that_matters(tmp_path, capsys):
    there = {'model': 'efficientnet_b0', 'dataset': 'digits', 'resolution': 224, 'stages': None, 'optimizer': 'sgd', 'seed': 0}
    storage.write_json(str(tmp_path / 'config.json'), there)
    here = dict.fromkeys(recipe.NETWORK_KNOBS) | there | {'model': 'efficientnet_b1', 'resolution': 240, 'seed': 1}
    warn_of_differences(str(tmp_path), here)
    message = "another config: model='efficientnet_b1' here, 'efficientnet_b0' there; resolution=240 here, 224 there.\n"
    assert capsys.readouterr().err.endswith(message)
    warn_of_differences(str(tmp_path / 'elsewhere'), here)
    assert capsys.readouterr().err == ''


@pytest.mark.slow
def test_two_processes_count_every_example_once(tmp_path):
    """Three batches of 120 for 297 images: the second process has nothing but padding of the last."""
    flags = ('--config.steps=8', '--config.eval_batch_size=120')
    counted = []
    for name, processes, devices in [('one', 1, 4), ('two', 2, 2)]:
        for mode in ('train', 'evaluate'):
            logs = tmp_path / f'{name}.{mode}.logs'
            cluster = start_cluster(tmp_path / 'w', logs, f'--mode={mode}', *flags, processes=processes, devices=devices)
            output = cluster.communicate(timeout=300)[0]
            assert cluster.returncode == 0, output
        counted.append(pathlib.Path(tmp_path / 'w', 'confusion.csv').read_text())
        assert json.loads((tmp_path / 'w' / 'confused.json').read_text())['examples'] == 297
    assert counted[0] == counted[1]  # of the same checkpoint, by one process and by two


def test_checkpoints_of_an_unknown_network_are_named(tmp_path):
    (tmp_path / 'checkpoints' / '6').mkdir(parents=True)
    with pytest.raises(
        UserError, match=r'has checkpoints, but its run\.json does not say of which network\. Bring run\.json or model\.json back'
    ):
        restore(tiny.get_config(), str(tmp_path))
