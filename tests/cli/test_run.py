"""A run by its workdir alone, through the command line itself; and a sample of values that are refused there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ['--config=configs/digits.py', '--config.stages=((1, 3, 1, 1, 8, None),)', '--config.width=0.25', '--config.resolution=16']
SMALL += ['--config.batch_size=32', '--config.steps=4', '--config.log_every_steps=1', '--config.ema_decay=None']


def run(*words):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    return subprocess.run([sys.executable, 'main.py', *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_goes_on_and_is_used_by_its_workdir_alone(tmp_path):
    workdir = f'--workdir={tmp_path / "run"}'
    done = run(*SMALL, workdir)
    assert done.returncode == 0, done.stderr
    done = run(workdir)  # the overrides are not typed again
    assert done.returncode == 0 and 'Finished already' in done.stdout + done.stderr, done.stderr
    done = run(workdir, '--mode=evaluate', '--config.eval_batch_size=99')
    assert done.returncode == 0 and 'top-1' in done.stdout, done.stderr
    picture = next((ROOT / 'docs').rglob('*.png'))
    done = run(workdir, '--mode=predict', '--json', str(picture))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]['image'] == str(picture)
    done = run('--config=configs/digits.py', workdir)  # another config is refused as ever
    assert done.returncode == 1 and 'stages' in done.stderr and 'Traceback' not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', ['steps', 'epochs', 'batch_size', 'seed', 'cache', 'dtype', 'augment.area', 'stages', 'model', 'search.w'])
def test_values_that_nobody_means_end_before_jax_is_imported(name):
    for text in ('', 'inf', 'nan', '-1e30', '1e300', 'ünïcödé☃', '(', 'None;', '9' * 10_000):
        done = run('--config=configs/b0.py', '--workdir=/nowhere', f'--config.{name}={text}')
        assert done.returncode == 1 and done.stderr.count('\n') == 1 and name in done.stderr and len(done.stderr) < 1500, done.stderr
