"""The mode as a whole: files, bad input, maps, latency; trained and killed in the slow tests."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from configs import study as configs
from efficientnet_jax import models
from efficientnet_jax.evaluation.network import architecture_of
from efficientnet_jax.queue import trials
from efficientnet_jax.study import cam, latency, rows, study, trained
from efficientnet_jax.study.points import Point
from tests import tiny

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.mark.parametrize('kind', ['table3', 'fig4', 'grid', 'plan'])
def test_a_study_leaves_tables_and_plots(kind, tmp_path, capsys):
    result = study(configs.get_config(kind), str(tmp_path))
    content = json.loads((tmp_path / 'study' / f'{kind}.json').read_text())
    assert len(content['rows']) == result['metrics']['points'] > 10
    lines = (tmp_path / 'study' / f'{kind}.csv').read_text().splitlines()
    assert len(lines) == len(content['rows']) + 1 and 'macs' in lines[0].split(',')
    assert capsys.readouterr().out == (tmp_path / 'study' / f'{kind}.md').read_text()
    with PIL.Image.open(tmp_path / 'study' / f'{kind}.png') as picture:
        assert picture.width > 600
    assert '<svg' in (tmp_path / 'study' / f'{kind}.svg').read_text()
    assert json.loads((tmp_path / 'result.json').read_text()) == result


def test_flags_stand_in_the_table(tmp_path, capsys):
    study(configs.get_config('table7'), str(tmp_path))
    flagged = [line for line in capsys.readouterr().out.splitlines() if 'printed FLOPs' in line]
    assert [line.split('|')[2].strip() for line in flagged] == ['d=4', 'w=2', 'r=2']


def test_a_table_of_published_networks_takes_no_others(tmp_path):
    config = configs.get_config('table2,digits')
    config.stages = ((1, 3, 1, 1, 16, 0.25, 'mbconv'),)
    with pytest.raises(
        ValueError, match=r"study.kind='table2' is of the published networks, and stages=.* scale it with --config.study.kind=plan"
    ):
        study(config, str(tmp_path))


@pytest.mark.parametrize(
    ('kind', 'knobs', 'message'),
    [
        ('table9', {}, r"study.kind='table9' must be one of table2, table3"),
        ('grid', {'constraint': 'flops'}, r"study.constraint='flops' must be one of nominal, macs, cycles"),
        ('grid', {'ratio': 90.0}, r'study.constraint=nominal has no point with a ratio of 90'),
        ('plan', {'target': 'macs:1e20'}, r'study.target=1e\+20 must be between'),
        ('plan', {'target': 'watts:5'}, r"study.target='watts:5' must be one of macs"),
        ('plan', {'methods': ('sideways',)}, r"study.methods=\('sideways',\) must be one or more of depth"),
        ('table2', {'seeds': 0}, r'study.seeds=0 must be at least 1'),
        ('table2', {'train': True, 'storage': 'ftp://x'}, r"storage='ftp://x' must be journal:PATH"),
        ('cam', {}, r'study.images=None must name image files'),
        ('cam', {'images': 'absent.jpg'}, r'absent.jpg is not a file'),
    ],
)
def test_bad_input(kind, knobs, message, tmp_path):
    config = configs.get_config(f'{kind},digits')
    config.study.update(knobs)
    with pytest.raises((ValueError, OSError), match=message):
        study(config, str(tmp_path))


def test_unknown_recipe():
    with pytest.raises(ValueError, match='must be KIND or KIND,RECIPE with RECIPE of imagenet, digits'):
        configs.get_config('grid,mnist')


def test_one_name_with_two_settings(tmp_path):
    config = tiny.get_config()
    config.study.kind = 'grid'
    trained.hosts_queue(config, str(tmp_path), {})
    config.steps = 25
    with pytest.raises(ValueError, match=r"study 'grid' in .* has other settings: steps=24 there, 25 here"):
        trained.hosts_queue(config, str(tmp_path), {})


def test_runs_are_a_network_and_a_seed():
    config = tiny.get_config()
    config.study.seeds = 2
    base = architecture_of(config)
    same = [Point(base, 'a', 'base'), Point(base, 'b', 'base'), Point(base, 'a', 'w=2', width=2)]
    runs = trained.runs_of(config, same)
    assert [one['seed'] for one in runs.values()] == [0, 1, 0, 1]
    trained.check(config, runs)
    results = {key: {'top1': 0.5 + 0.1 * i, 'seconds': 2.0} for i, key in enumerate(runs) if i != 3}
    summary = trained.summary(same, 0, 2, results)
    assert summary[same[1].network] == {'top1': pytest.approx(0.55), 'top1_low': 0.5, 'top1_high': 0.6, 'seeds': 2, 'seconds': 2.0}
    assert summary[same[2].network]['seeds'] == 1


def test_a_run_that_raises_is_passed_over(tmp_path, capsys):
    queue = trials.open_study(f'journal:{tmp_path}/t', 'x', {})
    queue.add({'a': {}, 'b': {}, 'c': {}})

    def evaluate(key, point):
        if key == 'b':
            raise FloatingPointError('NaN')
        return 0.5, {'top1': 0.5}

    trained.work(queue, evaluate)
    assert [result['key'] for result in queue.results()] == ['a', 'c'] and queue.failures() == {'b': 'FloatingPointError: NaN'}
    assert 'b failed: NaN' in capsys.readouterr().err


def test_maps_are_the_classifier_before_pooling():
    """The mean of the evidence is the logit without its bias."""
    import jax

    module = models.build('tiny', 10)
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), images)
    ends = cam.forward(module, variables, images)
    evidence = ends['maps'][0] @ np.asarray(variables['params']['classifier']['kernel'])
    np.testing.assert_allclose(evidence.mean((0, 1)), ends['logits'][0], rtol=1e-4, atol=1e-5)
    drawn = cam.activation_map(ends['maps'][0], np.asarray(variables['params']['classifier']['kernel'])[:, 3])
    assert drawn.shape == ends['maps'].shape[1:3] and (drawn.min(), drawn.max()) == (0, 1)
    assert drawn.argmax() == evidence[..., 3].argmax()
    assert not cam.activation_map(np.ones((2, 2, 4)), np.ones(4)).any()


def test_cells():
    shown = [rows.cell('macs', 385_814_752), rows.cell('top1', 0.98651), rows.cell('printed_top1', 77.1), rows.cell('seeds', None)]
    assert shown == ['385.8M', '98.65%', '77.1 %', '']


def test_latency_goes_on_where_it_was(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(latency, 'measure', lambda model, runs: asked.append(model) or [0.1] * runs)
    config = configs.get_config('latency')
    config.study.models = ('efficientnet_b0', 'resnet50')
    study(config, str(tmp_path))
    config.study.models = ('efficientnet_b0', 'efficientnet_b1', 'resnet50')
    result = study(config, str(tmp_path))
    assert asked == ['efficientnet_b0', 'resnet50', 'efficientnet_b1']
    assert result['metrics']['seconds'] == pytest.approx(dict.fromkeys(config.study.models, 0.1))


WORKER = """
import sys, time
from configs import study as configs
from efficientnet_jax.queue import trials
from efficientnet_jax.study import study as run, trained

config = configs.get_config('grid')
config.study.lease_seconds = 2.0
points, _, _ = run.points_of(config, run.costs.Costs(config, sys.argv[1], 10))
trained.check = lambda config, runs: None
queue = trained.hosts_queue(config, sys.argv[1], trained.runs_of(config, points))

def evaluate(key, run):
    time.sleep(0.15)
    with open(sys.argv[1] + '/finished', 'a') as file:
        file.write(key + '\\n')
    return 0.5, {'top1': 0.5, 'seconds': 0.1}

trained.work(queue, evaluate, poll_seconds=0.2)
"""


@pytest.mark.slow
def test_a_grid_survives_kill_9_of_a_worker_and_of_the_starter(tmp_path, monkeypatch):
    """The starter and two workers on one journal; starter and one worker are killed in the middle, the starter is started again."""
    environment = os.environ | {'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu'}

    def start():
        return subprocess.Popen([sys.executable, '-c', WORKER, str(tmp_path)], env=environment, cwd=ROOT)

    def finished():
        path = tmp_path / 'finished'
        return path.read_text().split() if path.exists() else []

    processes = [start() for _ in range(3)]
    end = time.monotonic() + 120
    while len(finished()) < 8 and time.monotonic() < end:
        time.sleep(0.05)
    for process in processes[:2]:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 8 <= len(finished()) < 46
    again = start()
    assert again.wait(180) == 0 and processes[2].wait(60) == 0
    config = configs.get_config('grid')
    config.study.lease_seconds = 2.0
    monkeypatch.setattr(trained, 'check', lambda config, runs: None)
    queue = trained.hosts_queue(config, str(tmp_path), {})
    results = queue.results()
    keys = [result['key'] for result in results]
    assert len(keys) == len(set(keys)) == 46
    complete = [trial.user_attrs['key'] for trial in queue.study.trials if trial.state.name == 'COMPLETE']
    assert sorted(complete) == sorted(keys) and queue.failures() == {}


@pytest.mark.slow
def test_points_are_trained_and_a_second_start_trains_nothing(tmp_path, capsys):
    config = tiny.get_config()
    config.study.update(kind='plan', train=True, seeds=2, methods=('width',), target='macs:3e5', resolution_multiple=1)
    first = study(config, str(tmp_path))
    table = json.loads((tmp_path / 'study' / 'plan.json').read_text())['rows']
    assert [row['seeds'] for row in table] == [2, 2] and all(0 < row['top1_low'] <= row['top1'] <= row['top1_high'] for row in table)
    assert len(os.listdir(tmp_path / 'study' / 'points')) == 4
    capsys.readouterr()
    second = study(config, str(tmp_path))
    assert second['metrics'] == first['metrics'] and 'First step' not in capsys.readouterr().err
