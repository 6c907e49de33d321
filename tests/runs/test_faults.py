"""Faults injected into whole runs: what goes on goes on with the same bits, and what stops says why. benchmarks/chaos.py kills for real."""

import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.chaos import WALL_CLOCK, chaos, differences, joined
from efficientnet_jax.data import pipeline
from efficientnet_jax.errors import NotFinite, UserError
from efficientnet_jax.evaluation import inference, restore
from efficientnet_jax.runs import hosts, record, storage
from efficientnet_jax.runs import workdir as workdirs
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.integrity import bit_sums as state_bits
from efficientnet_jax.runs.shapes import ShapeMismatch
from efficientnet_jax.training import loop, setup
from efficientnet_jax.training.setup import training_of
from tests import tiny

pytestmark = [
    pytest.mark.filterwarnings('ignore::ResourceWarning'),
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]
ROOT = pathlib.Path(__file__).parents[2]


def config(**knobs):
    c = tiny.get_config()
    c.steps = 12
    for name, value in knobs.items():
        c[name] = value
    return c


def train(workdir, devices=1, **knobs):
    """Trains on the first so many of the eight devices: one compiles in a third of the time; test_mesh.py has the others."""
    return loop.train(config(**knobs), str(workdir), build=functools.partial(training_of, devices=jax.devices()[:devices]))


def rows(workdir):
    """metrics.jsonl without the figures that are wall-clock."""
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in storage.read_jsonl(f'{workdir}/metrics.jsonl')]


@pytest.fixture(scope='module', autouse=True)
def one_device(compiled_once):
    """One of the eight devices is enough here and compiles in a third of the time; test_mesh.py has the others."""
    on_one = functools.partial(inference.inference_of, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, 'inference_of', on_one)
        yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory, compiled_once, one_device):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp('whole')
    train(workdir)
    return workdir


class StopAt(hosts.StopNotice):
    """A stop notice that arrives by itself when the loop asks for the n-th time."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def asked(self):
        self._step -= 1
        if self._step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().asked()


@pytest.mark.parametrize('stops', [(5,), pytest.param((1, 8, 11), marks=pytest.mark.slow)], ids=str)
def test_stopped_and_started_again_ends_with_the_same_bits(whole, tmp_path, monkeypatch, stops):
    """SIGTERM between two log lines, between two checkpoints, and right after the first step."""
    for before, step in itertools.pairwise([0, *stops]):
        monkeypatch.setattr(hosts, 'StopNotice', lambda number=step - before: StopAt(number))
        with pytest.raises(hosts.Stopped, match=rf'Asked to stop at step {step} of 12; saved\. Give the same command again'):
            train(tmp_path)
        assert max((int(p.name) for p in (tmp_path / 'checkpoints').iterdir()), default=0) == step
    monkeypatch.undo()
    result = train(tmp_path)
    assert differences(str(whole), str(tmp_path)) == []
    assert result['metrics'] == json.loads((whole / 'result.json').read_text())['metrics']
    assert result['examples'] == 12 * 32 and len(record.read(str(tmp_path))['starts']) == len(stops) + 1
    assert result['seconds'] > sum(start['seconds'] for start in record.read(str(tmp_path))['starts'][:-1])


def test_goes_on_with_fewer_devices(whole, tmp_path, monkeypatch):
    """Four devices, stopped, two devices: the same batches, and the same figures as on one within rounding."""
    for devices, stop in ((4, 5), (2, None)):
        if stop:
            monkeypatch.setattr(hosts, 'StopNotice', lambda stop=stop: StopAt(stop))
            with pytest.raises(hosts.Stopped):
                train(tmp_path, devices)
            monkeypatch.undo()
        else:
            train(tmp_path, devices)
    for expected, row in zip(rows(whole), joined(rows(whole), rows(tmp_path)), strict=True):
        assert (row['step'], row['split']) == (expected['step'], expected['split'])
        assert row['loss'] == pytest.approx(expected['loss'], rel=1e-3)


def test_a_finished_run_started_again_does_nothing(whole, capfd):
    before = rows(whole)
    result = train(whole)
    assert result == json.loads((whole / 'result.json').read_text()) and rows(whole) == before
    assert 'Finished already' in capfd.readouterr().err


def test_a_run_killed_before_its_record_was_complete_finishes_it(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'w')
    (tmp_path / 'w' / 'report.html').unlink()
    with record.changing(str(tmp_path / 'w')) as found:
        before = found['results'].pop('train')
    result = train(tmp_path / 'w')
    assert (tmp_path / 'w' / 'report.html').exists() and record.read(str(tmp_path / 'w'))['results'] == {'train': result}
    assert (result['metrics'], result['examples']) == (before['metrics'], before['examples'])  # nothing is trained again


@pytest.mark.parametrize('content', ['', '{"version": 1,'], ids=['empty', 'cut'])
def test_a_damaged_record_is_made_again_by_the_same_command(whole, tmp_path, content, capfd):
    shutil.copytree(whole, tmp_path / 'w')
    (tmp_path / 'w' / 'run.json').write_text(content)
    result = train(tmp_path / 'w')
    assert f'{tmp_path}/w/run.json is cut off or damaged' in capfd.readouterr().err
    before, after = (record.read(str(path)) for path in (whole, tmp_path / 'w'))
    assert [after[name] for name in ('config', 'network', 'train_examples')] == [
        before[name] for name in ('config', 'network', 'train_examples')
    ]
    assert result['metrics'] == before['results']['train']['metrics'] and result['examples'] == 12 * 32


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'network': ['1', '0', *'23456789']}, r"class 0 is '1' there, '0' here"),
        ({'train_examples': 1499}, '1499 training images there, 1500 here'),
    ],
)
def test_other_data_is_refused_before_anything_is_compiled(whole, tmp_path, monkeypatch, changed, message):
    shutil.copytree(whole, tmp_path / 'w')
    with record.changing(str(tmp_path / 'w')) as found:
        if 'network' in changed:
            changed = {'network': found['network'] | {'class_names': changed['network']}}
        found |= changed
    monkeypatch.setattr(Checkpoints, 'restore_latest', lambda *_: pytest.fail('the state was compiled'))
    with pytest.raises(UserError, match=message):
        train(tmp_path / 'w')


def test_lines_of_steps_that_were_lost_are_written_again_once(whole, tmp_path):
    """Power fails after metrics of step 12 were written but before its checkpoint was: the lines of 7 to 12 must not stand twice."""
    shutil.copytree(whole, tmp_path / 'w')
    shutil.rmtree(tmp_path / 'w' / 'checkpoints' / '12')
    with open(tmp_path / 'w' / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 12, "split": "tr')
    train(tmp_path / 'w')
    assert differences(str(whole), str(tmp_path / 'w')) == []


def holder(workdir):
    """Another process that holds a workdir until its standard input ends."""
    code = 'import sys; from efficientnet_jax.runs.hosts import lock; f = lock(sys.argv[1]); print("held", flush=True); sys.stdin.read()'
    process = subprocess.Popen([sys.executable, '-c', code, str(workdir)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'held\n'
    return process


def test_a_second_process_on_a_workdir_refuses_until_the_first_is_gone(tmp_path):
    with holder(tmp_path) as other:
        try:
            with pytest.raises(
                ValueError, match=rf'is in use by process {other.pid} on .*Wait for it, stop it, or choose another --workdir'
            ):
                workdirs.hold(str(tmp_path), {'seed': 0})
            assert not (tmp_path / 'config.json').exists()
        finally:
            other.kill()  # the lock goes with the process, however it ends
    workdirs.hold(str(tmp_path), {'seed': 0}).close()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'workdir=.*/file/run cannot be written \(Not a directory\); choose another --workdir'):
        train(tmp_path / 'file' / 'run')


def test_a_read_only_workdir():
    with pytest.raises(OSError, match=r'workdir=/proc/run cannot be written .*; choose another --workdir'):
        workdirs.hold('/proc/run', {})


def test_an_object_store_is_no_workdir():
    with pytest.raises(ValueError, match=r'workdir=gs://bucket/run must be a folder: .* Mount shared storage \(launch/README.md\)'):
        workdirs.hold('gs://bucket/run', {})


def test_a_workdir_of_another_config_is_refused_and_a_runtime_knob_is_not(whole):
    other = storage.read_json(str(whole / 'config.json'))
    workdirs.hold(str(whole), other | {'log_every_steps': 7, 'max_corrupt': 3}).close()
    with pytest.raises(ValueError, match=r'holds a run with another config: seed=0 there, 1 here\. Choose another --workdir or remove'):
        workdirs.hold(str(whole), other | {'seed': 1})
    workdirs.hold(str(whole), other).close()


def test_a_workdir_that_vanishes_while_training(tmp_path, monkeypatch):
    class Vanish(StopAt):
        def asked(self):
            self._step -= 1
            if self._step == 0:
                (tmp_path / 'w').rename(tmp_path / 'elsewhere')
            return False

    monkeypatch.setattr(hosts, 'StopNotice', lambda: Vanish(5))
    with pytest.raises(OSError, match=r'checkpoints is gone \(removed, renamed or unmounted\), so step 6 cannot be saved'):
        train(tmp_path / 'w')


@pytest.fixture
def poison(monkeypatch):
    """poison(7, 9): the loss and gradients of the 7th and 9th batch of the stream are NaN, whatever step takes them."""

    def poison(*numbers):
        stream, step = pipeline.train_batches, setup.train_step

        def poisoned_stream(*args, start_step, **kwargs):
            for number, batch in enumerate(stream(*args, start_step=start_step, **kwargs), start=start_step + 1):
                yield batch | {'label': np.full_like(batch['label'], -1)} if number in numbers else batch

        def poisoned_step(module, optimizer, recipe, state, batch):
            state, metrics = step(module, optimizer, recipe, state, batch)
            nan = jnp.where(batch['label'][0] < 0, jnp.nan, 0.0)
            return state.replace(params=jax.tree.map(lambda x: x + nan, state.params)), metrics | {'loss': metrics['loss'] + nan}

        monkeypatch.setattr(pipeline, 'train_batches', poisoned_stream)
        monkeypatch.setattr(setup, 'train_step', poisoned_step)

    return poison


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path, poison):
    poison(7)
    before = signal.getsignal(signal.SIGTERM)
    message = r'loss=nan, .* at step 7; the newest checkpoint is step 6 in .*Lower lr_per_256.*or set nan_rollbacks to skip'
    with pytest.raises(NotFinite, match=message):
        train(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    workdirs.hold(str(tmp_path), storage.read_json(str(tmp_path / 'config.json'))).close()  # it is free again


def test_nan_rolls_back_past_the_bad_batch(tmp_path, poison):
    poison(8)
    result = train(tmp_path, nan_rollbacks=1)
    assert (result['step'], result['rollbacks'], result['skipped_batches']) == (12, 1, 2)
    steps = [row['step'] for row in rows(tmp_path) if row['split'] == 'train']
    assert steps == sorted(set(steps)) and steps[-1] == 12


@pytest.mark.slow
def test_nan_rolls_back_twice_and_no_more_often_than_allowed(tmp_path, poison):
    poison(8, 10)
    with pytest.raises(NotFinite, match=r'at step 8 after nan_rollbacks=1; the newest checkpoint is step 6'):
        train(tmp_path / 'once', nan_rollbacks=1)
    result = train(tmp_path / 'twice', nan_rollbacks=2)
    # Step 7 takes batch 9 after the first, step 7 takes batch 11 after the second: batches 7 to 10 are skipped.
    assert (result['step'], result['rollbacks'], result['skipped_batches']) == (12, 2, 4)
    steps = [row['step'] for row in rows(tmp_path / 'twice') if row['split'] == 'train']
    assert steps == sorted(set(steps)) and steps[-1] == 12
    assert all(np.isfinite(row['loss']) for row in rows(tmp_path / 'twice'))


def test_another_number_of_classes_is_an_error_with_the_numbers(whole):
    with pytest.raises(ShapeMismatch, match=r'trained for 10 classes; the data set here has 7'):
        restore.restore(config(), str(whole), num_classes=7)


def test_evaluation_restores_what_training_scored(whole):
    restored = restore.restore(config(), str(whole), num_classes=10)
    assert restored.step == 12 and set(restored.weights) == {'eval', 'eval_ema'}


def test_evaluation_does_not_need_the_settings_of_the_optimizer(whole):
    weights = restore.restore(config(), str(whole), num_classes=10).weights
    other = restore.restore(config(optimizer='adamw', ema_decay=None), str(whole), num_classes=10).weights
    assert state_bits(weights) == state_bits(other)
    assert state_bits(weights['eval_ema']) != state_bits(weights['eval'])


def start_cluster(workdir, logs, *flags, processes=2, devices=2):
    command = ['launch/local_cluster.sh', str(processes), '--config=tests/tiny.py', f'--workdir={workdir}', *flags]
    env = {**os.environ, 'XLA_FLAGS': '', 'DEVICES': str(devices), 'LOGS': str(logs), 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def children(process):
    """Process ids of main.py under a cluster's shell, in the order of their process_id."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            words = (path / 'cmdline').read_text().split('\0')
            parent = int((path / 'stat').read_text().rsplit(')', 1)[1].split()[1])
        except OSError:
            continue
        if parent == process.pid and any(word.endswith('main.py') for word in words):
            found.append((next(word for word in words if word.startswith('--process_id=')), int(path.name)))
    return [pid for _, pid in sorted(found)]


def wait_for_lines(workdir, count, seconds=180):
    until = time.monotonic() + seconds
    while len(storage.read_jsonl(f'{workdir}/metrics.jsonl')) < count:
        assert time.monotonic() < until, 'the run wrote nothing'
        time.sleep(0.05)


def losses(workdir):
    return {row['step']: row['loss'] for row in storage.read_jsonl(f'{workdir}/metrics.jsonl') if row['split'] == 'train'}


@pytest.mark.slow
def test_two_processes_start_from_the_weights_of_a_run(whole, tmp_path):
    flags = (f'--config.init_from={whole}', '--config.steps=1', '--config.lr_per_256=0.0')
    cluster = start_cluster(tmp_path / 'run', tmp_path / 'logs', *flags, devices=1)
    output = cluster.communicate(timeout=300)[0]
    assert cluster.returncode == 0, output
    checkpoints = [Checkpoints(f'{workdir}/checkpoints', read_only=True) for workdir in (whole, tmp_path / 'run')]
    there, here = (one.restore_weights(one.steps()[-1]) for one in checkpoints)
    assert state_bits({'params': there['ema']['params']}) == state_bits({'params': here['params']})


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(tmp_path):
    flags = ('--config.steps=30', '--config.log_every_steps=1')
    for name, processes, devices in [('one', 1, 4), ('two', 2, 2)]:
        cluster = start_cluster(tmp_path / name, tmp_path / f'{name}.logs', *flags, processes=processes, devices=devices)
        output = cluster.communicate(timeout=300)[0]
        assert cluster.returncode == 0, output
    one, two = losses(tmp_path / 'one'), losses(tmp_path / 'two')
    assert list(one) == list(two) == list(range(1, 31))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)
    scores = [json.loads((tmp_path / name / 'result.json').read_text())['metrics'] for name in ('one', 'two')]
    assert scores[0]['eval']['count'] == scores[1]['eval']['count'] == 297


@pytest.mark.slow
def test_one_of_two_killed_the_other_ends_in_time_and_a_restart_goes_on(tmp_path):
    flags = ('--config.steps=3000', '--lost_after_seconds=10')
    cluster = start_cluster(tmp_path / 'w', tmp_path / 'logs', *flags)
    wait_for_lines(tmp_path / 'w', 5)
    os.kill(children(cluster)[1], signal.SIGKILL)
    killed = time.monotonic()
    cluster.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert cluster.returncode != 0
    log = (tmp_path / 'logs' / '0.log').read_text()  # ours where a collective fails, JAX's where its heartbeat is first
    assert 'has lost another of the 2' in log or 'The following tasks are unhealthy' in log
    reached = max(losses(tmp_path / 'w'))
    cluster = start_cluster(tmp_path / 'w', tmp_path / 'logs2', *flags)
    wait_for_lines(tmp_path / 'w', len(storage.read_jsonl(f'{tmp_path}/w/metrics.jsonl')) + 5)
    assert 'Resuming' in (tmp_path / 'logs2' / '0.log').read_text()
    os.kill(cluster.pid, signal.SIGTERM)  # a preemption notice: both save at one step
    cluster.communicate(timeout=120)
    assert cluster.returncode == hosts.AGAIN
    assert max(losses(tmp_path / 'w')) > reached
    assert 'Asked to stop at step' in (tmp_path / 'logs2' / '0.log').read_text()


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    record = chaos('tests/tiny.py', str(tmp_path / 'chaos'), kills=20, seed=1, overrides=['--config.steps=200'])
    assert record['differences'] == [] and record['kills'] >= 8  # a fast machine is done before the twentieth
